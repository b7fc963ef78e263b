"""All that a run is at one step."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.models.resnet import ResNet, init_variables, variable_shapes


@flax.struct.dataclass
class TrainState:
    """A checkpoint holds exactly this (and the config beside it).

    Attributes:
      step: int32, updates made so far.
      params: float32 parameters.
      batch_stats: float32 running means and variances.
      opt_state: of the optimizer.
      pixels: `mean` and `std` that images are normalised with (`data.normalize.statistics`).
      average: {'params': ..., 'batch_stats': ...}, their moving average (`averages`); None: without.
      schedule: what the learning rate's schedule has seen of the training (`Schedule.init`); None: nothing.
      loss_scale: of float16 (`loss_scale.LossScale`); None: another dtype.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    pixels: dict[str, jax.Array]
    average: Any = None
    schedule: Any = None
    loss_scale: Any = None


def fresh_state(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    pixels: dict[str, np.ndarray],
    seed: int,
) -> TrainState:
    """The state before the first update, on the host; the same for the same seed on any machine."""
    variables = init_variables(model, image_shape, seed)
    shapes = jax.eval_shape(optimizer.init, variables["params"])
    # The state of every optimizer here starts at zero; building it on the host spares a compilation per tensor.
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return TrainState(np.int32(0), variables["params"], variables["batch_stats"], opt_state, pixels)


def abstract_state(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    pixels: dict[str, jax.ShapeDtypeStruct],
    sharding: jax.sharding.Sharding,
) -> TrainState:
    """Shapes, dtypes and the sharding of a state: what a checkpoint is restored into."""
    variables = variable_shapes(model, image_shape)
    opt_state = jax.eval_shape(optimizer.init, variables["params"])
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, variables["params"], variables["batch_stats"], opt_state, pixels)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)
