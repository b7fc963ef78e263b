"""torchvision's names and layouts for our variables: `layer1.0.conv1.weight` and `[out, in, height, width]`."""

from collections.abc import Sequence

import numpy as np

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: Sequence[str]) -> str:
    """The torchvision name of a variable of ours.

    Args:
      path: within params or batch_stats, such as ('stage1', 'block2', 'bn1', 'scale').

    >>> torch_name(("stage1", "block2", "bn1", "scale"))
    'layer1.1.bn1.weight'
    >>> torch_name(("stage3", "block1", "shortcut", "conv", "kernel"))
    'layer3.0.downsample.0.weight'
    """
    *modules, leaf = path
    if modules[0] == "stem":
        modules = [modules[1] + "1"]
    elif modules[0] == "head":
        modules = ["fc"]
    else:
        stage, block, *rest = modules
        if rest[0] == "shortcut":
            rest = ["downsample", "0" if rest[1] == "conv" else "1"]
        modules = [stage.replace("stage", "layer"), str(int(block.removeprefix("block")) - 1), *rest]
    return ".".join([*modules, _LEAVES[leaf]])


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Convolution kernels `[height, width, in, out]` to `[out, in, height, width]`, dense `[in, out]` to `[out, in]`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch_layout`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
