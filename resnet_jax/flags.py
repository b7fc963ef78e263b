"""Command lines: `--config=FILE` and `--config.FIELD=VALUE`, with one clear line for what is wrong. Imports no JAX."""

import importlib.util
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from resnet_jax import config as config_lib
from resnet_jax import host, validation
from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError, one_line_errors
from resnet_jax.section import Section, unknown_field
from resnet_jax.training import workdir as workdirs

Define = Callable[[list[str]], flags.FlagHolder]


DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes, as Cloud TPU slices, GKE or Slurm start them; all need the same command.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no such system starts the processes.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", lower_bound=0)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 100, "Seconds after which a silent process counts as lost, and all end.", lower_bound=10
)


def run(main: Callable[[TrainConfig], None], define: Define, needs_data: bool = True) -> None:
    """Parses the command line, validates the config, sets what JAX must know before it starts, and calls `main`.

    Args:
      main: gets the frozen config.
      define: from the raw command line, defines the flag `config`.
      needs_data: whether `data.root` must be given.
    """
    host.use_huge_pages()
    parsed: list[TrainConfig] = []

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv):
            return flags.FLAGS([argument for argument in argv if not argument.startswith("--config")])
        with one_line_errors():
            _check_repeats(argv)
            holder = define(argv)
            try:
                rest = flags.FLAGS(argv)
            except (flags.Error, ValueError, TypeError) as error:
                raise UserError(" ".join(str(error).split())) from error
            if len(rest) > 1:
                raise UserError(f"{rest[1]!r}: not a flag; write --name=value")
            parsed.append(validation.validate(holder.value, needs_data))
        return rest

    def start(_: list[str]) -> None:
        sys.unraisablehook = _unraisable
        logging.set_verbosity(logging.FATAL)  # Orbax warns of checkpoints without scores, and logs what it raises, too
        with one_line_errors():
            _set_backend(parsed[0])
            main(parsed[0])

    app.run(start, flags_parser=parse)


def _unraisable(unraisable: Any) -> None:
    """Leaves out what TensorStore's threads say of a checkpoint that Orbax has given up: one error is enough."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def config_from_file(argv: list[str]) -> flags.FlagHolder:
    """`--config=FILE`, a Python file with `get_config()`.

    Raises:
      UserError: not given, not there, or not a config.
    """
    path = _value_of(argv, "config")
    if not path:
        raise UserError("--config=FILE is missing, for example --config=configs/digits.py")
    # Read here first, since config_flags answers a faulty file with a traceback of its own.
    _check_overrides(argv, load_config_file(pathlib.Path(path)))
    return config_flags.DEFINE_config_file("config")


def config_from_workdir(argv: list[str]) -> flags.FlagHolder:
    """The config stored in `--workdir`.

    Raises:
      UserError: not given, or no run there.
    """
    workdir = _value_of(argv, "workdir")
    if not workdir:
        raise UserError("--workdir=FOLDER of a run is missing")
    folder = workdirs.as_path(workdir)
    with workdirs.reached(folder):
        if not (folder / "config.json").is_file():
            raise UserError(f"--workdir={workdir}: no config.json in it; give the workdir of a run")
        config = config_lib.load(folder / "config.json")
    _check_overrides(argv, config)
    return config_flags.DEFINE_config_dataclass("config", config)


def config_from_workdir_or_file(argv: list[str]) -> flags.FlagHolder:
    """`--config=FILE` if given, else the config stored in `--workdir`.

    Raises:
      UserError: both are given, or what the two raise.
    """
    if _value_of(argv, "config") and _value_of(argv, "workdir"):
        raise UserError("--config=FILE and --workdir together: a run has its own config; leave one out")
    return config_from_file(argv) if _value_of(argv, "config") else config_from_workdir(argv)


def config_file_name() -> str:
    """The name of the config file without its suffix, after parsing."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _value_of(argv: list[str], name: str) -> str | None:
    for index, argument in enumerate(argv):
        if argument in (f"--{name}", f"-{name}") and index + 1 < len(argv):
            return argv[index + 1]
        if match := re.match(rf"--?{name}=(.*)", argument):
            return match[1]
    return None


def load_config_file(path: pathlib.Path) -> TrainConfig:
    """The config of a Python file with `get_config()`.

    Raises:
      UserError: no such file, or it fails, with the line.
    """
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
        raise UserError(f"--config={path}: no such file" + (f"; {path.parent} has: {there}" if there else ""))
    try:
        spec = importlib.util.spec_from_file_location("config_file", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # the file is the user's own program
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path.name)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{error}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path}: get_config() must return a TrainConfig, it returned {type(config).__name__}")
    return config


def _check_repeats(argv: list[str]) -> None:
    """Refuses a flag given twice: for some the first would count, for some the last, for tuples both."""
    names = [match[1] for argument in argv[1:] if (match := re.match(r"--?([^=]+)", argument))]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--{name} is given {names.count(name)} times; give it once")


def _check_overrides(argv: list[str], config: TrainConfig) -> None:
    """Refuses `--config.a.b=...` whose path is no field of the config, naming the nearest."""
    for argument in argv:
        match = re.match(r"--?config\.([^=]*)", argument)
        if not match:
            continue
        node, names = config, match[1].split(".")
        for depth, name in enumerate(names):
            where = ".".join(["config", *names[:depth]])
            if not isinstance(node, Section):
                raise UserError(f"{argument}: {where} is a single value, it has no fields")
            if name not in node.__dataclass_fields__:
                raise UserError(f"{argument}: {unknown_field(where, name, list(node.__dataclass_fields__))}")
            node = getattr(node, name)
        if isinstance(node, Section):
            raise UserError(f"{argument}: {match[1]} is a group of fields: {', '.join(node.__dataclass_fields__)}")


def _set_backend(config: TrainConfig) -> None:
    """Settings that JAX reads when it starts."""
    if config.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    several = DISTRIBUTED.value or COORDINATOR.value is not None
    if (COORDINATOR.value is None, NUM_PROCESSES.value is None, PROCESS_ID.value is None) not in ((True,) * 3, (False,) * 3):
        raise UserError("--coordinator, --num_processes and --process_id go together")
    if COORDINATOR.value is not None and not re.fullmatch(r".+:\d+", COORDINATOR.value):
        raise UserError(f"--coordinator={COORDINATOR.value}: must be HOST:PORT, such as 10.0.0.2:8476")
    if several and NUM_PROCESSES.value is not None and PROCESS_ID.value >= NUM_PROCESSES.value:
        raise UserError(
            f"--process_id={PROCESS_ID.value}: with --num_processes={NUM_PROCESSES.value} the last one is "
            f"{NUM_PROCESSES.value - 1}"
        )
    host.use_all_cores(config, NUM_PROCESSES.value or 1)
    import jax

    if config.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if several:
        from resnet_jax import parallel

        parallel.start_distributed(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, PEER_TIMEOUT.value)
