"""Size and cost of a network, stage by stage, computed from the built module (Table 1's FLOPs row).

python -m resnet_jax.analysis.summary --config=configs/resnet50.py [--config.data.image_size=320] [--channels=4]
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.config import TrainConfig
from resnet_jax.models import resnet
from resnet_jax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a network, for one image.

    Attributes:
      name: of the part ('stem', 'stage1', ..., 'head').
      output: shape without the batch.
      parameters: trainable values.
      multiply_adds: of convolutions and matrix products, padding counted as in Table 1.
      activations: output values of convolutions and matrix products.
      bytes: what these take in the network's dtype.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int
    bytes: int


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from _equations(inner.jaxpr)


def count_products(function: Callable[..., Any], *args: Any) -> tuple[int, int]:
    """Multiply-adds, and output values, of all convolutions and matrix products that `function(*args)` would compute.

    Nothing is computed: arguments may be `jax.ShapeDtypeStruct`.
    """
    multiply_adds = activations = 0
    for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr):
        out, operand = equation.outvars[0].aval, equation.invars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            each = math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        elif equation.primitive.name == "dot_general":
            each = math.prod(operand.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
        else:
            continue
        multiply_adds += each * out.size
        activations += out.size
    return multiply_adds, activations


def summarize(model: ResNet, image_shape: tuple[int, int, int]) -> list[Row]:
    """The rows of a network for inputs of `image_shape` (height, width, channels)."""
    variables = resnet.variable_shapes(model, image_shape)
    x = jax.ShapeDtypeStruct((1, *image_shape), model.dtype)
    rows = []
    for name in ("stem", *(f"stage{i + 1}" for i in range(len(model.architecture.stage_sizes))), "head"):

        def part(variables: Any, x: jax.Array, name: str = name) -> jax.Array:
            settings = {} if name == "head" else {"train": False}
            return model.apply(variables, x, method=lambda net, x: getattr(net, name)(x, **settings))

        multiply_adds, activations = count_products(part, variables, x)
        x = jax.eval_shape(part, variables, x)
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"][name]))
        size = activations * jnp.dtype(x.dtype).itemsize
        rows.append(Row(name, x.shape[1:], parameters, multiply_adds, activations, size))
    return rows


def total(rows: list[Row]) -> Row:
    """The sum of all rows."""
    sums = {name: sum(getattr(row, name) for row in rows) for name in Row.__annotations__ if name not in ("name", "output")}
    return Row("total", rows[-1].output, **sums)


def table(rows: list[Row]) -> str:
    """The rows and their sum as text."""
    lines = [f"{'':8}{'output':>16}{'parameters':>14}{'multiply-adds':>18}{'activations':>14}{'MiB/image':>11}"]
    for row in [*rows, total(rows)]:
        output = " x ".join(map(str, row.output))
        lines.append(
            f"{row.name:8}{output:>16}{row.parameters:>14,}{row.multiply_adds:>18,}{row.activations:>14,}"
            f"{row.bytes / 2**20:>11.2f}"
        )
    return "\n".join(lines)


CHANNELS = flags.DEFINE_integer("channels", None, "Of the images; default: 1 for digits, else 3.", lower_bound=1)


def main(config: TrainConfig) -> None:
    """Prints the table of a config's network; the number of classes is the data's unless set."""
    classes = {"digits": 10, "cifar10": 10, "synthetic": config.data.synthetic_classes}
    num_classes = config.model.num_classes or classes.get(config.data.source, 1000)
    channels = CHANNELS.value or (1 if config.data.source == "digits" else 3)
    model = resnet.build(config.model, config.batch_norm, num_classes).clone(scan_blocks=False)
    size = config.data.image_size
    print(
        f"{config.model.name}, shortcut {model.shortcut or 'none'}, stride in the {model.stride_placement}, "
        f"{size} x {size} x {channels} to {num_classes} classes, {config.model.dtype}"
    )
    print(table(summarize(model, (size, size, channels))))


if __name__ == "__main__":
    command_line.run(main, command_line.config_from_file, needs_data=False)
