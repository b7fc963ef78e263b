"""What a run shows: costs before the first step, the progress bar, boards, a profile, device-hours; and the dry run."""

import io
import sys
import types

import chex
import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import train as train_program
from resnet_jax.analysis import peaks
from resnet_jax.analysis.summary import summarize, total
from resnet_jax.config import LoggingConfig
from resnet_jax.errors import UserError
from resnet_jax.training import experiment
from resnet_jax.training import step as step_lib
from resnet_jax.training.boards import open_boards
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.compiled import compile_step
from resnet_jax.training.cost import StepCost, step_cost
from resnet_jax.training.logging import Logger, read_rows
from resnet_jax.training.loop import train
from resnet_jax.training.profile import ProfileWindow
from resnet_jax.training.workdir import Workdir
from tests import helpers


class FakeWandb(types.ModuleType):
    """Notes what the real one would be told."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **settings):
        run = types.SimpleNamespace(settings=settings, rows=[], metrics=[], finished=False)
        run.log = run.rows.append
        run.define_metric = lambda name, step_metric: run.metrics.append((name, step_metric))
        run.finish = lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


def valid(**fields):
    return helpers.validated(helpers.digits_config(**fields))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three steps on two devices, then a fourth on one, with a peak that is known and everything switched on."""
    workdir, wandb, out = tmp_path_factory.mktemp("run"), FakeWandb(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", wandb)
        patch.setattr(sys, "stdout", out)
        patch.setitem(peaks.PEAK_TFLOPS, jax.devices()[0].device_kind, (None, 0.5, None))
        for steps, devices in ((3, 2), (4, 1)):
            chex.clear_trace_counter()
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(step_lib, "train_step", chex.assert_max_traces(step_lib.train_step, n=1))
                logging = {"logging__wandb": "residual", "logging__profile_steps": (2, 3)}
                train(valid(steps=steps, devices=devices, evaluation__every=0, **logging), workdir)
    return workdir, wandb.runs, out.getvalue()


def test_the_cost_is_printed_before_the_first_step(runs):
    lines = runs[2].splitlines()
    (cost, _) = (index for index, line in enumerate(lines) if line.startswith("a step: "))
    first = next(index for index, line in enumerate(lines) if line.startswith("step 1/3"))
    assert cost < first
    assert "MiB on each device" in lines[cost]
    assert "at best" in lines[cost]


def test_rows_have_utilisation_and_device_hours(runs):
    rows = [row for row in read_rows(runs[0] / "metrics.jsonl") if row["split"] == "train"]
    hours = [row["device_hours"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert hours == sorted(hours)
    assert hours[0] > 0
    multiply_adds = total(summarize(experiment.build(valid(), 10, 1).model, (8, 8, 1))).multiply_adds
    for row, devices in zip(rows, (2, 2, 2, 1), strict=True):
        assert row["utilisation"] == pytest.approx(row["images_per_second"] * 6 * multiply_adds / (0.5e12 * devices))


def test_device_hours_follow_the_devices(runs):
    run = experiment.build(valid(), 10, 1)
    with Checkpoints(runs[0], run.config.checkpoint, read_only=True) as checkpoints:
        (_, three), (_, four) = (checkpoints.restore(step, run.abstract_state()) for step in (3, 4))
    assert three.device_seconds == pytest.approx(2 * three.seconds)
    assert four.device_seconds - three.device_seconds == pytest.approx(four.seconds - three.seconds)
    assert f"{four.device_seconds / 3600:.3g} device-hours" in runs[2]


def test_weights_and_biases_goes_on_in_the_same_run(runs):
    workdir, (first, second), _ = runs
    assert first.settings["project"] == "residual"
    assert first.settings["id"] == second.settings["id"] == (workdir / "wandb_id").read_text()
    assert first.settings["resume"] == "allow"
    assert first.settings["config"]["optimizer.learning_rate"] == 0.1
    assert first.metrics == [("*", "step")]
    rows = read_rows(workdir / "metrics.jsonl")
    logged = first.rows + second.rows
    assert [row["step"] for row in logged] == [row["step"] for row in rows]
    assert logged[0]["train/loss"] == rows[0]["loss"]
    assert logged[-1]["test/top1"] == rows[-1]["top1"]
    assert first.finished
    assert second.finished


def test_weights_and_biases_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"logging\.wandb='x': the package wandb is not installed; pip install wandb"):
        open_boards(LoggingConfig(wandb="x"), tmp_path, 0, {})


def test_the_profile_is_written_where_it_is_promised(runs):
    workdir, _, out = runs
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1
    assert out.count("profile of the steps to 3 written") == 1


def test_the_profile_covers_its_steps_only(monkeypatch, tmp_path):
    calls, done = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("off"))
    with ProfileWindow((2, 3), tmp_path) as profile:
        for step in range(1, 6):
            profile.before(step)
            calls.append(step)
            done.append(profile.after(step, np.zeros(1)))
    assert calls == [1, "on", 2, 3, "off", 4, 5]
    assert done == [False, False, True, False, False]
    calls.clear()
    with ProfileWindow((2, 9), tmp_path) as profile:
        profile.before(5)  # resumed inside the window, stopped before its end
    assert calls == ["on", "off"]
    calls.clear()
    with ProfileWindow((), tmp_path) as profile:
        profile.before(1)
        assert not profile.after(1, None)
    assert calls == []


@pytest.mark.parametrize("window", [(3,), (0, 4), (5, 4), (1, 2, 3)])
def test_a_wrong_profile_window_is_refused(window):
    with pytest.raises(UserError, match=r"logging\.profile_steps=.*must be \(first, last\)"):
        valid(logging__profile_steps=window)


def test_the_cost_of_a_step():
    run = experiment.build(valid(), 10, 1)
    compiled = compile_step(run)
    cost = step_cost(run, compiled)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.abstract_state()))
    batch_bytes = 16 * (8 * 8 + 4 + 3 * 4)  # image, label, window
    assert cost.arguments == state_bytes + batch_bytes
    assert cost.temporary > 0
    assert cost.peak is None
    assert cost.utilisation(100.0) is None
    # XLA counts the rest too (batch norm, ...), and leaves out the products with padding.
    assert cost.flops * cost.images == pytest.approx(compiled.cost_analysis()["flops"], rel=0.25)


def test_utilisation_by_hand():
    cost = StepCost(flops=24 * 10**9, images=256, devices=8, peak=989e12, arguments=2**30, temporary=2**32, memory=2**37)
    assert cost.utilisation(8 * 5000.0) == pytest.approx(5000 * 24e9 / 989e12)
    assert str(cost) == (
        "a step: 6,144.0 GFLOP (24 per image); at best 329,667 images/s; 5.00 GiB of 128.00 GiB on each device: "
        "state and data 1.00 GiB, temporary 4.00 GiB"
    )


def test_peaks_depend_on_the_precision():
    assert peaks.peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peaks.peak_flops("NVIDIA H200", "float32") == 494e12
    assert peaks.peak_flops("NVIDIA H200", "float32", "highest") == 67e12
    assert peaks.peak_flops("NVIDIA H200", "float32", "high") is None
    assert peaks.peak_flops("TPU v5 lite", "float32") == 197e12
    assert peaks.peak_flops("a new one", "bfloat16") is None


def test_the_progress_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with Logger(Workdir(tmp_path, tmp_path), helpers.digits_config(steps=10), 0) as log:
        log.step_done(1, 2.5, 0.25, 0.1)
        row = {"loss": 2.0, "top1": 0.5, "learning_rate": 0.1, "images_per_second": 160.0, "data_wait": 0.07}
        log.write(4, "train", row)
        log.step_done(5, 1.25, 0.625, 0.05)
        log._bar.refresh()
    shown = screen.getvalue().split("\r")[-2]
    assert "5/10" in shown
    assert "<" in shown  # elapsed<remaining
    for part in ("images/s", "loss 1.250", "top-1 62 %", "lr 0.05", "7 % waiting for data"):
        assert part in shown


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_dry_run_prints_and_writes_nothing(tmp_path, capsys, placement):
    workdir = tmp_path / "run"
    with flagsaver.flagsaver((train_program.WORKDIR, str(workdir)), (train_program.DRY_RUN, True)):
        train_program.main(valid(data__placement=placement, steps_per_dispatch=1))
    out = capsys.readouterr().out
    assert "cifar_resnet8, shortcut A" in out
    assert "GFLOP" in out
    assert "MiB on each device" in out
    assert "nothing was trained or written" in out
    assert list(tmp_path.iterdir()) == []
