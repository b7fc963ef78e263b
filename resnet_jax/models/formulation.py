"""How a layer is handed to XLA. One place decides, per backend; every formulation is the same function.

On the CPU backend (measured on two AMD EPYC cores, jax 0.10.2, float32; results/README.md has the figures):
- A 1x1 convolution is a matrix product: XLA computes its kernel gradient several times faster so.
- A 3x3 convolution whose output is 2x2 takes up to a hundred times longer than the product of its patches with the kernel.
- XLA fuses a chain of cheap one-operand operations into every consumer, again and again. A kernel gradient reads the
  activations in another order, and recomputing batch norm and ReLU of several blocks in that order cost a fifth of a
  step. It never repeats an operation with two large operands; so ReLU is written as a selection.
- The gradient of nine shifted slices is three times faster than that of `reduce_window`.

When XLA must be deterministic on a GPU, it refuses the gradient of `reduce_window` ("select-and-scatter ... does not have a
deterministic implementation", https://github.com/google/flax/issues/4233), and slices are used there too.
"""

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
SMALL = 9  # output pixels up to which patches win on CPU; at 4x4 they lose


_elsewhere: str | None = None


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, what is traced is for another platform ('tpu', 'gpu') than the one that JAX runs on."""
    global _elsewhere
    _elsewhere, before = platform, _elsewhere
    try:
        yield
    finally:
        _elsewhere = before


def _platform() -> str:
    return _elsewhere or jax.default_backend()


def on_cpu() -> bool:
    """Whether the CPU formulations are chosen."""
    return _platform() == "cpu"


def pools_by_slices() -> bool:
    """Whether a maximum over windows is one over shifted slices; otherwise it is `reduce_window`."""
    deterministic = re.search(
        r"--xla_gpu_(deterministic|exclude_nondeterministic)_ops(=true|=1|\s|$)", os.environ.get("XLA_FLAGS", "")
    )
    return on_cpu() or (_platform() == "gpu" and deterministic is not None)


def describe() -> str:
    """The choice made for this machine, for the log."""
    if on_cpu():
        return "1x1 convolutions, and those with at most 3x3 output pixels, as matrix products; ReLU as a selection"
    return "all convolutions by XLA's own" + ("; max pooling by slices, to be deterministic" if pools_by_slices() else "")


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
    if on_cpu():
        if size == 1:
            return _product(x[:, ::stride, ::stride], kernel[0, 0])
        if height * width <= SMALL:
            return _product(_patches(x, size, stride), kernel.reshape(-1, kernel.shape[-1]))
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=numbers)


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN, the derivative at 0 is 0."""
    return _selecting_relu(x) if on_cpu() else jax.nn.relu(x)


@jax.custom_jvp
def _selecting_relu(x: Array) -> Array:
    return jnp.where(x <= 0, 0, x)


@_selecting_relu.defjvp
def _selecting_relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = _selecting_relu(*primals)
    return y, jnp.where(y <= 0, 0, tangents[0])


@jax.custom_vjp
def _product(x: Array, matrix: Array) -> Array:
    """`[batch, height, width, in]` times `[in, out]`."""
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _product_forward(x: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, matrix), (x, matrix)


def _product_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, matrix = saved
    dx = lax.dot_general(dy, matrix, (((3,), (1,)), ((), ())))
    # XLA transposes the first operand of the kernel gradient in memory: let that be the one with fewer channels.
    over = (((0, 1, 2), (0, 1, 2)), ((), ()))
    narrowing = x.shape[-1] > dy.shape[-1]
    return dx, lax.dot_general(dy, x, over).T if narrowing else lax.dot_general(x, dy, over)


_product.defvjp(_product_forward, _product_backward)


def _patches(x: Array, size: int, stride: int) -> Array:
    """`[batch, height, width, size * size * in]`: what each output pixel sees, in the kernel's order."""
    pad = size // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    parts = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, -1)
