"""Compiling for TPUs that are not here, with their compiler where it is installed."""

import importlib.util
import subprocess
import sys

import pytest

from resnet_jax.analysis import tpu
from resnet_jax.errors import UserError
from resnet_jax.models import formulation
from tests import helpers

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install libtpu")


def run(*arguments):
    command = [sys.executable, "-m", "resnet_jax.analysis.tpu", "--config=configs/digits.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=helpers.ROOT)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        tpu.tpus("v5e:2x2")


def test_inside_the_formulations_are_those_of_the_other_platform():
    with formulation.compiling_for("tpu"):
        assert not formulation.on_cpu()
        assert not formulation.pools_by_slices()
    assert formulation.on_cpu()


def test_the_topology_says_how_many_devices():
    with pytest.raises(UserError, match="devices=4: here --topology says how many"):
        tpu.compile_for(helpers.validated(helpers.digits_config(devices=4)), "v5e:2x2")


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("model", ["cifar_resnet8", "resnet18"])  # with max pooling, which is another operation there
def test_a_step_compiles(model):
    done = run(f"--config.model.name={model}", "--config.model.num_classes=10", "--topology=v5e:2x4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{model}, 64 images on 8 x TPU v5 lite (v5e:2x4), float32"
    assert "GFLOP" in lines[1]
    assert "on each device" in lines[1]
    assert "all-reduce" in lines[2]
    assert "all-gather" not in lines[2]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:9x9"], "--topology=v5e:9x9: INVALID_ARGUMENT: Topology layout"),
        (["--config.batch_size=6"], "batch_size=6 cannot be shared by 4 devices"),
        (
            ["--config.model.name=cifar_resnet8", "--config.batch_size=16000000"],
            "batch_size=16000000 does not fit into v5e:2x2: RESOURCE_EXHAUSTED",
        ),
    ],
)
def test_what_cannot_be_ends_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
