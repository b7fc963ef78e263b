"""Which networks a table or figure of section 4.2 needs, what others measured, and the schedule, shortened or not."""

import dataclasses
import pathlib

from resnet_jax import flags as command_line
from resnet_jax import validation
from resnet_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"

# Test errors in percent: Table 6 (110: the best of five runs, their mean is 6.61 +- 0.16), and akamaster's
# pytorch_resnet_cifar10, which reports the best epoch on the test set where the paper and we report the last.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
AKAMASTER = {20: 8.27, 32: 7.37, 44: 6.90, 56: 6.61, 110: 6.32, 1202: 6.18}

RESNETS = tuple(f"resnet{depth}" for depth in PAPER)
PLAIN = ("plain20", "plain32", "plain44", "plain56")
SHORTCUTS = ("resnet20", "resnet20-B", "resnet20-C", "resnet32", "resnet32-B", "resnet32-C")
FIGURE7 = ("plain20", "plain56", "resnet20", "resnet56", "resnet110")
TARGETS = {"table6": RESNETS, "figure6": (*PLAIN, *RESNETS), "figure7": FIGURE7, "shortcuts": SHORTCUTS}

# What the command sets by itself, from its own flags and the network's name.
OWN_FIELDS = ("steps", "unit", "seed", "data.root", "data.source", "schedule.boundaries", "model.name", "model.shortcut")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by its short name: 'plain20', 'resnet56', 'resnet20-B' (with option B)."""

    name: str

    @property
    def stem(self) -> str:
        """'resnet20' of 'resnet20-B'."""
        return self.name.partition("-")[0]

    @property
    def depth(self) -> int:
        """Weighted layers."""
        return int(self.stem.removeprefix("resnet").removeprefix("plain"))

    @property
    def shortcut(self) -> str:
        """'A', 'B', 'C', or 'none'."""
        return self.name.partition("-")[2] or ("none" if self.name.startswith("plain") else "A")

    @property
    def config_file(self) -> pathlib.Path:
        """In configs/."""
        return CONFIGS / f"cifar10_{self.stem}.py"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The paper's recipe, or one that differs in named fields.

    Attributes:
      divide: all durations of the schedule are divided by it, and rounded down.
      overrides: fields of the config and their values, as on a command line.
    """

    divide: int = 1
    overrides: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, _ in self.overrides:
            if name in OWN_FIELDS:
                raise UserError(
                    f"--config.{name}: set by this command; see --help for --divide, --seeds, --networks, --data"
                )

    def flags(self, network: Network) -> dict[str, str]:
        """The fields in which a run of a network differs from its config file, seed and data aside."""
        config = command_line.load_config_file(network.config_file)
        steps = config.steps // self.divide
        boundaries = tuple(boundary // self.divide for boundary in config.schedule.boundaries)
        fields = {
            "steps": str(steps),
            "schedule.boundaries": str(boundaries).replace(" ", ""),
            "evaluation.every": str(min(config.evaluation.every, max(steps // 8, 1))),
            "checkpoint.every": str(min(config.checkpoint.every, max(steps // 20, 1))),
            "logging.every": str(min(config.logging.every, max(steps // 100, 1))),
            "logging.tensorboard": "False",
        }
        if config.schedule.warmup == "error" and self.divide > 1:
            fields["schedule.warmup_error_window"] = str(max(config.schedule.warmup_error_window // self.divide, 1))
        if network.shortcut in ("B", "C"):
            fields["model.shortcut"] = network.shortcut
        return fields | dict(self.overrides)

    def steps(self, network: Network) -> int:
        """Updates of a run."""
        return int(self.flags(network)["steps"])

    def _differences(self) -> list[str]:
        """Overrides that change the numbers of a run."""
        return [f"{name}={value}" for name, value in self.overrides if not name.startswith(validation.MAY_CHANGE)]

    def text(self, network: Network) -> str:
        """For people: 'paper', or 'paper, durations / 64 (drops at 500 and 750)', and what else differs."""
        fields, parts = self.flags(network), ["paper"]
        if self.divide > 1:
            drops = " and ".join(fields["schedule.boundaries"].strip("()").split(","))
            window = fields.get("schedule.warmup_error_window")
            warmup = f"; warm-up by the error of {window}" if window else ""
            parts.append(f"durations / {self.divide} (drops at {drops}{warmup})")
        return ", ".join(parts + self._differences())

    def folder(self, network: Network) -> str:
        """Of the runs: '1000_steps'."""
        return "+".join([f"{self.steps(network)}_steps", *self._differences()])


def chosen_networks(target: str, names: str | None) -> list[Network]:
    """The networks of a target, or those of them that are named.

    Raises:
      UserError: a name that is not among them.
    """
    wanted = names.split(",") if names else TARGETS[target]
    for name in wanted:
        if name not in TARGETS[target]:
            raise UserError(f"--networks={names}: {name!r} is not in {target}, which has: {', '.join(TARGETS[target])}")
    return [Network(name) for name in TARGETS[target] if name in wanted]
