"""Layer responses against NumPy, layer by layer."""

import csv
import dataclasses

import numpy as np
import optax
import pytest
from PIL import Image

from resnet_jax import parallel
from resnet_jax.analysis import responses
from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.data import sources
from resnet_jax.models import resnet
from resnet_jax.training import experiment
from resnet_jax.training.loop import train
from tests import helpers, test_command_line


def convolve(x, kernel, stride):
    """NumPy: a 3x3 convolution with one pixel of zeros around, or a 1x1 one."""
    size = len(kernel)
    x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    out = -(-(x.shape[1] - size + 1) // stride)
    return sum(
        x[:, i : i + stride * out : stride, j : j + stride * out : stride][:, :out, :out] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def by_numpy(variables, images, shortcut):
    """The network's forward pass once more; the standard deviation of what every batch norm of a 3x3 layer puts out."""
    params, stats, found = variables["params"], variables["batch_stats"], []

    def layer(x, conv, bn, stats, stride=1):
        x = convolve(x, conv["kernel"], stride)
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * bn["scale"] + bn["bias"]

    def respond(*args):
        out = layer(*args)
        found.append(out.std())
        return out

    x = np.maximum(respond(images, params["stem"]["conv"], params["stem"]["bn"], stats["stem"]["bn"]), 0)
    for stage in ("stage1", "stage2", "stage3"):
        p, s, stride = params[stage]["block1"], stats[stage]["block1"], 1 if stage == "stage1" else 2
        y = np.maximum(respond(x, p["conv1"], p["bn1"], s["bn1"], stride), 0)
        y = respond(y, p["conv2"], p["bn2"], s["bn2"])
        if "shortcut" in p:
            y = y + layer(x, p["shortcut"]["conv"], p["shortcut"]["bn"], s["shortcut"]["bn"], stride)
        elif shortcut:
            y = y + x
        x = np.maximum(y, 0)
    return found


@pytest.mark.parametrize(("name", "shortcut", "devices", "scan"), [("resnet", "B", 8, True), ("plain", None, 1, False)])
def test_against_numpy(x64, name, shortcut, devices, scan):
    fields = {"model__name": f"cifar_{name}8", "model__shortcut": shortcut, "model__scan_blocks": scan}
    config = helpers.validated(helpers.digits_config(devices=devices, evaluation__batch_size=100, **fields))
    run = experiment.build(config, 10, 1)
    run = dataclasses.replace(run, model=run.model.clone(dtype=np.float64))
    variables = helpers.random_like(resnet.variable_shapes(run.model, (8, 8, 1)))
    state = parallel.put_replicated(helpers.state_of(variables, optax.identity(), [80], [90]), run.mesh)
    source = sources.digits("val")
    got = responses.responses(run, state, source)
    assert list(got) == ["stem/bn", *(f"stage{s}/block1/bn{i}" for s in (1, 2, 3) for i in (1, 2))]
    want = by_numpy(variables, (source.images - 80.0) / 90, shortcut)
    np.testing.assert_allclose(list(got.values()), want, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "count"), [("cifar_plain56", 55), ("cifar_resnet110", 109), ("resnet34", 32), ("resnet50", 16)]
)
def test_which_layers(name, count):
    """6n+1 on CIFAR; on ImageNet all but the 7x7 one and the projections; of a bottleneck the middle one."""
    model = resnet.build(ModelConfig(name=name), BatchNormConfig(), 10)
    shape = (32, 32, 3) if name.startswith("cifar") else (64, 64, 3)
    layers = responses.three_by_three_layers(model, resnet.variable_shapes(model, shape)["params"])
    assert len(layers) == len(set(layers)) == count
    if name == "cifar_resnet110":
        assert [layer[1] for layer in layers if layer[0] == "stage2"] == [f"block{i}" for i in range(1, 19) for _ in (1, 2)]
    if name == "resnet50":
        assert {layer[-1] for layer in layers} == {"bn2"}


def test_the_command(tmp_path):
    train(helpers.validated(helpers.digits_config(steps=1)), tmp_path / "a")
    output = tmp_path / "figure7"
    done = test_command_line.call(
        "-m", "resnet_jax.analysis.responses", f"--workdir={tmp_path / 'a'}", tmp_path / "a", "--images=30",
        f"--output={output}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cifar_resnet8: 7 layers, mean response" in done.stdout
    rows = list(csv.DictReader(output.with_suffix(".csv").open()))
    assert [(row["layer"], row["name"]) for row in rows[:3]] == [
        ("1", "stem/bn"), ("2", "stage1/block1/bn1"), ("3", "stage1/block1/bn2"),
    ]  # fmt: skip
    assert {row["network"] for row in rows} == {"cifar_resnet8", f"cifar_resnet8 ({tmp_path / 'a'})"}
    assert Image.open(output.with_suffix(".png")).size[0] > 500
    missing = test_command_line.call("-m", "resnet_jax.analysis.responses", f"--workdir={tmp_path / 'x'}")
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"error: {tmp_path}/x/config.json: cannot be read")


def test_images_are_spread_over_the_classes():
    source = sources.digits("val")
    spread = responses.Spread(source, 36)
    np.testing.assert_array_equal([spread[i].label for i in range(len(spread))], source.labels[::10])
