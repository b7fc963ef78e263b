"""Runs, one after another or several at once, each a process (`child`); stopped or killed, they go on the next time."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from resnet_jax.errors import Stopped, UserError
from resnet_jax.reproduce.experiments import FIGURE7, Network, Recipe
from resnet_jax.reproduce.measure import RESULT
from resnet_jax.training.logging import read_rows
from resnet_jax.training.signals import StopSignal
from resnet_jax.training.workdir import own

ROOT = pathlib.Path(__file__).parent.parent.parent
PATIENCE = 120  # seconds: a run whose starter was killed saves before it ends
STATUS_EVERY = 60.0  # seconds between lines on what is running, where several are


@dataclasses.dataclass(frozen=True)
class Run:
    """One network with one seed.

    Attributes:
      network, recipe, seed: which.
      workdir: of this run.
      data: CIFAR-10's folder.
      extra: more flags for this machine, such as --config.model.scan_blocks=True.
    """

    network: Network
    recipe: Recipe
    seed: int
    workdir: pathlib.Path
    data: str
    extra: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.network.name}, seed {self.seed}"

    def key(self) -> dict[str, Any]:
        """Its row's `results.KEY`."""
        network = self.network
        recipe = self.recipe.text(network)
        return {"network": network.stem, "shortcut": network.shortcut, "seed": self.seed, "recipe": recipe}

    def command(self) -> list[str]:
        """What trains and measures it."""
        fields = self.recipe.flags(self.network) | {"seed": str(self.seed), "data.root": self.data}
        return [
            *(sys.executable, "-m", "resnet_jax.reproduce.child"),
            *(f"--config={self.network.config_file}", f"--workdir={self.workdir}"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *(["--responses"] if self.network.name in FIGURE7 else []),
            *self.extra,
        ]

    def result(self) -> dict[str, Any] | None:
        """What was measured; None before that."""
        path = self.workdir / RESULT
        return json.loads(path.read_text()) if path.exists() else None

    def step(self) -> int:
        """The last step in its log."""
        return max((row["step"] for row in read_rows(self.workdir / "metrics.jsonl")), default=0)


@dataclasses.dataclass
class _Active:
    number: int
    run: Run
    process: subprocess.Popen
    log: TextIO | None


def run_all(
    runs: Sequence[Run], jobs: int, on_result: Callable[[Run, dict[str, Any]], str], say: Callable[[str], None] = print
) -> list[str]:
    """Runs all of them, `jobs` at a time.

    Args:
      runs: in the order in which they start.
      jobs: processes at a time. One shows its own progress; several write to log.txt in their workdirs.
      on_result: is told of each that has been measured; returns a few words on it.
      say: shows a line.

    Returns:
      What failed, a line each.

    Raises:
      Stopped: SIGTERM or Ctrl-C; the runs under way have saved.
    """
    waiting, active, failed = list(enumerate(runs, 1)), [], []
    told, status_due = False, time.monotonic() + STATUS_EVERY
    with StopSignal() as stop:
        while active or (waiting and not stop.requested()):
            while waiting and len(active) < jobs and not stop.requested():
                number, run = waiting.pop(0)
                active.append(_start(number, run, jobs))
                say(f"[{number}/{len(runs)}] {run}: {'goes on' if run.step() else 'starts'} in {run.workdir}")
            if stop.requested() and not told:
                told = True
                for one in active:
                    one.process.send_signal(signal.SIGTERM)
            for one in [one for one in active if one.process.poll() is not None]:
                active.remove(one)
                words = _end(one, told, on_result, failed)
                say(f"[{one.number}/{len(runs)}] {one.run}: {words}")
            if jobs > 1 and active and time.monotonic() > status_due:
                status_due = time.monotonic() + STATUS_EVERY
                steps = (f"{one.run} at step {one.run.step()}/{one.run.recipe.steps(one.run.network)}" for one in active)
                say("running: " + "; ".join(steps))
            time.sleep(0.1)
    if stop.requested():
        raise Stopped(f"stopped by {stop.name}; run the same command again to go on")
    return failed


def _start(number: int, run: Run, jobs: int) -> _Active:
    run.workdir.mkdir(parents=True, exist_ok=True)
    # Several processes cannot each reserve most of a GPU's memory, as JAX does by default.
    env = ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if jobs > 1 else {}) | os.environ
    log = (run.workdir / "log.txt").open("a") if jobs > 1 else None
    # A session of its own: Ctrl-C reaches this process alone, which tells the others.
    pipes = {"stdout": log, "stderr": subprocess.STDOUT if log else None, "start_new_session": True}
    return _Active(number, run, subprocess.Popen(run.command(), cwd=ROOT, env=env, **pipes), log)


def _end(one: _Active, told: bool, on_result: Callable[[Run, dict[str, Any]], str], failed: list[str]) -> str:
    if one.log:
        one.log.close()
    code, result = one.process.returncode, one.run.result()
    if code == 0 and result is not None:
        return on_result(one.run, result)
    if told:
        return "stopped; it goes on from its last checkpoint"
    where = f"; see {one.log.name}" if one.log else ""
    failed.append(f"{one.run}: ended with exit code {code}{where}")
    return f"FAILED with exit code {code}{where}"


def stop_with_parent() -> None:
    """Has this process stopped as by SIGTERM, which saves, when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def wait_for_workdir(workdir: pathlib.Path, patience: int = PATIENCE) -> None:
    """Returns when no other run holds the folder.

    Raises:
      UserError: it is still held after `patience` seconds, or cannot be written.
    """
    for left in range(patience, -1, -1):
        try:
            with own(workdir):
                return
        except UserError as error:
            if not left or "another run" not in str(error):
                raise
            time.sleep(1)
