"""Where published weights come from, and the settings that they were trained with. Imports no JAX.

--config.init=torchvision:resnet50.pth        torchvision and timm, .pth or .safetensors
--config.init=akamaster:resnet20.th           akamaster/pytorch_resnet_cifar10
--config.init=fb:fbresnet152.pth              facebookarchive/fb.resnet.torch, converted (biases in convolutions)
--config.init=caffe:ResNet-50-model.caffemodel --config.data.mean=ResNet_mean.binaryproto      the authors' own
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError
from resnet_jax.models import zoo
from resnet_jax.section import flatten


@dataclasses.dataclass(frozen=True)
class Format:
    """Where weights come from.

    Attributes:
      head: the name of the last layer there.
      needs: settings that these networks were trained with, by the name of the config's field.
      mean_file: whether the mean they were trained with is a file of its own.
    """

    head: str
    needs: Mapping[str, Any]
    mean_file: bool = False


MEAN_FILES = (".binaryproto", ".npy")  # how `data.mean` ends where it is the path of a file
_RGB = {"data.mean": "imagenet", "data.std": "imagenet"}
_TORCH = {"model.stride_placement": "3x3", "model.max_pool": "torch", **_RGB}
FORMATS = {
    "torchvision": Format("fc", _TORCH),
    "fb": Format("last_linear", _TORCH),
    "caffe": Format("fc", {"model.stride_placement": "1x1", "model.max_pool": "caffe", "data.std": "none"}, mean_file=True),
    "akamaster": Format("linear", {"model.shortcut": "A", "model.zero_channels": "both", **_RGB}),
    # What `export` writes: torchvision's names, whatever the network.
    "resnet_jax": Format("fc", {}),
}


def parse(spec: str) -> tuple[str, pathlib.Path]:
    """'FORMAT:PATH' as its two parts.

    Raises:
      UserError: another form, or an unknown format.
    """
    kind, _, path = spec.partition(":")
    if kind not in FORMATS or not path:
        raise UserError(f"init={spec!r}: write FORMAT:PATH, with a format of {', '.join(FORMATS)}")
    return kind, pathlib.Path(path).expanduser()


def check_config(config: TrainConfig) -> None:
    """Refuses settings under which the weights of `init` would be another function than they were trained as.

    Raises:
      UserError: with the flags to add.
    """
    kind, _ = parse(config.init)
    given = flatten(config)
    given["model.shortcut"] = given["model.shortcut"] or zoo.architecture(config.model.name).shortcut
    needs = FORMATS[kind].needs
    flags = [f"--config.{name}={value}" for name, value in needs.items() if given[name] != value]
    if FORMATS[kind].mean_file and not config.data.mean.endswith(MEAN_FILES):
        flags.append("--config.data.mean=PATH (the mean image that comes with them, such as ResNet_mean.binaryproto)")
    if flags:
        raise UserError(f"init={config.init}: these weights were trained otherwise; add {' '.join(flags)}")
