"""Pixels to network inputs, on the device: the mean subtracted, per channel or per pixel (sections 3.4 and 4.2)."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config import DataConfig
from resnet_jax.data.sources import Source
from resnet_jax.errors import UserError
from resnet_jax.weights.caffe import read_mean
from resnet_jax.weights.presets import MEAN_FILES

Array = jax.Array

# Of the ImageNet training set, pixels in [0, 255] (facebookarchive/fb.resnet.torch, also torchvision's).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def statistics_shapes(data: DataConfig, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `statistics` returns, for the same config."""
    side = data.image_size if data.mean == "pixel" or data.mean.endswith(MEAN_FILES) else 1
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
      UserError: statistics of a set that has none, or ImageNet's for images that are not RGB.
    """
    channels = source.channels
    if "imagenet" in (data.mean, data.std) and channels != 3:
        raise UserError(f"data.mean={data.mean!r}, data.std={data.std!r}: images have {channels} channels; use 'channel'")
    known_set = getattr(source, "statistics", None)
    if needs_training_set(data) and known_set is None:
        raise UserError(
            f"data.mean={data.mean!r}, data.std={data.std!r}: statistics of the training set are known for sets in memory "
            "(digits, cifar10) or packed with resnet_jax.data.prepare; use 'imagenet' or 'none' here"
        )
    known = {"none": (0.0,) * channels, "imagenet": IMAGENET_MEAN}
    if data.mean == "pixel":
        mean = known_set.pixel_mean()
        if mean.shape[:2] != (data.image_size, data.image_size):
            raise UserError(
                f"data.mean='pixel': the mean image is {mean.shape[0]}x{mean.shape[1]}, data.image_size is "
                f"{data.image_size}; set data.image_size, or pack with --mean-size {data.image_size}"
            )
    elif data.mean.endswith(MEAN_FILES):
        mean = _mean_image(data, channels)
    elif data.mean == "channel":
        mean = known_set.channel_mean().reshape(1, 1, channels)
    else:
        mean = np.reshape(known[data.mean], (1, 1, channels))
    if data.std == "channel":
        std = known_set.channel_std()
    else:
        std = np.asarray({"none": (1.0,) * channels, "imagenet": IMAGENET_STD}[data.std])
    return {"mean": mean.astype(np.float32), "std": std.reshape(1, 1, channels).astype(np.float32)}


def _mean_image(data: DataConfig, channels: int) -> np.ndarray:
    path = pathlib.Path(data.mean).expanduser()
    if not path.is_file():
        raise UserError(f"data.mean={data.mean}: no such file")
    if channels != 3:
        raise UserError(f"data.mean={data.mean}: images have {channels} channels; use 'channel'")
    mean, size = read_mean(path), data.image_size
    return mean if mean.shape[:2] == (size, size) else np.broadcast_to(mean.mean((0, 1)), (size, size, 3))


def normalize(batch: Mapping[str, Array], mean: Array, std: Array, pad: int) -> Array:
    """Does in float what the host left to do: colour, the mean subtracted, divided by the deviation, erasing.

    Args:
      batch: `image`, uint8 `[batch, height, width, channels]`, and where the transform gives them (`augment`): `matrix` and
        `shift`, float32 `[batch, 3, 3]` and `[batch, 3]`, the colours' affine map; `window`, int32 `[batch, 3]`, if the
        image is a padded crop (top, left, flip): then the zero-padded mean is cropped in the same way, so that padding
        stays zero; `erase`, int32 `[batch, 4]`: a box (top, left, height, width) that is zero in the end.
      mean: `[height or 1, width or 1, channels]`; of another size than the image, its spatial average counts.
      std: `[1, 1, channels]`.
      pad: pixels of padding that `window` refers to.

    Returns:
      `[batch, height, width, channels]`, in the dtype of the mean.
    """
    image = batch["image"].astype(mean.dtype)
    height, width, channels = image.shape[1:]
    if mean.shape[:2] not in ((1, 1), (height, width)):
        mean = mean.mean((0, 1), keepdims=True)
    if "matrix" in batch:  # written out, since an accelerator would round the inputs of a matrix product
        matrix = batch["matrix"].astype(mean.dtype)[:, None, None]
        image = sum(image[..., i : i + 1] * matrix[..., i] for i in range(channels))
    if "shift" in batch:
        image = image + batch["shift"].astype(mean.dtype)[:, None, None]
    if "window" in batch:
        image = image - _cropped(mean, batch["window"], pad, (height, width))
        if "shift" in batch:
            inside = _cropped(jnp.ones((1, 1, 1), mean.dtype), batch["window"], pad, (height, width))
            image = image * inside
    else:
        image = image - mean[None]
    image = image / std[None]
    return jnp.where(_inside(batch["erase"], height, width), 0, image) if "erase" in batch else image


def _cropped(mean: Array, windows: Array, pad: int, size: tuple[int, int]) -> Array:
    """The zero-padded mean, cropped and mirrored as each of the images, `[batch, height, width, channels]`."""
    shape = (*size, mean.shape[-1])
    padded = jnp.pad(jnp.broadcast_to(mean, shape), ((pad, pad), (pad, pad), (0, 0)))

    def crop(window: Array) -> Array:
        part = jax.lax.dynamic_slice(padded, (window[0], window[1], jnp.int32(0)), shape)
        return jnp.where(window[2] > 0, part[:, ::-1], part)

    return jax.vmap(crop)(windows)


def _inside(boxes: Array, height: int, width: int) -> Array:
    """Whether a pixel is in its image's box (top, left, height, width), bool `[batch, height, width, 1]`."""
    top, left, down, right = (side[:, None] for side in boxes.T)
    y, x = jnp.arange(height, dtype=jnp.int32)[None], jnp.arange(width, dtype=jnp.int32)[None]
    rows, columns = (y >= top) & (y < top + down), (x >= left) & (x < left + right)
    return rows[:, :, None, None] & columns[:, None, :, None]
