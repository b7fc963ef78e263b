"""Training with the data on the device: the loop does everything it does with a stream."""

import json
import signal

import jax
import numpy as np
import pytest

from resnet_jax import parallel
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation.metrics import Scores
from resnet_jax.training import experiment, feed, loop
from resnet_jax.training.loop import train
from tests import helpers


def valid(**fields):
    defaults = {"data__placement": "device", "data__augment": "pad_crop", "steps": 7, "logging__every": 3}
    return helpers.validated(helpers.digits_config(**defaults | fields))


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in helpers.TIMES} for row in lines]


def test_several_steps_at_once_are_the_steps_one_by_one():
    """In float64: inside a loop XLA rounds otherwise."""
    with jax.enable_x64(True):
        ends = {}
        for most, devices in ((1, 1), (3, 8)):
            config = valid(steps_per_dispatch=most, devices=devices)
            run, state, source, _ = helpers.float64_run(config)
            losses, done = [], 0
            with feed.open_feed(run, source, 0, None) as resident:
                while done < 5:
                    state, metrics, count = resident(state, done, 2 if done < 2 else 5, False)
                    losses += np.asarray(metrics["loss"])[:count].tolist()
                    done += count
            assert len(losses) == int(state.step) == 5
            ends[most, devices] = helpers.flat(state.params) | {"losses": np.array(losses)}
        for name, want in ends[1, 1].items():
            np.testing.assert_allclose(ends[3, 8][name], want, rtol=1e-9, atol=1e-11, err_msg=name)


def test_it_learns_and_stops_and_goes_on(tmp_path, monkeypatch):
    config = valid(steps=8, steps_per_dispatch=2, evaluation__every=4, checkpoint__every=0)
    whole = train(config, tmp_path / "whole")
    assert [(row["step"], row["split"]) for row in rows(tmp_path / "whole")] == [
        (3, "train"), (4, "test"), (6, "train"), (8, "train"), (8, "test"),
    ]  # fmt: skip
    real, seen = loop.Trainer._update, []

    def interrupted(self, step):
        if step == 4 and not seen:
            seen.append(step)
            signal.raise_signal(signal.SIGTERM)
        return real(self, step)

    monkeypatch.setattr(loop.Trainer, "_update", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 6, saved"):
        train(config, tmp_path / "parts")
    assert train(config, tmp_path / "parts") == whole
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize("most", [1, 7])
def test_a_step_in_the_middle_that_is_not_finite_is_named(tmp_path, most):
    off = {"logging__every": 7, "evaluation__every": 0, "checkpoint__every": 0}
    config = valid(steps_per_dispatch=most, optimizer__learning_rate=1e6, schedule__boundaries=(), **off)
    with pytest.raises(UserError, match=r"^step 4: the parameter_norm is nan; there is no checkpoint yet"):
        train(config, tmp_path)


def test_a_batch_is_sent_before_the_step_before_it_is_waited_for(tmp_path, monkeypatch):
    """So the copy overlaps the step, where copies are asynchronous."""
    events, put, add = [], parallel.put_batch, loop.Trainer._add_to_window

    def sent(*args):
        events.append(f"send {1 + sum('send' in event for event in events)}")
        return put(*args)

    def waited(self, step, values):
        events.append(f"wait {step}")
        add(self, step, values)

    monkeypatch.setattr(parallel, "put_batch", sent)
    monkeypatch.setattr(loop.Trainer, "_add_to_window", waited)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Scores(top1=1, top5=1, count=1))
    off = {"logging__every": 10, "evaluation__every": 0, "checkpoint__every": 0}
    train(valid(data__placement="host", steps=4, **off), tmp_path)
    assert events == ["send 1", "send 2", "wait 1", "send 3", "wait 2", "send 4", "wait 3", "wait 4"]


def test_on_cpu_one_step_at_a_time_unless_told():
    config = valid(devices=1)
    assert feed.steps_at_once(experiment.build(config, 10, 1)) == 1
    assert feed.steps_at_once(experiment.build(valid(steps_per_dispatch=5), 10, 1)) == 5
