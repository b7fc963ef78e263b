"""Scoring a checkpoint with the config that is stored beside it, or published weights with a config of their own."""

import pathlib
import sys

from resnet_jax import parallel
from resnet_jax.config import TrainConfig
from resnet_jax.data.normalize import needs_training_set
from resnet_jax.errors import UserError
from resnet_jax.evaluation.metrics import Scores
from resnet_jax.evaluation.protocols import compile_eval_step, evaluate
from resnet_jax.training import averages
from resnet_jax.training import experiment as experiment_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.start import first_state
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import as_path


def restore_checkpoint(
    config: TrainConfig, workdir: str | pathlib.Path, step: int | None = None, average: bool | None = None
) -> tuple[int, Experiment, TrainState]:
    """Reads a checkpoint of a run; its data need not be there.

    Args:
      config: the run's, validated.
      workdir: the run's.
      step: of the checkpoint; None: the latest, -1: the best.
      average: put the weights' moving average in their place; None: if the run's scores are its (`average.evaluate`).

    Returns:
      The step, the experiment and the state as the checkpoint holds it, replicated over the mesh.

    Raises:
      UserError: no such checkpoint, one of another network, or one without an average.
    """
    if average and not config.average.decay:
        raise UserError(f"{workdir}: this run kept no moving average (average.decay=0)")
    with Checkpoints(as_path(workdir), config.checkpoint, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{checkpoints.folder}: no checkpoint in it; train first")
        if step == -1 and checkpoints.best_step() is None:
            raise UserError(f"{checkpoints.folder}: none of {steps} was evaluated when it was saved, so none is the best")
        step = {None: steps[-1], -1: checkpoints.best_step()}.get(step, step)
        if step not in steps:
            raise UserError(f"{checkpoints.folder}: no checkpoint of step {step}; there are {steps}")
        run = experiment_lib.build(config, config.model.num_classes, checkpoints.channels(step))
        state, _ = checkpoints.restore(step, run.abstract_state())
    if average is None:
        return step, run, averages.scored(config.average, state)
    return step, run, averages.averaged(state) if average else state


def evaluate_checkpoint(
    config: TrainConfig, workdir: str | pathlib.Path, step: int | None = None, average: bool | None = None
) -> tuple[int, Scores]:
    """Evaluates a checkpoint of a run on its held-out images.

    Args:
      config, workdir, step, average: as in `restore_checkpoint`.

    Returns:
      The step and the scores.

    Raises:
      UserError: no such checkpoint, or no such data.
    """
    step, run, state = restore_checkpoint(config, workdir, step, average)
    return step, score(run, state)


def evaluate_init(config: TrainConfig) -> Scores:
    """Evaluates the weights named by `config.init`, as they are, on the held-out images.

    Raises:
      UserError: no such weights, or no such data.
    """
    source = experiment_lib.open_data(config, "train" if needs_training_set(config.data) else "val")
    run = experiment_lib.build(config, len(source.classes), source.channels)
    return score(run, parallel.put_replicated(first_state(run, source), run.mesh))


def score(run: Experiment, state: TrainState, split: str = "val") -> Scores:
    """Scores the images of a split ('val' or 'train': without augmentation, with running statistics) once each.

    Args:
      run: the experiment.
      state: as checkpoints hold it, replicated over the mesh.
      split: of the data.

    Raises:
      UserError: no such data.
    """
    source = experiment_lib.open_data(run.config, split)
    eval_step = compile_eval_step(run.model, run.config.data.pad, run.mesh)
    return evaluate(eval_step, run.for_model(state), source, run.config, run.mesh, progress=sys.stderr.isatty())
