"""Two real processes, four CPU devices each: the run that one process with eight devices makes."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from resnet_jax.errors import EXIT_PEER_LOST, EXIT_STOPPED, EXIT_USER_ERROR
from tests import helpers
from tests.training import process


def start_all(*arguments, **flags):
    """Two processes of a command line; {port} and {id} in it are filled in."""
    port, env = helpers.free_port(), {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | flags
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen([sys.executable, *(a.format(port=port, id=number) for a in arguments)], env=env, **pipes)
        for number in range(2)
    ]


def outputs(processes, timeout=300):
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with jax.enable_x64(True):
        process.run("groups", folder / "alone")
    run_both(folder, "global,groups")
    return folder


@pytest.fixture(scope="module")
def device_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    run_both(folder, "device")
    return folder


def run_both(folder, variants):
    processes = start_all("-m", "tests.training.process", str(folder), "{port}", "{id}", variants)
    texts = outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], texts


def assert_close(got, file):
    with np.load(file) as want:
        assert set(got) == set(want)
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    ("variant", "place"),
    [("global", "folder"), ("groups", "folder"), pytest.param("device", "device_folder", marks=pytest.mark.slow)],
)
def test_two_processes_are_one(request, tmp_path, variant, place):
    folder = request.getfixturevalue(place)
    with jax.enable_x64(True):
        want, scores = process.run(variant, tmp_path)
    for number in range(2):
        with np.load(folder / f"{variant}_{number}.npz") as got:
            assert set(got) == set(want)
            for name in want:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-11, err_msg=name)
        found = json.loads((folder / f"{variant}_{number}.json").read_text())
        assert found["images"] == 360
        assert found == pytest.approx(scores, rel=1e-9)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_their_checkpoint_continues_on_any_number_of_devices(folder, devices):
    with jax.enable_x64(True):
        got = process.go_on(folder, devices=devices)
    assert_close(got, folder / "groups_0.npz")


def test_a_checkpoint_of_eight_devices_continues_in_two_processes(folder):
    for number in range(2):
        with np.load(folder / f"alone_{number}.npz") as got:
            assert_close(got, folder / "groups_0.npz")


FLAGS = [
    "train.py", "--config=configs/digits.py", "--config.model.name=cifar_resnet8", "--config.batch_size=16",
    "--config.schedule.boundaries=()", "--config.evaluation.every=0", "--config.checkpoint.every=0",
    "--config.logging.every=4", "--config.logging.tensorboard=False", "--config.logging.curves=False",
    "--coordinator=localhost:{port}", "--num_processes=2", "--process_id={id}",
]  # fmt: skip
FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def wait_for_step(workdir, step, processes):
    rows, end = workdir / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < end:
        if rows.exists() and any(json.loads(line)["step"] >= step for line in rows.read_text().splitlines()):
            return
        assert all(process.poll() is None for process in processes), outputs(processes)
        time.sleep(0.2)
    raise AssertionError(outputs(processes))


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_that_is_left_alone_says_so(tmp_path, number):
    arguments = [a.format(port=helpers.free_port(), id=number) for a in FLAGS]
    command = [sys.executable, *arguments, f"--workdir={tmp_path}", "--peer_timeout=10"]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == EXIT_PEER_LOST
    assert done.stderr.startswith("error: the processes did not meet within 10 s at localhost:")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=nonsense", "--num_processes=2", "--process_id=1"], "--coordinator=nonsense: must be HOST:PORT"),
        (["--coordinator=localhost:1"], "--coordinator, --num_processes and --process_id go together"),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2: with --num_processes=2 the last",
        ),
        (["--distributed"], "--distributed: coordinator_address should be defined. Found neither"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, flags, message):
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(command, cwd=helpers.ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_a_lost_one_ends_all_and_they_go_on(tmp_path):
    command = [*FLAGS, f"--workdir={tmp_path}", "--config.steps=100000", "--peer_timeout=10"]
    processes = start_all(*command, **FOUR)
    wait_for_step(tmp_path, 8, processes)
    processes[1].send_signal(signal.SIGTERM)
    first, second = outputs(processes)
    assert [process.returncode for process in processes] == [EXIT_STOPPED, EXIT_STOPPED], (first, second)
    assert "8 x cpu (cpu) in 2 processes" in first
    assert "stopped by a signal to another process at step " in first
    assert "stopped by SIGTERM at step " in second
    assert "training" not in second  # one log
    (step,) = {text.split(" at step ")[1].split(",")[0] for text in (first, second)}
    assert (tmp_path / "checkpoints" / step).is_dir()

    processes = start_all(*command, **FOUR)
    wait_for_step(tmp_path, int(step) + 8, processes)
    processes[1].send_signal(signal.SIGSTOP)  # it hangs
    began = time.monotonic()
    first = processes[0].communicate(timeout=100)[0]
    assert time.monotonic() - began < 40
    processes[1].kill()
    outputs(processes[1:])
    assert processes[0].returncode == EXIT_PEER_LOST, first
    assert f"resumed from step {step} of" in first
    assert "error: no progress for 10 s: another process is gone or hangs" in first
    assert "Traceback" not in first
    assert "Thread 0x" not in first
