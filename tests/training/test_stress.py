"""A run killed twenty times, at random and on purpose inside saves and evaluations, ends as the run that was never stopped.

make test-stress; it takes some minutes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from resnet_jax.errors import EXIT_STOPPED
from tests import helpers
from tests.training.test_resume import end_state, rows

KILLS = {"save": 6, "evaluation": 5, "random": 9}
EVERY = {"checkpoint": 20, "evaluation": 60}
COMMAND = [
    sys.executable, "train.py", "--config=configs/digits.py", "--config.model.name=cifar_resnet8", "--config.batch_size=16",
    "--config.steps=1500", "--config.schedule.boundaries=(700,1100)", f"--config.evaluation.every={EVERY['evaluation']}",
    "--config.evaluation.batch_size=8", f"--config.checkpoint.every={EVERY['checkpoint']}", "--config.logging.every=20",
    "--config.logging.tensorboard=False", "--config.logging.curves=False", "--config.data.workers=2",
]  # fmt: skip


def start(workdir):
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # every start compiles anew, as users' do
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": helpers.ROOT, "env": env}
    return subprocess.Popen([*COMMAND, f"--workdir={workdir}"], **pipes)


def half_written(workdir):
    """Folders of checkpoints that are being written, or were when the run was killed."""
    return set((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def evaluating(workdir):
    """Whether an evaluation has begun and not ended: its training row is there, its own is not."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, ValueError):
        return False
    return last["split"] == "train" and last["step"] % EVERY["evaluation"] == 0


def step_of(workdir):
    try:
        return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def wait_for(process, condition, seconds=120, pause=0.001):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it never came"
        time.sleep(pause)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_twenty_times(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    plan = [kind for kind, count in KILLS.items() for _ in range(count)]
    draw.shuffle(plan)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = start(whole)
    assert done.wait(timeout=900) == 0
    inside = dict.fromkeys(("save", "evaluation"), 0)
    for number, kind in enumerate(plan):
        before, old = step_of(killed), half_written(killed)
        process, conditions = (
            start(killed),
            {
                "save": lambda old=old: bool(half_written(killed) - old),
                "evaluation": lambda: evaluating(killed),
            },
        )
        wait_for(process, lambda before=before: step_of(killed) > before)
        if kind == "random":
            time.sleep(draw.uniform(0, 2))
        else:
            wait_for(process, conditions[kind])
        number_of_signal = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        found = {name: condition() for name, condition in conditions.items()}
        process.send_signal(number_of_signal)
        process.communicate(timeout=120)
        if number_of_signal == signal.SIGKILL:  # what it left tells where it was
            found = {name: condition() for name, condition in conditions.items()}
        assert process.returncode in (-signal.SIGKILL, EXIT_STOPPED)
        for name in inside:
            inside[name] += found[name]
        where = "".join(f", in {name}" for name in found if found[name])
        print(f"{number + 1}/{len(plan)}: {number_of_signal.name} near step {step_of(killed)}{where}", flush=True)
    process = start(killed)
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    print(f"seed {seed}: {len(plan)} kills, {inside['save']} inside a save, {inside['evaluation']} inside an evaluation")
    assert inside["save"] >= 3
    assert inside["evaluation"] >= 2
    helpers.assert_same_bits(end_state(killed, 1500), end_state(whole, 1500))
    assert rows(killed) == rows(whole)
