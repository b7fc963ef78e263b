"""The residual blocks of section 3: basic and bottleneck, shortcuts A, B, C, and plain ones without a shortcut."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
    def __call__(self, x: Array, *, train: bool, branch_scale: Array | None = None) -> Array:
        """`[batch, h, w, in]` to `[batch, ceil(h / stride), ceil(w / stride), width or 4 * width]`.

        `branch_scale`, `[batch]`, multiplies what is added to the shortcut (`models.stochastic_depth`).
        """
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
        if branch_scale is not None:
            y = y * branch_scale.astype(y.dtype)[:, None, None, None]
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
      scan: compile the blocks after the first, which are equal, once, as a loop. Their variables are then stacked on a
        first axis, under the name `blocks` (`stack_blocks`).
      remat: keep only the blocks' inputs and compute the rest again in the backward pass.
    """

    size: int
    stride: int
    block: Any
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool, branch_scale: Array | None = None) -> Array:
        """`[batch, h, w, in]` through all blocks; `branch_scale` is `[batch, size]` or None."""

        def run(block: Block, x: Array, scale: Array | None) -> Array:
            return block(x, train=train, branch_scale=scale)

        if self.remat:
            run = nn.remat(run, prevent_cse=not self.scan)
        scales = [None] * self.size if branch_scale is None else branch_scale.T
        x = run(self.block(stride=self.stride, name="block1"), x, scales[0])
        if self.scan and self.size > 1:
            axes = {"params": 0, "batch_stats": 0}
            loop = nn.scan(
                lambda block, x, scale: (run(block, x, scale), None),
                axes,
                split_rngs={"params": True},
                length=self.size - 1,
            )
            return loop(self.block(stride=1, name="blocks"), x, None if branch_scale is None else scales[1:])[0]
        for index in range(2, self.size + 1):
            x = run(self.block(stride=1, name=f"block{index}"), x, scales[index - 1])
        return x


def stack_blocks(tree: Any) -> Any:
    """Variables of an unrolled network, in any tree (a training state, say), as `Stage.scan` wants them.

    In every stage `block2`, `block3`, ... become one `blocks`, whose arrays have them on a new first axis.
    """

    def fold(node: Any) -> Any:
        rest = [node[f"block{index}"] for index in range(2, len(node) + 1)] if _is_stage(node) else []
        return {"block1": node["block1"], "blocks": jax.tree.map(_stack, *rest)} if rest else node

    return jax.tree.map(fold, tree, is_leaf=_is_stage)


def unstack_blocks(tree: Any) -> Any:
    """The inverse of `stack_blocks`."""

    def unfold(node: Any) -> Any:
        if not (_is_stage(node) and "blocks" in node):
            return node
        leaves, structure = jax.tree.flatten(node["blocks"])
        each = zip(*(_unstack(leaf) for leaf in leaves), strict=True)
        rest = {f"block{index}": structure.unflatten(part) for index, part in enumerate(each, 2)}
        return {"block1": node["block1"], **rest}

    return jax.tree.map(unfold, tree, is_leaf=_is_stage)


def _is_stage(node: Any) -> bool:
    return isinstance(node, dict) and "block1" in node


def _stack(*arrays: Any) -> Any:
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)


def _unstack(array: Any) -> Any:
    return list(array) if isinstance(array, np.ndarray) else jnp.unstack(array)
