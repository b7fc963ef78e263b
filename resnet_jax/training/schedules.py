"""The learning rate as a function of the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from resnet_jax.config import ScheduleConfig

Schedule = Callable[[jax.Array], jax.Array]


def step_schedule(config: ScheduleConfig, learning_rate: float) -> Schedule:
    """The paper's schedule: a constant rate, multiplied by `factor` at each boundary, after an optional warm-up.

    `schedule(step)` is the float32 rate of update number `step` (from 0); update number `boundary` is the first with
    the dropped rate. Sections 3.4 and 4.2.

    >>> rate = step_schedule(ScheduleConfig(boundaries=(32_000, 48_000)), 0.1)
    >>> [round(float(rate(step)), 6) for step in (0, 31_999, 32_000, 48_000)]
    [0.1, 0.1, 0.01, 0.001]
    """
    boundaries = jnp.asarray(config.boundaries, jnp.int32)
    rates = jnp.asarray([learning_rate * config.factor**i for i in range(len(config.boundaries) + 1)], jnp.float32)

    def schedule(step: jax.Array) -> jax.Array:
        rate = rates[(step >= boundaries).sum()] if config.boundaries else rates[0]
        return jnp.where(step < config.warmup_steps, jnp.float32(config.warmup_learning_rate), rate)

    return schedule
