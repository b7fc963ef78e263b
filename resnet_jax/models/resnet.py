"""The network: stem, stages, head. One module builds all of Table 1 and section 4.2, residual or plain."""

import functools
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.models import zoo
from resnet_jax.models.blocks import Block, Stage
from resnet_jax.models.formulation import relu
from resnet_jax.models.layers import BatchNorm, Conv, at_least_float32, he_normal, max_pool

Array = jax.Array


class Stem(nn.Module):
    """conv1 of Table 1 with its max pooling, or the single 3x3 convolution of section 4.2."""

    kind: str
    width: int
    max_pool: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        size, stride = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = self.conv(self.width, size, stride, name="conv")(x)
        x = relu(self.norm(name="bn")(x, train=train))
        return max_pool(x, self.max_pool) if self.kind == "imagenet" else x


class Head(nn.Module):
    """Global average pooling and a fully connected layer, in at least float32."""

    num_classes: int
    fan: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(at_least_float32(x.dtype)).mean((1, 2))
        return nn.Dense(self.num_classes, dtype=x.dtype, kernel_init=he_normal(self.fan), name="dense")(x)


class ResNet(nn.Module):
    """A residual or plain network.

    The submodules are `stem`, `stage1`, `stage2`, ... (conv2_x is stage1) and `head`; each can be run by itself:

        model.apply(variables, x, train=False, method="features")          # the output of every stage
        model.apply(variables, x, method=lambda net, x: net.stage4(x, train=False))

    Attributes:
      architecture: what to build (`zoo.architecture`).
      num_classes: outputs.
      shortcut, stride_placement, max_pool, zero_channels, init_fan, zero_init_last, dtype: as in `ModelConfig`.
      scan_blocks: wants variables from `blocks.stack_blocks`.
      remat: as in `ModelConfig`.
      bn_group_size, bn_momentum, bn_epsilon, bn_frozen: as in `BatchNormConfig`.
    """

    architecture: zoo.Architecture
    num_classes: int
    shortcut: str | None
    stride_placement: str = "1x1"
    max_pool: str = "caffe"
    zero_channels: str = "end"
    init_fan: str = "fan_in"
    zero_init_last: bool = False
    dtype: Any = jnp.float32
    bn_group_size: int | None = None
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_frozen: bool = False
    scan_blocks: bool = False
    remat: tuple[int, ...] = ()

    def setup(self) -> None:
        arch = self.architecture
        conv = functools.partial(Conv, fan=self.init_fan, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            group_size=self.bn_group_size,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            frozen=self.bn_frozen,
            dtype=self.dtype,
        )
        self.stem = Stem(arch.stem, arch.stage_widths[0], self.max_pool, conv, norm)
        for index, (size, width) in enumerate(zip(arch.stage_sizes, arch.stage_widths, strict=True), 1):
            block = functools.partial(
                Block,
                kind=arch.block,
                width=width,
                shortcut=self.shortcut,
                zero_channels=self.zero_channels,
                stride_placement=self.stride_placement,
                zero_init_last=self.zero_init_last,
                conv=conv,
                norm=norm,
            )
            stage = Stage(size, 1 if index == 1 else 2, block, self.scan_blocks, index in self.remat)
            setattr(self, f"stage{index}", stage)
        self.head = Head(self.num_classes, self.init_fan)

    def features(self, x: Array, *, train: bool, branch_scale: Array | None = None) -> dict[str, Array]:
        """The output of every stage, `{'stage1': [batch, height, width, channels], ...}`."""
        x = self.stem(x.astype(self.dtype), train=train)
        outputs, first = {}, 0
        for index, size in enumerate(self.architecture.stage_sizes, 1):
            scale = None if branch_scale is None else branch_scale[:, first : first + size]
            x, first = getattr(self, f"stage{index}")(x, train=train, branch_scale=scale), first + size
            outputs[f"stage{index}"] = x
        return outputs

    def __call__(self, x: Array, *, train: bool, branch_scale: Array | None = None) -> Array:
        """Logits `[batch, num_classes]`, in at least float32, of images `[batch, height, width, channels]`.

        `branch_scale`, `[batch, blocks]`, multiplies the residual branches (`stochastic_depth`); None is 1 everywhere.
        With `train=True` apply it with `mutable=["batch_stats"]`: the running statistics are updated.
        """
        *_, last = self.features(x, train=train, branch_scale=branch_scale).values()
        return self.head(last)


def build(model: ModelConfig, batch_norm: BatchNormConfig, num_classes: int) -> ResNet:
    """The network that a config asks for, with `num_classes` outputs."""
    arch = zoo.architecture(model.name)
    return ResNet(
        architecture=arch,
        num_classes=num_classes,
        shortcut=arch.shortcut if model.shortcut is None else model.shortcut,
        stride_placement=model.stride_placement,
        max_pool=model.max_pool,
        zero_channels=model.zero_channels,
        init_fan=model.init_fan,
        zero_init_last=model.zero_init_last,
        dtype=jnp.dtype(model.dtype),
        bn_group_size=batch_norm.group_size,
        bn_momentum=batch_norm.momentum,
        bn_epsilon=batch_norm.epsilon,
        bn_frozen=batch_norm.frozen,
        scan_blocks=model.scan_blocks,
        remat=model.remat,
    )


def variable_shapes(model: ResNet, image_shape: tuple[int, int, int]) -> Any:
    """Shapes and dtypes of all variables, {'params': ..., 'batch_stats': ...}, unrolled; nothing is computed."""
    model = model.clone(scan_blocks=False)
    x = jax.ShapeDtypeStruct((model.bn_group_size or 1, *image_shape), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)


def init_variables(model: ResNet, image_shape: tuple[int, int, int], seed: int) -> Any:
    """Draws the initial variables, as `model.init` would, on the host with NumPy.

    Linen's own `init` compiles a random draw per layer (18 s of CPU for ResNet-50); this takes under a second. Each
    tensor has a stream of its own, from the seed and its name, so one layer's weights do not depend on the others.

    Args:
      model: the network.
      image_shape: (height, width, channels) of one input.
      seed: of the run.

    Returns:
      {'params': ..., 'batch_stats': ...} with float32 NumPy arrays, unrolled (`blocks.stack_blocks` for `scan_blocks`).
    """
    last_norm = "bn2" if model.architecture.block == "basic" else "bn3"

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            fan = leaf.shape[-2] if model.init_fan == "fan_in" else leaf.shape[-1]
            std = np.sqrt(2.0 / (fan * np.prod(leaf.shape[:-2])))
            rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32("/".join(names).encode())]))
            return rng.standard_normal(leaf.shape, np.float32) * np.float32(std)
        zero_scale = model.zero_init_last and names[-2] == last_norm
        ones = names[-1] == "var" or (names[-1] == "scale" and not zero_scale)
        return np.full(leaf.shape, float(ones), np.float32)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model, image_shape))


def count_parameters(variables: Any) -> int:
    """Number of trainable values (running statistics are not counted)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
