"""The programs of an experiment, compiled ahead for its devices, without data."""

import jax
import numpy as np

from resnet_jax import parallel
from resnet_jax.data import augment
from resnet_jax.evaluation import protocols
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.step import Step, compile_train_step, make_step, step_options


def train_step(run: Experiment) -> Step:
    """The step of a run, not compiled yet."""
    return make_step(run.model, run.optimizer, run.schedule, run.config.data.pad, step_options(run.config))


def abstract_batch(run: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a global training batch: image, label, and what the augmentation leaves to do."""
    black = np.zeros(run.image_shape, np.uint8)
    example = augment.train_transform(run.config)(black, np.random.default_rng(0))
    return _batch_of(run, example, run.config.batch_size)


def _batch_of(run: Experiment, example: augment.Example, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    example = parallel.with_wish(example | {"label": np.int32(0)}, False, ())
    sharding = parallel.by_batch(run.mesh)
    return {
        name: jax.ShapeDtypeStruct((size, *np.shape(value)), value.dtype, sharding=sharding)
        for name, value in example.items()
    }


def compile_step(run: Experiment) -> jax.stages.Compiled:
    """`training.step.compile_train_step`, lowered and compiled for the run's batch.

    Call it like the step; a state or batch of other shapes, dtypes or shardings is an error.
    """
    step = compile_train_step(train_step(run), run.mesh)
    return step.lower(run.abstract_model_state(), abstract_batch(run)).compile()


def compile_evaluation(run: Experiment, images: int) -> jax.stages.Compiled:
    """`evaluation.protocols.compile_eval_step`, lowered and compiled for the batches that so many images are scored in."""
    config, state = run.config, run.abstract_model_state()
    side = max(config.test_size(), config.test_resize() or 0)
    example = augment.eval_transform(config)(np.zeros((side, side, run.channels), np.uint8), None) | {"mask": np.bool_(True)}
    if config.data.on_error == "skip":
        example["skipped"] = np.bool_(False)
    batch = _batch_of(run, example, protocols.padded_batch(config, images, run.mesh))
    step = protocols.compile_eval_step(run.model, config.data.pad, run.mesh)
    return step.lower(state.params, state.batch_stats, state.pixels, batch).compile()
