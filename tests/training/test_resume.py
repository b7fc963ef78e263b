"""A run that was killed or stopped anywhere and started again is, bit for bit, the run that was never stopped."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from resnet_jax import config as config_lib
from resnet_jax import validation
from resnet_jax.errors import EXIT_STOPPED
from resnet_jax.training import experiment
from resnet_jax.training.checkpoints import Checkpoints
from tests import helpers

STEPS = 60
FLAGS = [
    "--config.model.name=cifar_resnet8",
    f"--config.steps={STEPS}",
    "--config.batch_size=16",
    "--config.schedule.boundaries=(20,45)",
    "--config.evaluation.every=25",
    "--config.checkpoint.every=5",
    "--config.logging.every=4",
    "--config.logging.tensorboard=False",
    "--config.logging.curves=False",
    "--config.data.workers=2",
]


def start(workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}", *FLAGS]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A process group of its own, as a shell gives it.
    return subprocess.Popen(command, cwd=helpers.ROOT, env=env, start_new_session=True, **pipes)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "Warning" not in output
    return output


def last_logged(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max([json.loads(line)["step"] for line in lines if line.endswith("}")], default=0)


def wait_until_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while last_logged(workdir) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def end_state(workdir: pathlib.Path, step: int = STEPS):
    config = validation.validate(config_lib.load(workdir / "config.json"))
    run = experiment.build(config, 10, 1)
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoints.restore(step, run.abstract_state())[0]


def rows(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in helpers.TIMES} for row in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(start(workdir))
    return workdir


# What SIGTERM does is in test_loop too.
@pytest.mark.parametrize(
    "kind", [signal.SIGKILL, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGINT))]
)
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, kind):
    moment = random.SystemRandom().randint(6, STEPS - 12)
    print(f"{kind.name} after step {moment}")  # shown if the test fails
    process = start(tmp_path)
    wait_until_step(process, tmp_path, moment)
    while not any(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir()):  # without one it begins anew
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)  # Ctrl-C reaches the data workers too
    else:
        process.send_signal(kind)
    output, _ = process.communicate(timeout=100)
    if kind == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == EXIT_STOPPED, output
        assert f"stopped by {kind.name} at step" in output
        assert "Traceback" not in output
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "data workers outlived the run"

    output = finish(start(tmp_path))
    assert "resumed from step" in output
    helpers.assert_same_bits(end_state(tmp_path), end_state(undisturbed))
    assert rows(tmp_path) == rows(undisturbed)


def test_the_comparison_can_fail(undisturbed):
    state = end_state(undisturbed)
    other = state.replace(batch_stats={name: value for name, value in state.batch_stats.items()})
    kernel = state.params["head"]["dense"]["kernel"]
    other.params["head"]["dense"]["kernel"] = kernel.at[0, 0].add(1e-7 + abs(float(kernel[0, 0])) * 1e-6)
    with pytest.raises(AssertionError, match=r"1 of \d+ arrays differ"):
        helpers.assert_same_bits(other, end_state(undisturbed))
