"""The residual blocks of section 3: basic and bottleneck, shortcuts A, B, C, and plain ones without a shortcut."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.formulation import relu

Array = jax.Array
EXPANSION = 4  # a bottleneck's last 1x1 convolution has four times the width


class Shortcut(nn.Module):
    """The shortcut of equation (1) or (2).

    Attributes:
      option: 'A' (identity; zero channels appended where the width grows), 'B' (projection where the dimensions
        change, identity elsewhere) or 'C' (always a projection).
      features: output channels.
      stride: of the block.
      zero_channels: where A's zeros go, 'end' or 'both'.
      conv, norm: the block's layer constructors.
    """

    option: str
    features: int
    stride: int
    zero_channels: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        same = self.stride == 1 and x.shape[-1] == self.features
        if self.option == "C" or (self.option == "B" and not same):
            x = self.conv(self.features, 1, self.stride, name="conv")(x)
            return self.norm(name="bn")(x, train=train)
        if same:
            return x
        x = x[:, :: self.stride, :: self.stride]
        zeros = self.features - x.shape[-1]
        before = zeros // 2 if self.zero_channels == "both" else 0
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, zeros - before)))


class Block(nn.Module):
    """One building block: convolutions with batch norm, the shortcut added before the last ReLU (Figs. 2 and 5).

    Attributes:
      kind: 'basic' (3x3, 3x3) or 'bottleneck' (1x1, 3x3, 1x1).
      width: filters of the 3x3 convolutions.
      stride: 2 in the first block of a stage that halves the resolution.
      shortcut: 'A', 'B', 'C', or None for a plain network.
      zero_channels: where shortcut A's zeros go.
      stride_placement: the bottleneck convolution that has the stride, '1x1' or '3x3'.
      zero_init_last: start the last batch-norm scale at zero.
      conv, norm: constructors, with everything but their place in the network filled in.
    """

    kind: str
    width: int
    stride: int
    shortcut: str | None
    zero_channels: str
    stride_placement: str
    zero_init_last: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[batch, h, w, in]` to `[batch, ceil(h / stride), ceil(w / stride), width or 4 * width]`."""
        if self.kind == "basic":
            layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        else:
            first, second = (self.stride, 1) if self.stride_placement == "1x1" else (1, self.stride)
            layers = [(self.width, 1, first), (self.width, 3, second), (EXPANSION * self.width, 1, 1)]
        y = x
        for index, (features, size, stride) in enumerate(layers, 1):
            last = index == len(layers)
            y = self.conv(features, size, stride, name=f"conv{index}")(y)
            y = self.norm(zero_scale=last and self.zero_init_last, name=f"bn{index}")(y, train=train)
            if not last:
                y = relu(y)
        if self.shortcut is not None:
            shortcut = functools.partial(Shortcut, conv=self.conv, norm=self.norm, name="shortcut")
            y = y + shortcut(self.shortcut, layers[-1][0], self.stride, self.zero_channels)(x, train=train)
        return relu(y)


class Stage(nn.Module):
    """Blocks with one resolution and width; the first may halve the resolution.

    Attributes:
      size: number of blocks, named block1, block2, ...
      stride: of the first block.
      block: the `Block` constructor, with everything but the stride filled in.
    """

    size: int
    stride: int
    block: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for index in range(1, self.size + 1):
            x = self.block(stride=self.stride if index == 1 else 1, name=f"block{index}")(x, train=train)
        return x
