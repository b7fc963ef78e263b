"""What a run is worth once it has ended."""

import importlib.metadata
import pathlib
import subprocess
from typing import Any

import resnet_jax
from resnet_jax import config as config_lib
from resnet_jax import validation
from resnet_jax.analysis.responses import responses
from resnet_jax.config import TrainConfig
from resnet_jax.evaluation.run import score
from resnet_jax.evaluation.statistics import precise_statistics
from resnet_jax.training import averages, experiment
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.logging import read_rows

RESULT = "result.json"  # in the workdir
CLASSES = 10


def is_finished(config: TrainConfig, workdir: pathlib.Path) -> bool:
    """Whether the folder holds the last step of just this run, and its scores."""
    stored = workdir / "config.json"
    if not stored.is_file() or not (workdir / "checkpoints" / str(config.steps)).is_dir():
        return False
    if validation.differences(config_lib.load(stored), config_lib.resolved(config, CLASSES)):
        return False
    rows = read_rows(workdir / "metrics.jsonl")
    return any(row["step"] == config.steps and row["split"] == "test" for row in rows)


def commit() -> str:
    """The commit of the code, '-dirty' where files of it differ; 'unknown' outside a repository."""
    root = pathlib.Path(resnet_jax.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "resnet_jax", "configs")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(config: TrainConfig, workdir: pathlib.Path, precise_images: int, with_responses: bool) -> dict[str, Any]:
    """What a finished run is worth: errors in percent, the mean loss, seconds of training.

    The test error is that of the log, after the last step. The training error is over the whole training set without
    augmentation, with running statistics; `train_error_running` is the last window of the log: augmented images, batch
    statistics, weights that still move. `test_error_precise` is with the statistics of `precise_images` training images.
    """
    with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
        run = experiment.build(config, CLASSES, checkpoints.channels(config.steps))
        state, progress = checkpoints.restore(config.steps, run.abstract_state())
        state = averages.scored(config.average, state)
    last = {row["split"]: row for row in read_rows(workdir / "metrics.jsonl")}
    train = score(run, state, "train").as_metrics()
    device = run.mesh.devices.flat[0]
    result = {
        "test_error": 100 * (1 - last["test"]["top1"]),
        "test_error_precise": None,
        "train_error": 100 * (1 - train["top1"]),
        "train_error_running": 100 * (1 - last["train"]["top1"]),
        "train_loss": train["loss"],
        "seconds": progress.seconds,
        "device": f"{run.mesh.size} x {device.device_kind}",
        **{name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "resnet_jax": resnet_jax.__version__,
    }
    if precise_images:
        source = experiment.open_data(run.config, "train")
        after = state.replace(batch_stats=precise_statistics(run, state, source, precise_images))
        result["test_error_precise"] = 100 * (1 - score(run, after).as_metrics()["top1"])
    if with_responses:
        result["responses"] = responses(run, state, experiment.open_data(run.config, "val"))
    return result
