"""Pixels to network inputs, on the device: the mean subtracted, per channel or per pixel (sections 3.4 and 4.2)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data.sources import ArraySource, Source
from resnet_jax.errors import UserError

Array = jax.Array

# Of the ImageNet training set, pixels in [0, 255] (facebookarchive/fb.resnet.torch, also torchvision's).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def statistics_shapes(data: DataConfig, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `statistics` returns, for the same config."""
    side = data.image_size if data.mean == "pixel" else 1
    return {
        "mean": jax.ShapeDtypeStruct((side, side, channels), jnp.float32),
        "std": jax.ShapeDtypeStruct((1, 1, channels), jnp.float32),
    }


def needs_training_set(data: DataConfig) -> bool:
    """Whether `statistics` looks at the training set."""
    return data.mean in ("pixel", "channel") or data.std == "channel"


def statistics(data: DataConfig, source: Source) -> dict[str, np.ndarray]:
    """The mean and standard deviation that a config asks for, from the training set where it asks for that.

    Args:
      data: `mean`, `std` and `image_size`.
      source: the training set.

    Returns:
      `mean`, float32 `[size, size, channels]` if per pixel, else `[1, 1, channels]`; `std`, float32 `[1, 1, channels]`.

    Raises:
      UserError: statistics of a set that is not in memory, or ImageNet's for images that are not RGB.
    """
    channels = source.channels
    if "imagenet" in (data.mean, data.std) and channels != 3:
        raise UserError(f"data.mean={data.mean!r}, data.std={data.std!r}: images have {channels} channels; use 'channel'")
    if needs_training_set(data) and not isinstance(source, ArraySource):
        raise UserError(
            f"data.mean={data.mean!r}, data.std={data.std!r}: statistics of the training set are computed for sets held "
            "in memory (digits, cifar10); use 'imagenet' or 'none' here"
        )
    known = {"none": (0.0,) * channels, "imagenet": IMAGENET_MEAN}
    if data.mean == "pixel":
        mean = source.images.mean(0, dtype=np.float64)
        if mean.shape[:2] != (data.image_size, data.image_size):
            raise UserError(
                f"data.mean='pixel': images are {mean.shape[0]}x{mean.shape[1]}, data.image_size is {data.image_size}"
            )
    elif data.mean == "channel":
        mean = source.images.mean((0, 1, 2), dtype=np.float64).reshape(1, 1, channels)
    else:
        mean = np.reshape(known[data.mean], (1, 1, channels))
    if data.std == "channel":
        std = source.images.std((0, 1, 2), dtype=np.float64)
    else:
        std = np.asarray({"none": (1.0,) * channels, "imagenet": IMAGENET_STD}[data.std])
    return {"mean": mean.astype(np.float32), "std": std.reshape(1, 1, channels).astype(np.float32)}


def normalize(batch: Mapping[str, Array], mean: Array, std: Array, pad: int) -> Array:
    """Subtracts the mean and divides by the standard deviation, in their dtype (float32).

    Args:
      batch: `image`, uint8 `[batch, height, width, channels]`; `window`, int32 `[batch, 3]`, if the image is a padded
        crop (top, left, flip): then the zero-padded mean is cropped in the same way, so that padding stays zero.
      mean: `[height or 1, width or 1, channels]`.
      std: `[1, 1, channels]`.
      pad: pixels of padding that `window` refers to.

    Returns:
      `[batch, height, width, channels]`, in the dtype of the mean.
    """
    image = batch["image"].astype(mean.dtype)
    if "window" not in batch:
        return (image - mean[None]) / std[None]
    height, width, channels = image.shape[1:]
    padded = jnp.pad(jnp.broadcast_to(mean, (height, width, channels)), ((pad, pad), (pad, pad), (0, 0)))

    def crop(window: Array) -> Array:
        part = jax.lax.dynamic_slice(padded, (window[0], window[1], jnp.int32(0)), (height, width, channels))
        return jnp.where(window[2] > 0, part[:, ::-1], part)

    return (image - jax.vmap(crop)(batch["window"])) / std[None]
