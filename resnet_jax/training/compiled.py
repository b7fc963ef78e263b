"""The train step of an experiment, compiled ahead for its devices, without data."""

import jax
import numpy as np

from resnet_jax import parallel
from resnet_jax.data import augment
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.step import Step, compile_train_step, make_step, step_options


def train_step(run: Experiment) -> Step:
    """The step of a run, not compiled yet."""
    return make_step(run.model, run.optimizer, run.schedule, run.config.data.pad, step_options(run.config))


def abstract_batch(run: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a global training batch: image, label, and what the augmentation leaves to do."""
    black = np.zeros(run.image_shape, np.uint8)
    example = augment.train_transform(run.config)(black, np.random.default_rng(0)) | {"label": np.int32(0)}
    example = parallel.with_wish(example, False, ())
    batch, sharding = run.config.batch_size, parallel.by_batch(run.mesh)
    return {
        name: jax.ShapeDtypeStruct((batch, *np.shape(value)), value.dtype, sharding=sharding)
        for name, value in example.items()
    }


def compile_step(run: Experiment) -> jax.stages.Compiled:
    """`training.step.compile_train_step`, lowered and compiled for the run's batch.

    Call it like the step; a state or batch of other shapes, dtypes or shardings is an error.
    """
    step = compile_train_step(train_step(run), run.mesh)
    return step.lower(run.abstract_model_state(), abstract_batch(run)).compile()
