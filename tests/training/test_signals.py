"""Signals while nothing of Python's runs, and the watch over other processes."""

import signal
import subprocess
import sys
import time

import pytest

from resnet_jax.errors import EXIT_PEER_LOST, EXIT_STOPPED
from resnet_jax.training.watchdog import PATIENCE, Watchdog
from tests import helpers

# A long call in C stands for a compilation: no Python handler runs before it returns.
BUSY = """
import hashlib
from resnet_jax.training.signals import StopSignal
with StopSignal() as stop:
    with stop.at_once("before the first step"):
        pass
    with stop.at_once("before the first step"):
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_compiling_ends_the_program_at_once(kind):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", BUSY], cwd=helpers.ROOT, **pipes)
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(kind)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == EXIT_STOPPED
    assert errors == f"stopped by {kind.name} before the first step; run the same command again to go on\n"


def test_the_watch_ends_what_makes_no_progress():
    ends = []
    with Watchdog(0.4, ends.append) as watch:
        time.sleep(1.0)  # nobody watches before the first beat
        for _ in range(10):
            watch.beat()
            time.sleep(0.1)
        watch.beat(PATIENCE)
        time.sleep(1.0)
        assert not ends
        watch.beat()
        time.sleep(1.0)
    assert [end.split(":")[0] for end in ends] == ["no progress for 0 s"]


def test_it_ends_the_process_with_a_code_of_its_own():
    script = (
        "import time; from resnet_jax.training.watchdog import Watchdog\n"
        "with Watchdog(0.2) as watch:\n    watch.beat(); time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=helpers.ROOT, capture_output=True, text=True, timeout=25)
    assert done.returncode == EXIT_PEER_LOST
    assert done.stderr.startswith("error: no progress for 0 s: another process is gone or hangs")


def test_alone_nobody_watches():
    with Watchdog(None) as watch:
        watch.beat()
