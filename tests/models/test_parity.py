"""The networks compute what PyTorch's compute: every stage, the loss, all gradients, the statistics.

The golden values are PyTorch's in float64 (tests/golden/make_parity.py), with random scales, biases and statistics:
torchvision's networks for ImageNet, function calls on the published weights' layout for CIFAR.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.models import resnet
from resnet_jax.weights import formats
from resnet_jax.weights.torchvision import from_torch_layout, to_torch_layout, torch_name
from tests import helpers
from tests.golden import inputs

SLOW = [
    *("resnet34_3x3", "resnet101_1x1", "resnet101_3x3", "resnet152_1x1", "resnet152_3x3"),
    *("plain34", "cifar_resnet56_end", "cifar_resnet110_end"),
]
PUBLISHED = helpers.ROOT.parent / "shared/data/cifar_resnet_weights/resnet20-12fca82f.th"


@functools.cache
def golden():
    with np.load(helpers.ROOT / "tests/golden/parity.npz") as file:
        return dict(file)


def network(key, dtype):
    name, fields = ("cifar_resnet20", {"zero_channels": "both"}) if key == "published" else inputs.NETWORKS[key]
    config = ModelConfig(name=name, **{"stride_placement": "3x3", "max_pool": "torch", **fields})
    model = resnet.build(config, BatchNormConfig(), inputs.CLASSES).clone(dtype=dtype)

    def start(path, leaf):
        name = torch_name([entry.key for entry in path[1:]])
        shape = to_torch_layout(np.empty(leaf.shape)).shape
        return from_torch_layout(inputs.tensor(name, shape)).astype(dtype)

    size = inputs.size_of(key)
    shapes = resnet.variable_shapes(model, (size, size, 3))
    if key == "published":
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), formats.load(f"akamaster:{PUBLISHED}", shapes))
    else:
        variables = jax.tree_util.tree_map_with_path(start, shapes)
    images, labels = inputs.batch(0, size)
    return model, variables, ((images - inputs.MEAN) / inputs.STD).astype(dtype), labels


def in_torch(prefix, tree):
    return {f"{prefix}/{torch_name(path.split('/'))}": to_torch_layout(value) for path, value in helpers.flat(tree).items()}


def compute(key, dtype):
    model, variables, images, labels = network(key, dtype)

    @jax.jit
    def run(variables, images):
        def loss_of(params):
            given = {**variables, "params": params}
            stages, _ = model.apply(given, images, train=True, mutable=["batch_stats"], method="features")
            logits, updated = model.apply(given, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (stages, logits, updated)

        (loss, outputs), gradient = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        return loss, outputs, gradient, model.apply(variables, images, train=False)

    loss, (stages, logits, updated), gradient, testing = run(variables, images)
    values = {"eval/logits": testing, "train/logits": logits, "train/loss": loss}
    values |= {f"train/{name}": value for name, value in stages.items()}
    values |= in_torch("gradient", gradient) | in_torch("updated", updated["batch_stats"])
    return {name: np.asarray(value) for name, value in values.items()}


def compare(values, key, tolerance, names=None):
    want = golden()[key]
    assert len(values) == len(want)
    worst = {}
    for name, (projection, norm) in zip(sorted(values), want, strict=True):
        if names is None or name in names:
            got = inputs.projection(name, values[name].astype(np.float64))
            worst[name] = max(abs(got[0] - projection), abs(got[1] - norm)) / norm
    name = max(worst, key=worst.get)
    assert worst[name] < tolerance, (name, worst[name])
    assert len(worst) == len(names or values)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[pytest.mark.slow] * (key in (*SLOW, "resnet50_1x1", "resnet18_A")))
        for key in inputs.NETWORKS
    ],
)
def test_everything_in_float64(x64, key):
    compare(compute(key, np.float64), key, 1e-9)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published weights are not at hand")
def test_published_weights_in_float64(x64):
    compare(compute("published", np.float64), "published", 1e-9)


@pytest.mark.parametrize(
    "key", ["resnet50_1x1", "cifar_resnet20_both"] + [pytest.param(key, marks=pytest.mark.slow) for key in SLOW]
)
def test_logits_in_float32(key):
    values = compute(key, np.float32)
    compare(values, key, 1e-5, ["eval/logits"])
    compare(values, key, 1e-3, ["train/logits"])


def test_the_comparison_can_fail(x64):
    """The other stride placement has the same parameters, and another function."""
    model, variables, images, _ = network("resnet50_1x1", np.float64)
    logits = jax.jit(lambda v, x: model.clone(stride_placement="3x3").apply(v, x, train=False))(variables, images)
    want = golden()["resnet50_1x1"][0]  # 'eval/logits' is the first name
    got = inputs.projection("eval/logits", np.asarray(logits))
    assert abs(got[0] - want[0]) > 0.01 * want[1]
    assert jnp.isfinite(logits).all()
