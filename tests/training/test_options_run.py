"""Runs with everything that is off by default: what they log, and that a stop changes nothing."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax import validation
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation.run import evaluate_checkpoint
from resnet_jax.training import loop, loss_scale, schedules
from resnet_jax.training.checkpoints import Checkpoints, Progress
from resnet_jax.training.loop import train
from resnet_jax.training.state import TrainState
from tests import helpers

EVERYTHING = {
    "steps": 6,
    "model__dtype": "float16",
    "model__drop_path": 0.3,
    "loss__name": "bce_mean",
    "mix__mixup_alpha": 0.2,
    "optimizer__name": "lamb",
    "optimizer__learning_rate": 0.05,
    "optimizer__clip_norm": 1.0,
    "schedule__name": "plateau",
    "schedule__plateau_window": 1,
    "schedule__plateau_patience": 1,
    "schedule__plateau_threshold": 0.5,
    "schedule__warmup": "error",
    "schedule__warmup_error": 0.99,
    "schedule__warmup_error_window": 2,
    "average__decay": 0.5,
    "evaluation__every": 3,
    "checkpoint__every": 0,
}


def valid(**fields):
    return helpers.validated(helpers.digits_config(**fields))


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in helpers.TIMES} for row in found]


def end_state(workdir, step):
    config = validation.validate(config_lib.load(workdir / "config.json"))
    run = loop.experiment_lib.build(config, 10, 1)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoints.restore(step, run.abstract_state())[0]


def test_everything_at_once_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "INTERVAL", 2)  # so that the scale moves
    config = valid(**EVERYTHING)
    whole = train(config, tmp_path / "whole")
    real, seen = loop.Trainer._update, []

    def interrupted(self, step, *args):
        if step == 3 and not seen:
            seen.append(step)
            signal.raise_signal(signal.SIGTERM)
        return real(self, step, *args)

    monkeypatch.setattr(loop.Trainer, "_update", interrupted)
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts")
    stopped = end_state(tmp_path / "parts", 4)
    assert train(config, tmp_path / "parts") == whole
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    end = end_state(tmp_path / "whole", 6)
    helpers.assert_same_bits(end_state(tmp_path / "parts", 6), end)
    # What the options keep was not at its start at the stop: a resume that forgot it would show.
    start = schedules.make_schedule(config.schedule, 0.05).init()
    for there, here in ((stopped.schedule, start), (stopped.loss_scale, loss_scale.init())):
        changed = [helpers.flat(there)[name].tobytes() != value.tobytes() for name, value in helpers.flat(here).items()]
        assert any(changed)
    assert rows(tmp_path / "whole")[-1]["ema_top1"] == whole["ema_top1"]
    scores = evaluate_checkpoint(config_lib.resolved(config, 10), tmp_path / "whole", average=True)[1]
    assert scores.as_metrics()["loss"] == pytest.approx(whole["ema_loss"], rel=1e-6)
    assert whole["ema_loss"] != whole["loss"]


def test_the_average_in_place_of_the_weights(tmp_path):
    scores = train(valid(steps=2, average__decay=0.5, average__evaluate="instead"), tmp_path)
    assert "ema_top1" not in scores
    config = config_lib.resolved(valid(steps=2, average__decay=0.5, average__evaluate="instead"), 10)
    assert evaluate_checkpoint(config, tmp_path, average=True)[1].as_metrics()["loss"] == scores["loss"]
    assert evaluate_checkpoint(config, tmp_path)[1].as_metrics()["loss"] == scores["loss"]
    assert evaluate_checkpoint(config, tmp_path, average=False)[1].as_metrics()["loss"] != scores["loss"]
    with pytest.raises(UserError, match="this run kept no moving average"):
        evaluate_checkpoint(valid(), tmp_path, average=True)


def test_float16_goes_on_after_skipped_steps_and_ends_after_too_many(tmp_path, monkeypatch):
    real = loss_scale.init
    monkeypatch.setattr(loss_scale, "init", lambda: real().replace(scale=np.float32(2.0**24)))
    config = valid(steps=30, model__dtype="float16", logging__every=5, evaluation__every=0, checkpoint__every=0)
    train(config, tmp_path / "on")
    logged = [row for row in rows(tmp_path / "on") if row["split"] == "train"]
    assert 0 < sum(row["skipped"] for row in logged) < 20
    assert logged[-1]["skipped"] == 0
    assert all(np.isfinite(row["loss"]) for row in logged)
    monkeypatch.setattr(loss_scale, "MOST_SKIPPED", 3)
    with pytest.raises(UserError, match=r"step 3: the loss or its gradient was not finite in 3 steps in a row; there is no"):
        train(config, tmp_path / "end")


def test_epochs_are_stored_as_steps_and_resumed(tmp_path):
    fields = {"unit": "epochs", "steps": 1, "batch_size": 500, "checkpoint__every": 1, "evaluation__every": 1}
    config = valid(**fields, schedule__name="cosine", schedule__warmup="linear", schedule__warmup_steps=0.4)
    train(config, tmp_path)  # 1437 training images
    stored = config_lib.load(tmp_path / "config.json")
    assert (stored.unit, stored.steps, stored.schedule.warmup_steps) == ("steps", 3, 1)
    again = train(config, tmp_path)
    assert again == train(validation.validate(stored), tmp_path)
    with pytest.raises(UserError, match="another config"):
        train(valid(**fields | {"steps": 2}, schedule__name="cosine", schedule__warmup="linear",
                    schedule__warmup_steps=0.4), tmp_path)  # fmt: skip


def test_what_changes_the_learning_rate_is_said(tmp_path, capsys):
    fields = {"optimizer__learning_rate_per": 64, "accumulate": 2, "evaluation__every": 0, "checkpoint__every": 0}
    train(valid(steps=1, schedule__warmup="constant", schedule__warmup_steps=1, **fields), tmp_path)
    said = capsys.readouterr().out
    assert "; learning rate 0.1 x 16/64 = 0.025" in said
    assert "; 2 micro-batches of 8, each with its batch norm" in said
    assert rows(tmp_path)[0]["learning_rate"] == pytest.approx(0.01 * 16 / 64)


def test_checkpoints_hold_only_what_is_in_use(tmp_path):
    """So those from before there were options can be read, and a plain run's are as they were."""
    leaf = {"kernel": np.arange(3, dtype=np.float32)}
    arrays = lambda tree: jax.tree.map(jnp.asarray, tree)  # noqa: E731
    state = arrays(TrainState(np.int32(1), leaf, leaf, (leaf,), leaf))
    scaled = state.replace(step=jnp.int32(2), loss_scale=arrays(loss_scale.init()), average=arrays({"params": leaf}))
    with Checkpoints(tmp_path, valid().checkpoint) as checkpoints:
        for step, made in ((1, state), (2, scaled)):
            checkpoints.save(step, made, Progress(), None)
            checkpoints.wait()
            helpers.assert_same_bits(checkpoints.restore(step, made)[0], made)
        with pytest.raises(UserError, match="average/params/kernel is float32"):
            checkpoints.restore(2, state)
    names = json.loads((tmp_path / "checkpoints/1/state/_METADATA").read_text())["tree_metadata"]
    assert {name.split("'")[1] for name in names} == {"step", "params", "batch_stats", "opt_state", "pixels"}
