"""The learning rate: a function of the step and, for two rules, of the training so far."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.config import ScheduleConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, for jit
class Schedule:
    """`schedule(step, state)` is the float32 rate of update number `step` (from 0).

    `state` (of `init` and `observe`) is what the rules that watch the training know; it is a part of the training state,
    and None for the others: `schedule(step)` will do.

    Attributes:
      config: with all durations in steps.
      learning_rate: before any drop, after any warm-up.
      steps: length of the run; cosine, polynomial and linear need it.

    >>> rates = lambda schedule, *steps: [round(float(schedule(step)), 6) for step in steps]
    >>> paper = ScheduleConfig(boundaries=(32_000, 48_000))
    >>> rates(Schedule(paper, 0.1), 0, 31_999, 32_000, 48_000)
    [0.1, 0.1, 0.01, 0.001]
    >>> cosine = ScheduleConfig(name="cosine", warmup="linear", warmup_steps=10, warmup_learning_rate=0.0)
    >>> rates(Schedule(cosine, 0.8, 110), 0, 5, 10, 60, 110)
    [0.0, 0.4, 0.8, 0.4, 0.0]
    >>> rates(Schedule(ScheduleConfig(name="polynomial", final_learning_rate=0.2), 1.0, 100), 0, 50, 100)
    [1.0, 0.4, 0.2]
    >>> rates(Schedule(ScheduleConfig(name="linear"), 1.0, 100), 0, 25, 100)
    [1.0, 0.75, 0.0]
    >>> rates(Schedule(ScheduleConfig(name="constant", warmup="constant", warmup_steps=3), 1.0), 2, 3)
    [0.01, 1.0]
    """

    config: ScheduleConfig
    learning_rate: float
    steps: int = 1

    def __call__(self, step: Array | int, state: Any = None) -> Array:
        """The rate, float32, of update number `step` (int32)."""
        config, step = self.config, jnp.asarray(step, jnp.int32)
        rate = self._main(step)
        if config.name == "plateau":
            rate = rate * state["plateau"].scale
        first = jnp.float32(config.warmup_learning_rate)
        if config.warmup == "error":
            return jnp.where(state["warmup"]["over"], rate, first)
        if config.warmup == "none":
            return rate
        if config.warmup == "linear":
            first += (jnp.float32(self.learning_rate) - first) * self._share(step, 0, config.warmup_steps)
        return jnp.where(step < int(config.warmup_steps), first, rate)

    def _main(self, step: Array) -> Array:
        config, first = self.config, self.learning_rate
        if config.name == "step":
            rates = jnp.asarray([first * config.factor**i for i in range(len(config.boundaries) + 1)], jnp.float32)
            boundaries = jnp.asarray(config.boundaries, jnp.int32)
            return rates[(step >= boundaries).sum()] if config.boundaries else rates[0]
        if config.name in ("constant", "plateau"):
            return jnp.float32(first)
        start = config.warmup_steps if config.warmup in ("constant", "linear") else 0
        way = self._share(step, start, self.steps)
        if config.name == "cosine":
            left = jnp.float32(0.5) * (1 + jnp.cos(jnp.float32(math.pi) * way))
        else:
            left = (1 - way) ** jnp.float32(config.power if config.name == "polynomial" else 1)
        last = jnp.float32(config.final_learning_rate)
        return last + (jnp.float32(first) - last) * left

    @staticmethod
    def _share(step: Array, start: float, end: float) -> Array:
        """How much of the way from step `start` to step `end` is behind, float32 in [0, 1]."""
        passed = (step - int(start)).astype(jnp.float32)
        return jnp.clip(passed / jnp.float32(max(int(end) - int(start), 1)), 0, 1)

    def init(self) -> dict[str, Any] | None:
        """The state before the first update, NumPy arrays; None for a rate that depends on the step alone.

        warmup: `errors` float32 [window], the training errors of the last steps, in a ring; `seen` int32, how many there
        were; `over` bool. plateau: optax's `ReduceLROnPlateauState`.
        """
        state: dict[str, Any] = {}
        if self.config.warmup == "error":
            window = self.config.warmup_error_window
            state["warmup"] = {"errors": np.zeros(window, np.float32), "seen": np.int32(0), "over": np.bool_(False)}
        if self.config.name == "plateau":
            state["plateau"] = jax.tree.map(np.asarray, self._plateau().init({"": np.float32(0)}))
        return state or None

    def observe(self, state: dict[str, Any] | None, loss: Array, error: Array) -> dict[str, Any] | None:
        """The state after an update with this training loss and training error in [0, 1], of the batch."""
        if state is None:
            return None
        state = dict(state)
        if "warmup" in state:
            errors, seen = state["warmup"]["errors"], state["warmup"]["seen"]
            errors = errors.at[seen % len(errors)].set(error.astype(jnp.float32))
            low = (seen + 1 >= len(errors)) & (errors.mean() < jnp.float32(self.config.warmup_error))
            state["warmup"] = {"errors": errors, "seen": seen + 1, "over": state["warmup"]["over"] | low}
        if "plateau" in state:
            value = loss if self.config.plateau_metric == "loss" else error
            state["plateau"] = self._plateau().update({}, state["plateau"], value=value)[1]
        return state

    def _plateau(self) -> optax.GradientTransformationExtraArgs:
        config = self.config
        return optax.contrib.reduce_on_plateau(
            factor=config.factor,
            patience=config.plateau_patience,
            rtol=config.plateau_threshold,
            accumulation_size=int(config.plateau_window),
            min_scale=config.final_learning_rate / self.learning_rate,
        )


def make_schedule(config: ScheduleConfig, learning_rate: float, steps: int = 1, scale: float = 1.0) -> Schedule:
    """The schedule that a config asks for, in a run of so many steps, with all its rates multiplied by `scale`."""
    rates = {name: getattr(config, name) * scale for name in ("warmup_learning_rate", "final_learning_rate")}
    return Schedule(dataclasses.replace(config, **rates), learning_rate * scale, steps)
