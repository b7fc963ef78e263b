"""What the compiled step exchanges: exactly this, so that a change which makes XLA gather the batch is noticed."""

import functools
import subprocess
import sys

import jax
import pytest

from resnet_jax.analysis import communication
from resnet_jax.analysis.communication import LINKS, Collective, Link, Tensor, collectives
from resnet_jax.models import resnet
from resnet_jax.training import experiment
from resnet_jax.training.compiled import compile_step
from tests import helpers

DEVICES, BATCH = 8, 8 * communication.IMAGES


def config(group):
    fields = {"batch_norm__group_size": group, "model__shortcut": "B", "model__num_classes": 10}
    return helpers.validated(helpers.digits_config(devices=DEVICES, batch_size=BATCH, **fields))


@functools.cache
def exchanged(group):
    if group in (None, BATCH // DEVICES):
        return collectives(communication.compiled_text(config(None), DEVICES, grouped=group is not None))
    return collectives(compile_step(experiment.build(config(group), 10, 3)).as_text())


def sizes():
    """(bytes of the kernels and the head, number of batch norms, bytes of one value per channel for all of them)"""
    model = resnet.build(config(None).model, config(None).batch_norm, 10)
    leaves = jax.tree_util.tree_leaves_with_path(resnet.variable_shapes(model, (8, 8, 3))["params"])
    scales = [4 * leaf.size for path, leaf in leaves if path[-1].key == "scale"]
    return sum(4 * leaf.size for _, leaf in leaves) - 2 * sum(scales), len(scales), sum(scales)


def test_batch_norm_over_all_images_exchanges_its_statistics_and_the_gradients():
    kernels, layers, channels = sizes()
    found = exchanged(None)
    assert {operation.kind for operation in found} == {"all-reduce"}
    assert communication.total_bytes(found) == {
        "gradients": kernels,
        "batch norm forward": 2 * channels,
        "batch norm backward": 4 * channels,
        "metrics": 8,
    }
    # Forward two a layer that wait for each other, the mean and then the squared deviations; backward some can join.
    assert 2 * layers < len(found) <= 4 * layers


def test_groups_within_a_device_wait_for_nobody():
    kernels, layers, channels = sizes()
    found = exchanged(BATCH // DEVICES)
    assert {operation.kind for operation in found} == {"all-reduce"}
    sums = communication.total_bytes(found)
    assert sums["gradients"] == kernels
    assert sums["batch norm backward"] == 2 * channels  # the gradients of scales and biases
    assert sums["batch norm forward"] == 3 * channels  # for the running statistics
    assert len(found) <= layers + 3


def test_a_group_over_two_devices_gathers_nothing():
    found = exchanged(2 * BATCH // DEVICES)
    assert {operation.kind for operation in found} == {"all-reduce"}
    assert communication.total_bytes(found)["gradients"] == sizes()[0]
    assert sum(operation.bytes for operation in found) < 1.5 * sum(operation.bytes for operation in exchanged(None))


HLO = """
  %a = f32[3,3,16,32]{3,2,1,0} convolution(%p, %q), metadata={op_name="jit(run)/transpose(jvp(ResNet))/stage1/conv1/conv"}
  %b = bf16[1,32]{1,0} reduce(%p), metadata={op_name="jit(run)/transpose(jvp(ResNet))/stage1/block1/bn2/bn2._x/reduce_sum"}
  ROOT %c.1 = f64[32]{0} reduce(%p), metadata={op_name="jit(run)/jvp(ResNet)/stem/bn/bn._x/reduce_sum"}
  %d = s32[] convert(%p), metadata={op_name="jit(run)/reduce_sum"}
  %all-reduce.7 = (f32[3,3,16,32]{3,2,1,0}, /*index=1*/bf16[1,32]{1,0}) all-reduce(%a, /*index=1*/%b), to_apply=%sum
  %g = (f64[32]{0}, f64[256]{0}) all-gather-start(%c.1), channel_id=2, dimensions={0}
  %h = f64[256]{0} all-gather-done(%g)
  ROOT %all-reduce = s32[] all-reduce(%d), channel_id=3, to_apply=%sum
"""


def test_reads_operations_and_what_they_carry():
    assert collectives(HLO) == [
        Collective("all-reduce", (Tensor("gradients", 4 * 9 * 16 * 32), Tensor("batch norm backward", 64))),
        Collective("all-gather", (Tensor("batch norm forward", 256),)),
        Collective("all-reduce", (Tensor("metrics", 4),)),
    ]


def test_times_by_hand():
    link = Link("a link", bandwidth=1e9, base=1e-5, hop=1e-6)
    # 8 devices: 2 * 7/8 of 100 MB at 1 GB/s is 175 ms; latency 10 us + 6 * 1 us, three times.
    assert communication.seconds(1e8, 3, link, 8) == pytest.approx(0.175 + 3 * 16e-6)
    found = [
        Collective("all-reduce", (Tensor("gradients", 10**8), Tensor("batch norm backward", 10**6))),
        Collective("all-reduce", (Tensor("batch norm forward", 10**6),)),
    ]
    hidden, waited = communication.step_seconds(found, link, 8, grouped=False)
    assert (hidden, waited) == pytest.approx((1.75 * 0.101 + 16e-6, 1.75 * 0.001 + 16e-6))
    assert communication.step_seconds(found, link, 8, grouped=True) == (pytest.approx(hidden + waited), 0)
    table = communication.times_table("net", {(8, False): found, (8, True): found, (512, False): found, (512, True): found})
    assert "| NVLink 4 | 8 |" in table
    assert "| NVLink 4 | 512 |" not in table  # more than it connects
    assert "| TPU v5p ICI | 512 |" in table


def test_more_devices_never_take_less():
    for link in LINKS:
        times = [communication.seconds(1e8, 10, link, n) for n in (2, 8, 64, 512)]
        assert times == sorted(times)
        assert times[-1] < 2 * 1e8 / link.bandwidth + 10 * (link.base + 18 * link.hop) + 1e-12


@pytest.mark.slow
def test_command():
    command = [sys.executable, "-m", "resnet_jax.analysis.communication", "--config=configs/digits.py", "--devices=2"]
    done = subprocess.run(
        [*command, "--config.model.name=cifar_resnet8"], capture_output=True, text=True, timeout=250, cwd=helpers.ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "| 2 | all images |" in done.stdout
    assert "| 2 | groups within a device |" in done.stdout
    assert "| 100 Gb/s Ethernet | 2 |" in done.stdout
