"""The exponential moving average of parameters and batch-norm statistics (`AverageConfig`)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config import AverageConfig
from resnet_jax.training.state import TrainState


def update(config: AverageConfig, old: Any, params: Any, batch_stats: Any, step: jax.Array) -> Any:
    """The average after update number `step` (from 0): decay * old + (1 - decay) * new, in the parameters' dtype.

    Args:
      config: has the decay.
      old: {'params': ..., 'batch_stats': ...} before the update, or None: there is no average.
      params, batch_stats: after the update.
      step: int32.
    """
    if old is None:
        return None
    decay = jnp.float32(config.decay)
    if config.ramp:
        count = step.astype(jnp.float32)
        decay = jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update({"params": params, "batch_stats": batch_stats}, old, 1 - decay)


def averaged(state: TrainState) -> TrainState:
    """The state with the average in place of the weights: what to evaluate and to export."""
    return state.replace(**state.average)


def scored(config: AverageConfig, state: TrainState) -> TrainState:
    """The state whose scores are the run's: with the average in place of the weights if `evaluate` is 'instead'."""
    return averaged(state) if config.decay and config.evaluate == "instead" else state
