"""Durations in steps, epochs or examples. Imports no JAX."""

import typing

from resnet_jax.errors import UserError

if typing.TYPE_CHECKING:
    from resnet_jax.config import TrainConfig

FIELDS = (
    "steps",
    "schedule.boundaries",
    "schedule.warmup_steps",
    "schedule.plateau_window",
    "evaluation.every",
    "checkpoint.every",
)
MOST = 2**31 - 1  # the step counter is int32


def values(config: "TrainConfig") -> dict[str, tuple[float, ...]]:
    """All durations of a config, by field; a tuple has several, and of the others each is one."""
    found = {}
    for name in FIELDS:
        needs = {"schedule.boundaries": "step", "schedule.plateau_window": "plateau"}
        if config.schedule.name != needs.get(name, config.schedule.name):
            continue
        section, field = _place(config, name)
        value = getattr(section, field)
        found[name] = value if isinstance(value, tuple) else (value,)
    return found


def in_steps(config: "TrainConfig", images: int | None) -> None:
    """Turns every duration of a mutable config into whole steps, the nearest, and `unit` into 'steps'.

    An epoch is as many steps as show each training image `data.repeats` times: images * repeats / batch_size, which is
    seldom a whole number. No duration that is not 0 becomes 0.

    Args:
      config: changed in place.
      images: in the training set. None: epochs cannot be counted and stay.

    Raises:
      UserError: too many steps, or schedule boundaries that fall on the same one.
    """
    if config.unit == "epochs" and images is None:
        return
    per_unit = {"steps": config.batch_size, "examples": 1, "epochs": (images or 0) * config.data.repeats}[config.unit]
    unit, config.unit = config.unit, "steps"
    for name, given in values(config).items():
        steps = tuple(max(int(value * per_unit / config.batch_size + 0.5), int(value > 0)) for value in given)
        if max(steps, default=0) > MOST or len(set(steps)) < len(steps):
            what = f"the steps {steps}" if len(steps) != 1 else f"{steps[0]} steps"
            raise UserError(f"{name}={given}, in {unit}: {what}; must be different and at most {MOST}")
        section, field = _place(config, name)
        setattr(section, field, steps if isinstance(getattr(section, field), tuple) else steps[0])


def _place(config: "TrainConfig", name: str) -> tuple[typing.Any, str]:
    *sections, field = name.split(".")
    for section in sections:
        config = getattr(config, section)
    return config, field
