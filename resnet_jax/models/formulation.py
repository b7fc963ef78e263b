"""How a convolution is handed to XLA. One place decides, per backend; every formulation is the same sum.

Measured on two AMD EPYC cores (jax 0.10.2, float32; benchmarks in results/README.md): XLA's CPU backend computes the
kernel gradient of a 1x1 convolution several times slower than the same matrix product, and a 3x3 convolution whose
output is 2x2 up to a hundred times slower than the product of its patches with the kernel.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
SMALL = 9  # output pixels up to which patches win on CPU; at 4x4 they lose


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """A convolution with size // 2 zeros of padding on every side, without bias.

    Args:
      x: `[batch, height, width, in]`.
      kernel: `[size, size, in, out]`, size odd, of the same dtype.
      stride: in both directions.

    Returns:
      `[batch, ceil(height / stride), ceil(width / stride), out]`.
    """
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    if jax.default_backend() == "cpu":
        if size == 1:
            return _product(x[:, ::stride, ::stride], kernel[0, 0])
        if height * width <= SMALL:
            return _product(_patches(x, size, stride), kernel.reshape(-1, kernel.shape[-1]))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=numbers)


def describe() -> str:
    """The choice made for this machine, for the log."""
    if jax.default_backend() == "cpu":
        return "1x1 convolutions, and those with at most 3x3 output pixels, as matrix products"
    return "all convolutions by XLA's own"


def _product(x: Array, matrix: Array) -> Array:
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _patches(x: Array, size: int, stride: int) -> Array:
    """`[batch, height, width, size * size * in]`: what each output pixel sees, in the kernel's order."""
    pad = size // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    parts = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, -1)
