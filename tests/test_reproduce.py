"""The paper's experiments by name: what is run, how it goes on when stopped, and what is written down."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax.data import sources
from resnet_jax.errors import Stopped, UserError
from resnet_jax.evaluation import run as runs
from resnet_jax.reproduce import __main__ as command
from resnet_jax.reproduce import experiments, measure, report, runner
from resnet_jax.reproduce.experiments import Network, Recipe
from resnet_jax.reproduce.results import COLUMNS, Results
from resnet_jax.training.loop import train
from resnet_jax.training.workdir import own
from tests import helpers


class TestExperiments:
    def test_targets(self):
        assert experiments.TARGETS["table6"] == tuple(f"resnet{d}" for d in (20, 32, 44, 56, 110, 1202))
        assert {"plain20", "plain56", "resnet110"} < set(experiments.TARGETS["figure6"])
        for names in experiments.TARGETS.values():
            assert all(Network(name).config_file.is_file() for name in names)
        assert [Network(n).shortcut for n in ("resnet20", "resnet32-C", "plain56")] == ["A", "C", "none"]
        assert Network("resnet1202").depth == 1202

    def test_the_papers_schedule(self):
        recipe, network = Recipe(), Network("resnet110")
        fields = recipe.flags(network)
        assert (fields["steps"], fields["schedule.boundaries"]) == ("64000", "(32000,48000)")
        assert "schedule.warmup_error_window" not in fields
        assert (recipe.text(network), recipe.folder(network)) == ("paper", "64000_steps")

    def test_a_divided_schedule(self):
        recipe = Recipe(64)
        fields = recipe.flags(Network("resnet20-B"))
        assert (fields["steps"], fields["schedule.boundaries"], fields["model.shortcut"]) == ("1000", "(500,750)", "B")
        assert "schedule.warmup_error_window" not in fields
        assert "model.shortcut" not in recipe.flags(Network("resnet20"))
        assert recipe.text(Network("plain20")) == "paper, durations / 64 (drops at 500 and 750)"
        assert recipe.text(Network("resnet110")) == "paper, durations / 64 (drops at 500 and 750; warm-up by the error of 1)"
        assert recipe.folder(Network("plain20")) == "1000_steps"

    def test_overrides_are_named_where_they_change_numbers(self):
        recipe = Recipe(1, (("batch_norm.group_size", "64"), ("logging.every", "7")))
        assert recipe.flags(Network("resnet20"))["logging.every"] == "7"
        assert recipe.text(Network("resnet20")) == "paper, batch_norm.group_size=64"
        assert recipe.folder(Network("resnet20")) == "64000_steps+batch_norm.group_size=64"
        with pytest.raises(UserError, match=r"--config\.steps: set by this command"):
            Recipe(1, (("steps", "7"),))

    def test_order_and_flags_of_the_runs(self, tmp_path):
        flags = ["table6", "--workdir", str(tmp_path), "--data=x", "--seeds=1,0", "--networks=resnet1202,resnet56,resnet20"]
        planned = command.plan(*command.parse_args([*flags, "--config.batch_size=64"]))
        names = [f"{run.network.name} {run.seed}" for run in planned]
        assert names == ["resnet20 0", "resnet56 0", "resnet20 1", "resnet56 1", "resnet1202 0", "resnet1202 1"]
        assert planned[0].workdir == tmp_path / "64000_steps+batch_size=64" / "resnet20_seed0"
        assert {"--config.seed=0", "--config.batch_size=64", "--responses"} <= set(planned[0].command())
        for wrong, message in (
            (["--seeds=a"], "expected whole numbers"),
            (["--networks=resnet21"], "'resnet21' is not in table6, which has: resnet20"),
            (["--divide=0"], "--divide=0: must be from 1 to"),
            (["--jobs=0"], "--jobs=0: must be from 1 to"),
        ):
            with pytest.raises(UserError, match=message):
                command.plan(*command.parse_args([*[f for f in flags if f.split("=")[0] != wrong[0].split("=")[0]], *wrong]))
        with pytest.raises(UserError, match="needs --workdir=FOLDER"):
            command.plan(*command.parse_args(["table6"]))


SCRIPT = """
import json, pathlib, signal, sys, time
workdir, name = pathlib.Path(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGTERM, lambda *_: ((workdir / "told").touch(), sys.exit(75)))
(workdir / "began").write_text(str(time.monotonic()))
if name.startswith("plain44"):
    sys.exit(3)
time.sleep(30 if (workdir / "slow").exists() else 0.3)
(workdir / "ended").write_text(str(time.monotonic()))
(workdir / "result.json").write_text(json.dumps({"name": name}))
"""


class Fake(runner.Run):
    def command(self):
        return [sys.executable, "-c", SCRIPT, str(self.workdir), self.network.name]


def fakes(folder, *names):
    return [Fake(Network(name), Recipe(), 0, folder / name, "x") for name in names]


class TestRunner:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_all_are_run_and_failures_are_named(self, tmp_path, jobs):
        said, done = [], []
        planned = fakes(tmp_path, "plain20", "plain44", "plain32", "plain56")
        failed = runner.run_all(planned, jobs, lambda run, result: done.append((str(run), result)) or "fine", said.append)
        assert sorted(done) == [(f"{name}, seed 0", {"name": name}) for name in ("plain20", "plain32", "plain56")]
        assert len(failed) == 1
        assert failed[0].startswith("plain44, seed 0: ended with exit code 3")
        assert f"[1/4] plain20, seed 0: starts in {tmp_path / 'plain20'}" in said
        assert "[4/4] plain56, seed 0: fine" in said
        times = [[float((run.workdir / name).read_text()) for name in ("began", "ended")] for run in planned[::2]]
        assert (times[1][0] < times[0][1]) == (jobs == 2), "the third starts when the second has failed, or after the first"
        assert (tmp_path / "plain20" / "log.txt").exists() == (jobs > 1)

    def test_several_share_a_gpu(self, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(runner.subprocess, "Popen", lambda *_, env, **__: seen.append(env))
        monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
        (run,) = fakes(tmp_path, "plain20")
        for jobs in (1, 2):
            runner._start(1, run, jobs)
        assert [env.get("XLA_PYTHON_CLIENT_PREALLOCATE") for env in seen] == [None, "false"]
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
        runner._start(1, run, 2)
        assert seen[-1]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"

    def test_a_signal_reaches_the_runs_and_starts_no_more(self, tmp_path):
        planned = fakes(tmp_path, "plain20", "plain32", "plain56")
        for run in planned:
            run.workdir.mkdir()
            (run.workdir / "slow").touch()

        def interrupt():
            while not all((run.workdir / "began").exists() for run in planned[:2]):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=interrupt).start()
        said = []
        with pytest.raises(Stopped, match="stopped by SIGTERM; run the same command again"):
            runner.run_all(planned, 2, lambda *_: "", said.append)
        assert [(run.workdir / "told").exists() for run in planned] == [True, True, False]
        assert "[2/3] plain32, seed 0: stopped; it goes on from its last checkpoint" in said
        assert not (planned[2].workdir / "began").exists()


def test_a_run_waits_for_the_end_of_the_one_before(tmp_path):
    began, held = time.monotonic(), threading.Event()

    def hold():
        with own(tmp_path):
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(UserError, match="another run is using it"):
        runner.wait_for_workdir(tmp_path, patience=0)
    runner.wait_for_workdir(tmp_path)
    assert time.monotonic() - began >= 0.5
    thread.join()
    with own(tmp_path):
        pass


RESULT = {
    "test_error": 8.754,
    "test_error_precise": None,
    "train_error": 0.1234,
    "train_error_running": 0.5,
    "train_loss": 0.01,
    "seconds": 12.3,
    **{name: "1" for name in ("device", "jax", "flax", "resnet_jax", "commit", "date")},
}


def filled(folder):
    """Results of three runs: ResNet-20 with two seeds, plain-20 with responses."""
    results = Results(folder / "results" / "cifar10.csv")
    for network, seed, error in (("resnet20", 0, 8.7), ("resnet20", 1, 9.0), ("plain20", 0, 9.5)):
        workdir = folder / f"{network}_seed{seed}"
        workdir.mkdir(exist_ok=True)
        log = [
            {"step": s, "split": split, "top1": 0.5 + s / 100, "loss": 1.5} for s in (1, 2) for split in ("train", "test")
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        key = {"network": network, "shortcut": Network(network).shortcut, "seed": seed, "recipe": "paper"}
        extra = {"responses": {"stem/bn": 1.5, "stage1/block1/bn1": 0.5}} if network == "plain20" else {}
        results.add(key, 2, RESULT | {"test_error": error} | extra, workdir, "2_steps")
    return results


class TestResults:
    def test_a_row_is_written_once(self, tmp_path):
        results = filled(tmp_path)
        before = results.path.read_bytes()
        again = {"network": "plain20", "shortcut": "none", "seed": 0, "recipe": "paper"}
        row = results.add(again, 2, RESULT | {"test_error": 1.0}, tmp_path / "plain20_seed0", "2_steps")
        assert row["test_error"] == "9.50"
        assert results.path.read_bytes() == before
        rows = list(csv.DictReader(results.path.open(newline="")))
        assert tuple(rows[0]) == COLUMNS
        assert len(rows) == 3
        assert (rows[0]["test_error"], rows[0]["test_error_precise"], rows[0]["train_error"]) == ("8.70", "", "0.123")
        assert results.find(again | {"recipe": "other"}) is None
        assert results.curve(row)[-1] == {"step": 2, "split": "test", "error": 48.0, "loss": 1.5}
        assert results.responses(row) == [1.5, 0.5]
        assert results.responses(rows[0]) == []

    def test_another_file_is_refused(self, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match=r"x\.csv: not a table of results"):
            Results(path).rows()
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"--results=.*: cannot write there"):
            Results(tmp_path / "file" / "x.csv").add(
                {name: "" for name in ("network", "shortcut", "seed", "recipe")}, 1, {}, tmp_path, "f"
            )


class TestReport:
    def test_tables_and_pictures(self, tmp_path):
        results, docs = filled(tmp_path), tmp_path / "page.md"
        docs.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        for _ in range(2):
            report.renew(results, docs)
        text = docs.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n\nErrors in percent")
        assert text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text
        spread = statistics.stdev([8.7, 9.0])
        assert f"| 20 | 0.27 M | 8.75 | 8.27 | 8.85 ± {spread:.2f} | - | 0.12 ± 0.00 | 0, 1 |" in text
        assert "| 32 | 0.46 M | 7.51 | 7.37 | not run yet | not run yet | not run yet | - |" in text
        assert "| plain20 | 0.12 | 0.50 | 0.01 | 9.50 | 0 |" in text
        assert "| plain20 | 2 | 1.000 | 1.000 |" in text
        shortened = results.path.with_suffix(".md").read_text()
        assert ": 2 steps\n" in shortened
        assert "Shortcuts" not in shortened
        assert "| 32 |" not in shortened
        assert "(results/cifar10_2_steps_figure6.png)" in text
        assert "(cifar10_2_steps_figure6.png)" in results.path.with_suffix(".md").read_text()
        for name in ("figure6", "figure7"):
            assert Image.open(tmp_path / "results" / f"cifar10_2_steps_{name}.png").size[0] > 500
        docs.write_text("nothing")
        with pytest.raises(UserError, match="are missing"):
            report.renew(results, docs)
        assert docs.read_text() == "nothing"

    def test_nothing_yet(self, tmp_path):
        docs = tmp_path / "page.md"
        docs.write_text(f"{report.BEGIN}{report.END}")
        assert report.renew(Results(tmp_path / "x.csv"), docs).endswith("no rows yet")
        assert not (tmp_path / "x.md").exists()
        assert "### paper: 64000 steps" in docs.read_text()
        assert (
            "| 110 | 1.7 M | 6.43 (best of five; mean 6.61 ± 0.16) | 6.32 | not run yet | not run yet |" in docs.read_text()
        )

    def test_thinned_curves_keep_the_mean(self):
        points = [(step, float(step % 7)) for step in range(1, 1001)]
        thin = report.thinned(points)
        assert len(thin) == 100
        assert thin[-1][0] == 1000
        assert statistics.mean(v for _, v in thin) == pytest.approx(statistics.mean(v for _, v in points))


def test_what_is_finished_and_what_it_is_worth(tmp_path):
    config = helpers.validated(helpers.digits_config())
    scores = train(config, tmp_path)
    assert measure.is_finished(config, tmp_path)
    assert not measure.is_finished(helpers.validated(helpers.digits_config(optimizer__learning_rate=0.2)), tmp_path)
    assert not measure.is_finished(helpers.validated(helpers.digits_config(steps=5)), tmp_path)
    got = measure.measure(config, tmp_path, 32, with_responses=True)
    assert got["test_error"] == pytest.approx(100 * (1 - scores["top1"]))
    source = sources.digits("train")
    _, run, state = runs.restore_checkpoint(config_lib.resolved(config, 10), tmp_path)
    images = source.images - np.asarray(state.pixels["mean"])
    logits = run.model.apply({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    assert got["train_error"] == pytest.approx(100 * np.mean(np.asarray(logits).argmax(1) != source.labels), abs=0.08)
    assert len(got["responses"]) == 7
    assert 0 <= got["test_error_precise"] <= 100
    log = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join(log[:-1]) + "\n")  # stopped before the last evaluation
    assert not measure.is_finished(config, tmp_path)


def write_cifar(folder, each=64):
    """CIFAR-10's binary files with noise that is tinted by class."""
    rng = np.random.RandomState(0)
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = rng.randint(0, 10, each).astype(np.uint8)
        pixels = rng.randint(0, 100, (each, 3072)).astype(np.uint8) + 15 * labels[:, None]
        np.concatenate([labels[:, None], pixels], 1).astype(np.uint8).tofile(folder / f"{name}.bin")
    return folder


def test_killed_and_started_again(tmp_path):
    """kill -9 of the command, in the middle of a run: the run saves and ends; the same command goes on, and adds one row."""
    data, workdir, results = write_cifar(tmp_path / "data"), tmp_path / "runs", tmp_path / "results" / "cifar10.csv"
    flags = ["figure6", "--networks=plain20", "--divide=2000", f"--data={data}", f"--workdir={workdir}"]
    flags += [f"--results={results}", "--precise-images=32", "--config.batch_size=16", "--config.checkpoint.every=0"]
    flags += ["--config.logging.every=1"]
    options = {"cwd": helpers.ROOT, "env": os.environ | {"XLA_FLAGS": ""}, "stdout": subprocess.PIPE, "text": True}
    options["stderr"] = subprocess.STDOUT
    start = [sys.executable, "-m", "resnet_jax.reproduce", *flags]
    folder = workdir / "32_steps+batch_size=16" / "plain20_seed0"

    def rows():
        path = folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    process = subprocess.Popen(start, **options)
    deadline = time.monotonic() + 200
    while len(rows()) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(rows()) < 32, "the run must not be over for this test to say anything"
    assert children
    assert not results.exists()

    done = subprocess.run(start, timeout=250, check=False, **options)  # at once: it waits for the first one's end
    assert done.returncode == 0, done.stdout
    assert not any(child.is_running() for child in children)
    assert "[1/1] plain20, seed 0: goes on in" in done.stdout
    assert "resumed from step" in done.stdout
    assert [row["step"] for row in rows() if row["split"] == "train"] == list(range(1, 33))
    (row,) = Results(results).rows()
    assert row["recipe"] == "paper, durations / 2000 (drops at 16 and 24), batch_size=16"
    assert float(row["test_error"]) == pytest.approx(100 * (1 - rows()[-1]["top1"]), abs=0.01)
    assert row["test_error_precise"]
    assert "| plain20 | " in results.with_suffix(".md").read_text()

    log, kept = (folder / "metrics.jsonl").stat().st_mtime_ns, results.read_bytes()
    args = command.parse_args(flags)
    assert command.reproduce(*args) == []  # nothing left to do
    results.unlink()
    assert command.reproduce(*args) == []  # the row again, from what was measured
    assert results.read_bytes() == kept
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == log
