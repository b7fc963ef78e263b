"""Checkpoints as the loop uses them: which are kept, and what happens to damaged, unreadable and unwritable ones."""

import json
import re
import shutil
import subprocess
import sys

import orbax.checkpoint as ocp
import pytest

from resnet_jax.errors import EXIT_USER_ERROR, UserError
from resnet_jax.evaluation.run import evaluate_checkpoint
from resnet_jax.training import loop
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.loop import train
from tests import helpers


def valid(**fields):
    return helpers.validated(helpers.digits_config(**fields))


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.mark.parametrize(("keep_every", "want"), [(0, [2, 5, 6]), (3, [2, 3, 5, 6])])
def test_keeps_the_last_and_the_best(tmp_path, monkeypatch, keep_every, want):
    accuracy = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4, 5: 0.6, 6: 0.2}
    real = loop.evaluate

    def scripted(eval_step, state, *args, **options):
        scores = real(eval_step, state, *args, **options)
        scores.top1 = round(360 * accuracy[int(state.step)])
        return scores

    monkeypatch.setattr(loop, "evaluate", scripted)
    keep = {"checkpoint__keep_last": 2, "checkpoint__keep_best": 1, "checkpoint__keep_every": keep_every}
    config = valid(steps=6, evaluation__every=1, **keep)
    train(config, tmp_path)
    assert kept(tmp_path) == want
    with Checkpoints(tmp_path, config.checkpoint) as checkpoints:
        assert checkpoints.best_step() == 2


def test_checkpoints_between_evaluations_are_kept_too(tmp_path):
    train(valid(steps=5, evaluation__every=3, checkpoint__every=1, checkpoint__keep_last=2), tmp_path)
    assert {4, 5} <= set(kept(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: shutil.rmtree(step / "state"),
        lambda step: shutil.rmtree(step / "progress"),
        lambda step: (step / "state" / "_METADATA").unlink(),
        lambda step: (step / "state" / "manifest.ocdbt").unlink(),
        lambda step: (step / "progress" / "metadata").write_text("{"),
        lambda step: flip_a_bit(step),
    ],
)
def test_from_a_damaged_checkpoint_the_run_goes_on_from_the_one_before(tmp_path, capsys, damage):
    whole = train(valid(steps=3), tmp_path)
    damage(tmp_path / "checkpoints" / "3")
    capsys.readouterr()
    assert train(valid(steps=3), tmp_path) == whole
    said = capsys.readouterr().out
    assert re.search(r"warning: .*checkpoints/3: damaged checkpoint .*; step 2 is the one before it", said)
    assert "resumed from step 2 of 3" in said
    assert kept(tmp_path) == [2, 3]
    assert (tmp_path / "damaged-checkpoint-3").is_dir()


def flip_a_bit(step):
    """In the largest file, which holds arrays; its headers are at the ends."""
    path = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_only_checkpoint_is_not_replaced_by_a_fresh_start(tmp_path):
    train(valid(steps=1), tmp_path)
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(
        UserError, match=r"checkpoints/1: damaged checkpoint .*; there is none before it: use another --workdir"
    ):
        train(valid(steps=2), tmp_path)
    assert kept(tmp_path) == [1]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError("out of memory")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, error):
    train(valid(steps=2), tmp_path)

    def fail(self, step, **_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fail)
        with pytest.raises(UserError, match=r"checkpoints/2: cannot be read now \(.*\); it is left as it is"):
            train(valid(steps=3), tmp_path)
    assert kept(tmp_path) == [1, 2]
    assert not list(tmp_path.glob("damaged*"))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    off = ["schedule.boundaries=()", "logging.tensorboard=False", "logging.curves=False", "evaluation.every=0"]
    command += [f"--config.{flag}" for flag in ["model.name=cifar_resnet8", "checkpoint.every=1", *off]]
    pipes = {"cwd": helpers.ROOT, "capture_output": True, "text": True, "timeout": 200}
    assert subprocess.run([*command, "--config.steps=1"], **pipes).returncode == 0
    small = ["bash", "-c", 'ulimit -f 20; exec "$@"', "-"]  # files of at most 20 KiB: what a full disk is to Orbax
    done = subprocess.run([*small, *command, "--config.steps=3"], **pipes)
    assert done.returncode == EXIT_USER_ERROR, done.stderr
    assert re.match(r"error: .*checkpoints: a checkpoint cannot be written \(.*\); step 1 is there and whole", done.stderr)
    assert done.stderr.count("\n") == 1
    assert kept(tmp_path) == [1]


def test_no_checkpoint_of_that_step(tmp_path):
    config = valid(steps=1)
    with pytest.raises(UserError, match="no checkpoints; train first"):
        evaluate_checkpoint(config, tmp_path / "empty")
    train(config, tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are \[1\]"):
        evaluate_checkpoint(config, tmp_path, 7)
