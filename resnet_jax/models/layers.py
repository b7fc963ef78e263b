"""Convolution, batch normalisation and pooling, as the paper defines them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resnet_jax.models.formulation import convolve, pools_by_slices

Array = jax.Array


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which sums over `dtype` values are kept: float32, or float64 for float64."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def he_normal(fan: str = "fan_in") -> Callable[..., Array]:
    """He initialisation (the paper's [13]): normal, not truncated, standard deviation sqrt(2 / fan)."""
    return nn.initializers.variance_scaling(2.0, fan, "normal")


class Conv(nn.Module):
    """A square convolution without bias (section 3.1), padded by size // 2 zeros on every side.

    The padding is explicit: "SAME" at stride 2 would pad (0, 1) where Caffe and PyTorch pad (1, 1).

    Attributes:
      features: output channels.
      size: kernel height and width.
      stride: step in both directions.
      fan: 'fan_in' or 'fan_out', for He initialisation.
      dtype: of the computation; the kernel `[size, size, in, features]` is kept in float32.
    """

    features: int
    size: int
    stride: int = 1
    fan: str = "fan_in"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, in]` to `[batch, ceil(height / stride), ceil(width / stride), features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", he_normal(self.fan), shape, jnp.float32)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def merge_moments(mean: Array, squares: Array, count: int) -> tuple[Array, Array]:
    """Merges the moments of equally large groups (Chan, Golub, LeVeque 1979); variances are never averaged.

    Args:
      mean: `[groups, channels]`, the mean of each group.
      squares: `[groups, channels]`, the sum of squared deviations from that mean.
      count: values in each group.

    Returns:
      The mean and the sum of squared deviations of all values together, each `[channels]`.
    """
    merged = mean.mean(0, keepdims=True)
    return merged[0], squares.sum(0) + count * jnp.square(mean - merged).sum(0)


class BatchNorm(nn.Module):
    """Batch normalisation (the paper's [16]) over groups of consecutive images, statistics in at least float32.

    In training each group of `group_size` images (None: the whole global batch) is normalised by its own mean and
    biased variance. The reductions are over the global batch, so under `jit` with a sharded batch they cross devices
    and the result depends on `group_size` alone, never on the number of devices. The running statistics follow those
    of the whole batch, groups merged, with the unbiased variance of Caffe and PyTorch.

    Attributes:
      group_size: images normalised together; must divide the batch.
      momentum: share of the old running statistics that is kept.
      epsilon: added to the variance.
      frozen: in training too, use the running statistics and hold scale and bias constant (the paper's appendix A).
      zero_scale: start the scale at zero instead of one.
      dtype: of the output.
    """

    group_size: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    frozen: bool = False
    zero_scale: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalises `[batch, height, width, channels]`.

        Raises:
          ValueError: the group size does not divide the batch.
        """
        channels = x.shape[-1:]
        scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param("scale", scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.frozen:
            scale, bias = lax.stop_gradient((scale, bias))
        elif train:
            return self._normalise_by_batch(x, scale, bias, running_mean, running_var)
        mean, var = running_mean.value, running_var.value
        return _normalise(x, mean, scale * lax.rsqrt(var + self.epsilon), bias).astype(self.dtype)

    def _normalise_by_batch(
        self, x: Array, scale: Array, bias: Array, running_mean: nn.Variable, running_var: nn.Variable
    ) -> Array:
        batch, height, width, channels = x.shape
        group = self.group_size or batch
        if batch % group:
            raise ValueError(f"batch-norm groups of {group} do not divide a batch of {batch}")
        count = group * height * width
        values = x.astype(at_least_float32(x.dtype)).reshape(batch // group, group, height, width, channels)
        over = (1, 2, 3)
        # Two passes: the one-pass E[x^2] - E[x]^2 loses all digits where the mean is large against the deviation.
        mean = values.mean(over)
        squares = jnp.square(values - jnp.expand_dims(mean, over)).sum(over)
        if not self.is_initializing():
            merged_mean, merged_squares = merge_moments(mean, squares, count)
            unbiased = merged_squares / max(batch * height * width - 1, 1)
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * lax.stop_gradient(merged_mean)
            running_var.value = keep * running_var.value + (1 - keep) * lax.stop_gradient(unbiased)
        multiplier = jnp.expand_dims(scale, 0) * lax.rsqrt(squares / count + self.epsilon)
        out = _normalise(values, jnp.expand_dims(mean, over), jnp.expand_dims(multiplier, over), bias)
        return out.reshape(x.shape).astype(self.dtype)


def _normalise(x: Array, mean: Array, multiplier: Array, bias: Array) -> Array:
    """(x - mean) * multiplier + bias over the last axis, in the mean's dtype; XLA fuses it into one pass.

    The mean is subtracted first: folded into the bias it would cancel digits where it is large against the deviation.
    """
    mean, multiplier, bias = (jnp.expand_dims(a, tuple(range(x.ndim - a.ndim))) for a in (mean, multiplier, bias))
    return (x.astype(mean.dtype) - mean) * multiplier + bias


def max_pool(x: Array, padding: str) -> Array:
    """The stem's 3x3 max pooling with stride 2 on `[batch, height, width, channels]`.

    Args:
      x: images or activations.
      padding: 'caffe' pads at the end only, as far as the last window reaches (the authors' release: ceil mode, no
        padding), which on even sizes is "SAME"; 'torch' pads one pixel on every side.

    Returns:
      `[batch, out_height, out_width, channels]`; 112 becomes 56 with either padding.
    """
    pads = []
    for size in x.shape[1:3]:
        out = -(-max(size - 3, 0) // 2) + 1
        pads.append((1, 1) if padding == "torch" else (0, (out - 1) * 2 + 3 - size))
    lowest = np.array(-np.inf, x.dtype)  # of jax.numpy, it would be traced, and then XLA's operation has no gradient
    if not pools_by_slices():
        return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), *pads, (0, 0)))
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=lowest)
    height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    best = None
    for i in range(3):
        for j in range(3):
            window = x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
            best = window if best is None else jnp.maximum(best, window)
    return best
