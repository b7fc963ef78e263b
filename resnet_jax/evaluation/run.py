"""Scoring a checkpoint with the config that is stored beside it."""

import pathlib
import sys

from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.evaluation.metrics import Scores
from resnet_jax.evaluation.protocols import compile_eval_step, evaluate
from resnet_jax.training import experiment as experiment_lib
from resnet_jax.training.checkpoints import Checkpoints


def evaluate_checkpoint(config: TrainConfig, workdir: str | pathlib.Path, step: int | None = None) -> tuple[int, Scores]:
    """Evaluates a checkpoint of a run on its held-out images.

    Args:
      config: the run's, validated.
      workdir: the run's.
      step: of the checkpoint; None: the latest, -1: the best.

    Returns:
      The step and the scores.

    Raises:
      UserError: no such checkpoint, or no such data.
    """
    with Checkpoints(pathlib.Path(workdir), config.checkpoint) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{checkpoints.folder}: no checkpoint in it; train first")
        step = {None: steps[-1], -1: checkpoints.best_step()}.get(step, step)
        source = experiment_lib.open_data(config, "val")
        run = experiment_lib.build(config, source)
        state, _ = checkpoints.restore(step, run.abstract_state())
    eval_step = compile_eval_step(run.model, config.data.pad, run.mesh)
    return step, evaluate(eval_step, state, source, run.config, run.mesh, progress=sys.stderr.isatty())
