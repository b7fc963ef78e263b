"""Batch-norm statistics of many training images, in place of running averages ("precise batch norm").

The authors' release has means and variances that are "strict averages" over a "sufficiently large training batch after the
training procedure", not moving averages. Here: the training stream from its start, augmented as in training, in batches
(and batch-norm groups) as in training; the moments of every batch are merged as count, mean and sum of squared deviations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_jax import parallel, validation
from resnet_jax.config import TrainConfig
from resnet_jax.data import pipeline
from resnet_jax.data.normalize import normalize
from resnet_jax.data.sources import Source
from resnet_jax.errors import Stopped
from resnet_jax.evaluation.moments import Moments
from resnet_jax.models.layers import BatchNorm
from resnet_jax.models.resnet import ResNet, variable_shapes
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState

Path = tuple[str, ...]


def normalised_positions(model: ResNet, image_shape: tuple[int, int, int]) -> dict[Path, int]:
    """Height times width of what each batch norm of a network normalises, by its place, such as ('stem', 'bn')."""
    model = model.clone(scan_blocks=False, remat=())
    image = jax.ShapeDtypeStruct((model.bn_group_size or 1, *image_shape), jnp.float32)

    def outputs(variables: Any, images: jax.Array) -> Any:
        chosen = {"capture_intermediates": lambda module, _: isinstance(module, BatchNorm), "mutable": ["intermediates"]}
        return model.apply(variables, images, train=False, **chosen)[1]["intermediates"]

    shapes = traverse_util.flatten_dict(jax.eval_shape(outputs, variable_shapes(model, image_shape), image))
    return {path[:-1]: output.shape[1] * output.shape[2] for path, (output,) in shapes.items()}


def compile_statistics_step(run: Experiment) -> Callable[..., Any]:
    """A function of (params, batch_stats, pixels, batch) that gives the running statistics of that batch alone."""
    model = run.model.clone(bn_momentum=0.0)  # keep nothing of the old ones

    def step(params: Any, batch_stats: Any, pixels: dict[str, jax.Array], batch: dict[str, jax.Array]) -> Any:
        images = normalize(batch, pixels["mean"], pixels["std"], run.config.data.pad)
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    rep = parallel.replicated(run.mesh)
    return jax.jit(step, in_shardings=(rep, rep, rep, parallel.by_batch(run.mesh)), out_shardings=rep)


def whole_batches(config: TrainConfig, images: int) -> int:
    """`images`, rounded down to whole training batches: a smaller one would be normalised in another way.

    Raises:
      UserError: not even one batch, or batch norm is frozen.
    """
    validation.check_precise(config, images)
    return images // config.batch_size * config.batch_size


def precise_statistics(
    run: Experiment, state: TrainState, source: Source, images: int, should_stop: Callable[[], bool] = lambda: False
) -> Any:
    """Batch-norm statistics of the first images of the training stream.

    Args:
      run: the experiment.
      state: as checkpoints hold it (unrolled), replicated over the mesh.
      source: the training set.
      images: so many, rounded down to whole batches (`whole_batches`); beyond an epoch, images come again.
      should_stop: polled between batches.

    Returns:
      As `state.batch_stats`, in its dtypes: means, and unbiased variances, as the running ones are.

    Raises:
      UserError: see `whole_batches`; or a batch that the devices cannot share.
      Stopped: `should_stop` said so.
    """
    config = run.config
    validation.check_devices(config, run.mesh.size)
    steps = whole_batches(config, images) // config.batch_size
    rows = parallel.local_rows(run.mesh, config.batch_size)
    batches = pipeline.train_batches(config, source, rows, steps)
    positions = normalised_positions(run.model, run.image_shape)
    moments = {path: Moments() for path in positions}
    step_fn, on_device = compile_statistics_step(run), run.for_model(state)
    images_each, done = config.batch_size // config.accumulate, False
    with pipeline.iterate(batches, 0, config.data, pipeline.Skipped()) as iterator:
        for batch in iterator:
            if done and should_stop():  # not before the first one, whose program is compiled
                raise Stopped("stopped while batch-norm statistics were estimated")
            for part in range(config.accumulate):  # as `training.step` deals the rows out to micro-batches
                micro = {name: values[part :: config.accumulate] for name, values in batch.items()}
                micro = parallel.put_batch(micro, run.mesh, images_each)
                stats = step_fn(on_device.params, on_device.batch_stats, on_device.pixels, micro)
                stats = traverse_util.flatten_dict(jax.device_get(run.for_checkpoint(stats)))
                for path, moment in moments.items():
                    count = images_each * positions[path]
                    moment.add(count, stats[*path, "mean"], np.float64(stats[*path, "var"]) * max(count - 1, 1))
            done = True
    merged = {}
    for path, moment in moments.items():
        merged |= {(*path, "mean"): moment.mean, (*path, "var"): moment.variance(unbiased=True)}
    merged = traverse_util.unflatten_dict(merged)
    merged = jax.tree.map(lambda old, new: np.asarray(new, old.dtype), state.batch_stats, merged)
    return parallel.put_replicated(merged, run.mesh)
