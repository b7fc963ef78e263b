"""Multiply-adds and parameters of every network of the paper, against a count from Table 1 by hand."""

import math

import pytest

from resnet_jax.analysis import summary
from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.models import resnet

# Table 1 and section 4.2 once more, written down independently of the code under test.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# GMACs at 224 with option B: (stride in the 1x1, as the paper's FLOPs row; stride in the 3x3, as torchvision publishes).
PUBLISHED = {18: (1.814, 1.814), 34: (3.664, 3.664), 50: (3.858, 4.089), 101: (7.570, 7.801), 152: (11.282, 11.514)}
CIFAR_MMACS = {20: 40.6, 32: 68.9, 44: 97.2, 56: 125.5, 110: 252.9, 1202: 2829}


def by_hand(depth, shortcut, placement, size, channels, classes):
    """(multiply-adds, parameters) summed over the layers of Table 1 or, for depths without an entry, section 4.2."""
    macs = params = 0

    def conv(side, kernel, cin, cout):
        nonlocal macs, params
        macs += side * side * kernel * kernel * cin * cout
        params += kernel * kernel * cin * cout + 2 * cout  # with the batch norm's scale and bias

    half = lambda side: (side + 1) // 2  # noqa: E731
    if depth in BLOCKS:
        side, cin = half(size), 64
        conv(side, 7, channels, 64)
        side = math.ceil((side - 3) / 2) + 1
        stages, widths = BLOCKS[depth], (64, 128, 256, 512)
    else:
        side, cin = size, 16
        conv(side, 3, channels, 16)
        stages, widths = ((depth - 2) // 6,) * 3, (16, 32, 64)
    bottleneck = depth in BLOCKS and depth >= 50
    for stage, (blocks, width) in enumerate(zip(stages, widths, strict=True)):
        for block in range(blocks):
            before = side
            if stage and not block:
                side = half(side)
            cout = 4 * width if bottleneck else width
            if bottleneck:
                conv(side if placement == "1x1" else before, 1, cin, width)
                conv(side, 3, width, width)
                conv(side, 1, width, cout)
            else:
                conv(side, 3, cin, width)
                conv(side, 3, width, width)
            if shortcut == "C" or (shortcut == "B" and (cin != cout or side != before)):
                conv(side, 1, cin, cout)
            cin = cout
    return macs + cin * classes, params + (cin + 1) * classes


def check(name, depth, shortcut, placement="1x1", size=224, channels=3, classes=1000):
    model = resnet.build(ModelConfig(name=name, shortcut=shortcut, stride_placement=placement), BatchNormConfig(), classes)
    got = summary.total(summary.summarize(model, (size, size, channels)))
    assert (got.multiply_adds, got.parameters) == by_hand(depth, shortcut, placement, size, channels, classes)
    return got


@pytest.mark.parametrize(
    ("depth", "shortcut"),
    [
        pytest.param(depth, shortcut, marks=[pytest.mark.slow] * (depth > 50 and shortcut != "B"))
        for depth in BLOCKS
        for shortcut in "ABC"
    ],
)
def test_imagenet(depth, shortcut):
    for index, placement in enumerate(("1x1", "3x3")):
        got = check(f"resnet{depth}", depth, shortcut, placement)
        if shortcut == "B":
            assert round(got.multiply_adds / 1e9, 3) == PUBLISHED[depth][index]


@pytest.mark.parametrize("depth", [pytest.param(d, marks=[pytest.mark.slow] * (d > 1000)) for d in CIFAR_MMACS])
def test_cifar(depth):
    got = check(f"cifar_resnet{depth}", depth, "A", size=32, classes=10)
    digits = 0 if depth == 1202 else 1
    assert round(got.multiply_adds / 1e6, digits) == CIFAR_MMACS[depth]


@pytest.mark.parametrize(("name", "depth", "size"), [("plain34", 34, 224), ("cifar_plain56", 56, 32)])
def test_plain(name, depth, size):
    check(name, depth, None, size=size)


@pytest.mark.parametrize("size", [33, 97, 225, 320])
@pytest.mark.parametrize("depth", [18, 50])
def test_any_size_channels_and_classes(depth, size):
    check(f"resnet{depth}", depth, "B", size=size, channels=4, classes=7)
    check("cifar_resnet20", 20, "B", size=size, channels=1, classes=3)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_formulation_changes_no_count(monkeypatch, backend):
    monkeypatch.setattr(summary.jax, "default_backend", lambda: backend)
    check("resnet50", 50, "B")


def test_activations_are_those_that_are_published_for_resnet50():
    """timm's results/benchmark tables: 11.1 M activations with the stride in the 3x3 (outputs of the convolutions)."""
    got = check("resnet50", 50, "B", "3x3")
    assert round(got.activations / 1e6, 1) == 11.1
    assert got.bytes == 4 * got.activations


def test_table_adds_up():
    model = resnet.build(ModelConfig(name="resnet18"), BatchNormConfig(), 1000)
    text = summary.table(summary.summarize(model, (224, 224, 3)))
    assert "1,814,073,344" in text.splitlines()[-1]
    assert "11,689,512" in text.splitlines()[-1]
