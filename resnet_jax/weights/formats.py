"""Published weights in, ours out."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.errors import UserError
from resnet_jax.weights.caffe import read_caffemodel
from resnet_jax.weights.presets import FORMATS, parse
from resnet_jax.weights.pth import read_pth
from resnet_jax.weights.torchvision import from_torch_layout, to_torch_layout, torch_name


def _read(kind: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"init: no file {path}")
    if kind == "caffe":
        return read_caffemodel(path)
    if path.suffix != ".safetensors":
        return read_pth(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def _canonical(tensors: Mapping[str, np.ndarray], head: str) -> dict[str, np.ndarray]:
    """torchvision's names; a bias of a convolution moves into the mean of the batch norm behind it."""
    named = {}
    for name, value in tensors.items():
        name = name.removeprefix("module.")
        if name.startswith(f"{head}."):
            name = "fc." + name.removeprefix(f"{head}.")
        if not name.endswith("num_batches_tracked"):
            named[name] = value
    for name in [name for name in named if name.endswith(".bias")]:
        layer = name.removesuffix(".bias")
        norm = layer[:-1] + "1" if layer.endswith("downsample.0") else layer.replace("conv", "bn")
        kernel, mean = named.get(f"{layer}.weight"), named.get(f"{norm}.running_mean")
        # Without such a batch norm it is of another network, which `load` will say.
        if kernel is not None and kernel.ndim == 4 and mean is not None and mean.shape == named[name].shape:
            named[f"{norm}.running_mean"] = mean - named.pop(name)
    return named


def load(spec: str, shapes: Any, with_head: bool = True) -> Any:
    """Variables from published weights.

    Args:
      spec: 'FORMAT:PATH', see `FORMATS`.
      shapes: {'params': ..., 'batch_stats': ...} of the network to fill (`resnet.variable_shapes`).
      with_head: whether to take the last layer; False leaves it out of the result's params.

    Returns:
      float32 NumPy arrays in the structure of `shapes`.

    Raises:
      UserError: no such file or format, or weights of another network, with the first tensors that differ.
    """
    kind, path = parse(spec)
    tensors = _canonical(_read(kind, path), FORMATS[kind].head)
    if not with_head:
        shapes = {**shapes, "params": {name: tree for name, tree in shapes["params"].items() if name != "head"}}
        tensors = {name: value for name, value in tensors.items() if not name.startswith("fc.")}

    def fill(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = torch_name([key.key for key in keys[1:]])
        if name not in tensors:
            raise UserError(f"{path}: has no {name}, so it is of another network than this one; set model.name to its own")
        value = from_torch_layout(tensors.pop(name)).astype(np.float32)
        if value.shape != leaf.shape:
            hint = "; for another number of classes add --config.init_head=False" if name.startswith("fc.") else ""
            raise UserError(f"{path}: {name} is {list(value.shape)}, this network has {list(leaf.shape)}{hint}")
        return np.ascontiguousarray(value)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    if tensors:
        raise UserError(f"{path}: has {len(tensors)} tensors more than this network, first {min(tensors)}; set model.name")
    return variables


def export(variables: Any, path: pathlib.Path) -> None:
    """Writes variables as .safetensors in torchvision's names and layouts, float32; timm and torchvision load it.

    Args:
      variables: {'params': ..., 'batch_stats': ...}.
      path: of the file.
    """
    tensors = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = torch_name([key.key for key in keys[1:]])
        tensors[name] = np.ascontiguousarray(to_torch_layout(np.asarray(leaf)))
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
