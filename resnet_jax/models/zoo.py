"""The paper's architectures, as data: Table 1 (ImageNet) and section 4.2 (CIFAR). Imports no JAX."""

import dataclasses
import difflib

from resnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What makes one network different from another.

    Attributes:
      stem: 'imagenet' (7x7/2 convolution, 3x3/2 max pooling) or 'cifar' (one 3x3 convolution).
      block: 'basic' (two 3x3 convolutions) or 'bottleneck' (1x1, 3x3, 1x1 with four times the width).
      stage_sizes: blocks in each stage. The first stage keeps the resolution, every other one halves it.
      stage_widths: filters of the 3x3 convolutions in each stage.
      shortcut: 'A', 'B', 'C' or None (plain): what the network uses unless told otherwise.
    """

    stem: str
    block: str
    stage_sizes: tuple[int, ...]
    stage_widths: tuple[int, ...]
    shortcut: str | None


# Table 1: blocks in conv2_x, conv3_x, conv4_x, conv5_x.
TABLE_1 = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

# Section 4.2: 6n+2 layers with n = 3, 5, 7, 9, 18, 200.
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)


def _imagenet(depth: int, shortcut: str | None) -> Architecture:
    block, sizes = TABLE_1[depth]
    return Architecture("imagenet", block, sizes, (64, 128, 256, 512), shortcut)


def _cifar(depth: int, shortcut: str | None) -> Architecture:
    return Architecture("cifar", "basic", ((depth - 2) // 6,) * 3, (16, 32, 64), shortcut)


def names() -> list[str]:
    """All names that the paper's networks have here."""
    return (
        [f"resnet{depth}" for depth in TABLE_1]
        + ["plain18", "plain34"]
        + [f"cifar_{kind}{depth}" for kind in ("resnet", "plain") for depth in CIFAR_DEPTHS]
    )


def architecture(name: str) -> Architecture:
    """The architecture called `name`: one of `names()`, or `cifar_resnetD` / `cifar_plainD` for any D = 6n+2 from
    8 to 1202.

    Raises:
      UserError: no such network.
    """
    for prefix, build, shortcut in (
        ("resnet", _imagenet, "B"),
        ("plain", _imagenet, None),
        ("cifar_resnet", _cifar, "A"),
        ("cifar_plain", _cifar, None),
    ):
        depth = name.removeprefix(prefix)
        if name.startswith(prefix) and depth.isdecimal():
            known = name in names() or (build is _cifar and 8 <= int(depth) <= 1202 and int(depth) % 6 == 2)
            if known:
                return build(int(depth), shortcut)
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names())}"
    raise UserError(f"model.name={name!r} is not known; {hint}")
