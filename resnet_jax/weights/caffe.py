"""The authors' own models (github.com/KaimingHe/deep-residual-networks): .caffemodel and the mean image .binaryproto.

They take BGR pixels in [0, 255] minus a mean image, have the stride in the first 1x1 convolution and round up in pooling
(`presets.FORMATS` asks for these settings). The channels of conv1 and of the mean are turned to RGB here.
"""

import functools
import pathlib
import re
from typing import Any

import numpy as np

from resnet_jax.errors import UserError

_BATCH_NORM = ("running_mean", "running_var", "scale_factor")
# Of caffe.proto (github.com/BVLC/caffe), what weights need: message -> (field, number, type, label).
_MESSAGES = {
    "BlobShape": [("dim", 1, "INT64", "packed")],
    "BlobProto": [
        *((name, number, "INT32", "optional") for number, name in enumerate(("num", "channels", "height", "width"), 1)),
        ("data", 5, "FLOAT", "packed"),
        ("shape", 7, "BlobShape", "optional"),
        ("double_data", 8, "DOUBLE", "packed"),
    ],
    "Layer": [("name", 1, "STRING", "optional"), ("blobs", 7, "BlobProto", "repeated")],
    "V1Layer": [("name", 4, "STRING", "optional"), ("blobs", 6, "BlobProto", "repeated")],
    "Net": [("layers", 2, "V1Layer", "repeated"), ("layer", 100, "Layer", "repeated")],
}


@functools.cache
def _messages() -> dict[str, Any]:
    """The message classes of `_MESSAGES`; fields that are not listed there are skipped when a file is read."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="resnet_jax/caffe.proto", package="resnet_jax.caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        added = file.message_type.add(name=message)
        for name, number, kind, label in fields:
            field = added.field.add(name=name, number=number, label=1 if label == "optional" else 3)
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".resnet_jax.caffe.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind}")
            if label == "packed":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"resnet_jax.caffe.{name}")) for name in _MESSAGES
    }


def _parse(path: pathlib.Path, message: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return _messages()[message].FromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise UserError(f"{path}: not a Caffe file, or a truncated one ({error}); download it again") from error


def _array(path: pathlib.Path, name: str, blob: Any) -> np.ndarray:
    values = np.array(blob.data if len(blob.data) else blob.double_data)
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else legacy
    if min(shape, default=1) < 0 or values.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path}: {name} holds {values.size} values for the shape {list(shape)}; download the file again")
    return values.reshape(shape)


def torch_layer(name: str) -> tuple[str, str] | None:
    """torchvision's name of a Caffe layer and its kind: 'conv', 'bn', 'scale' or 'fc'; None if it is no ResNet's.

    >>> torch_layer("res2a_branch2b")
    ('layer1.0.conv2', 'conv')
    >>> torch_layer("scale4b22_branch1")
    ('layer3.22.downsample.1', 'scale')
    """
    if name == "fc1000":
        return "fc", "fc"
    if name in ("conv1", "bn_conv1", "scale_conv1"):
        kind = name.split("_")[0].replace("conv1", "conv")
        return ("conv1" if kind == "conv" else "bn1"), kind
    match = re.fullmatch(r"(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])", name)
    if not match:
        return None
    kind, stage, letter, number, branch = match.groups()
    # Blocks are a, b, c, ... in the 50-layer network, and a, b1, b2, ... in the deeper ones.
    block = int(number) if number else ord(letter) - ord("a")
    kind = "conv" if kind == "res" else kind
    if branch == "1":
        layer = "downsample.0" if kind == "conv" else "downsample.1"
    else:
        layer = ("conv" if kind == "conv" else "bn") + str("abc".index(branch[1]) + 1)
    return f"layer{int(stage) - 1}.{block}.{layer}", kind


def read_caffemodel(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a .caffemodel of the authors' networks.

    Returns:
      Tensors in torchvision's names and layouts, for RGB input; conv1 has a bias in the 50-layer network.

    Raises:
      UserError: not a Caffe model, or one with layers that these networks do not have.
    """
    net, tensors = _parse(path, "Net"), {}
    for layer in (*net.layers, *net.layer):
        if not layer.blobs:
            continue
        found = torch_layer(layer.name)
        blobs = [_array(path, layer.name, blob) for blob in layer.blobs]
        names = {"conv": ("weight", "bias"), "fc": ("weight", "bias"), "scale": ("weight", "bias"), "bn": _BATCH_NORM}
        if found is None or len(blobs) > len(names[found[1]]):
            raise UserError(f"{path}: layer {layer.name!r} with {len(blobs)} arrays is none of the authors' ResNets'")
        target, kind = found
        for leaf, value in zip(names[kind], blobs, strict=False):
            if kind == "fc" and leaf == "weight":
                value = value.reshape(value.shape[-2:])  # [1, 1, out, in] in old files
            tensors[f"{target}.{leaf}"] = value if value.ndim > 1 and leaf == "weight" and kind != "scale" else value.ravel()
        if kind == "bn":
            total = float(tensors.pop(f"{target}.scale_factor", np.ones(1))[0])  # Caffe keeps a sum and its weight
            for leaf in _BATCH_NORM[:2]:
                tensors[f"{target}.{leaf}"] = (
                    tensors[f"{target}.{leaf}"] / total if total else tensors[f"{target}.{leaf}"] * 0
                )
    if not tensors:
        raise UserError(f"{path}: holds no weights; a .caffemodel is wanted")
    if "conv1.weight" in tensors:
        tensors["conv1.weight"] = tensors["conv1.weight"][:, ::-1]
    return tensors


def read_mean(path: pathlib.Path) -> np.ndarray:
    """Reads a mean image: .binaryproto (Caffe, BGR) or .npy (RGB).

    Returns:
      float64 `[height, width, 3]`, RGB, in [0, 255].

    Raises:
      UserError: no such file, or not a mean image.
    """
    if path.suffix == ".npy":
        try:
            mean = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as .npy ({error})") from error
    else:
        planes = _array(path, "the mean", _parse(path, "BlobProto"))
        mean = planes.reshape(planes.shape[-3:]).transpose(1, 2, 0)[..., ::-1] if planes.ndim >= 3 else planes
    if mean.ndim != 3 or mean.shape[-1] != 3 or not mean.size or not np.issubdtype(mean.dtype, np.floating):
        raise UserError(
            f"{path}: expected a floating-point mean image [height, width, 3], found {mean.dtype} {list(mean.shape)}"
        )
    return mean.astype(np.float64)
