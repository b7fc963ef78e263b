"""What happens to one image on the host, in NumPy and Pillow: the paper's augmentation and its test-time crops.

A transform takes uint8 pixels `[height, width, channels]` and a random generator (training only) and returns the
arrays of one example: `image`, uint8 `[size, size, channels]`, and where a mean image must follow the crop, `window`,
int32 `[3]`: top, left, flip. The mean itself is subtracted on the device (`normalize`).
"""

import dataclasses
from typing import Protocol

import numpy as np
from PIL import Image

from resnet_jax.config import TrainConfig
from resnet_jax.errors import UserError

Example = dict[str, np.ndarray]


class Transform(Protocol):
    """Pixels to the arrays of one example."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator | None) -> Example: ...


def resized_window(
    pixels: np.ndarray, resized: tuple[int, int], top: int, left: int, size: int, resample: int = Image.BILINEAR
) -> np.ndarray:
    """Cuts a `size` x `size` window out of the image resized to `resized`, without resizing the rest.

    Equal to Pillow's (antialiased) resize of the whole image followed by the crop.

    Args:
      pixels: uint8 `[height, width, 1 or 3]`.
      resized: height and width of the whole image after resizing.
      top, left: of the window, in the resized image.
      size: height and width of the window.
      resample: a Pillow filter.
    """
    height, width, channels = pixels.shape
    y, x = height / resized[0], width / resized[1]
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize((size, size), resample, box)).reshape(size, size, channels)


def shorter_side(pixels: np.ndarray, length: int) -> tuple[int, int]:
    """Height and width after resizing so that the shorter side is `length`; the other one is rounded down."""
    height, width = pixels.shape[:2]
    if height <= width:
        return length, length * width // height
    return length * height // width, length


@dataclasses.dataclass(frozen=True)
class ScaleCrop:
    """Section 3.4: shorter side drawn uniformly from [low, high], a random crop of it or of its mirror image."""

    size: int
    low: int
    high: int

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Example:
        height, width = shorter_side(pixels, int(rng.integers(self.low, self.high, endpoint=True)))
        top = int(rng.integers(0, height - self.size, endpoint=True))
        left = int(rng.integers(0, width - self.size, endpoint=True))
        image = resized_window(pixels, (height, width), top, left, self.size)
        return {"image": image[:, ::-1] if rng.random() < 0.5 else image}


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """Section 4.2: `pad` pixels of padding on each side, a random crop of the original size of it or of its mirror.

    The paper pads the image whose mean is subtracted, with zeros. So the padding here is zero and `window` tells
    `normalize` to subtract nothing there.
    """

    size: int
    pad: int
    flip: bool

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Example:
        _check_size(pixels, self.size)
        top, left = (int(v) for v in rng.integers(0, 2 * self.pad, 2, endpoint=True))
        flip = self.flip and rng.random() < 0.5
        padded = np.pad(pixels, ((self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        image = padded[top : top + self.size, left : left + self.size]
        return {"image": image[:, ::-1] if flip else image, "window": np.array([top, left, flip], np.int32)}


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The single view of testing: shorter side `resize` (None: as it is), then the centre."""

    size: int
    resize: int | None

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator | None) -> Example:
        if self.resize is None:
            _check_size(pixels, self.size)
            return {"image": pixels}
        height, width = shorter_side(pixels, self.resize)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return {"image": resized_window(pixels, (height, width), top, left, self.size)}


def _check_size(pixels: np.ndarray, size: int) -> None:
    if pixels.shape[:2] != (size, size):
        raise UserError(
            f"an image is {pixels.shape[0]}x{pixels.shape[1]} but data.image_size is {size}: set data.image_size, or let "
            "images be resized with data.augment=scale_crop and evaluation.resize"
        )


def train_transform(config: TrainConfig) -> Transform:
    """The augmentation that a config asks for."""
    data = config.data
    if data.augment == "scale_crop":
        return ScaleCrop(data.image_size, *data.train_scale)
    if data.augment in ("pad_crop", "pad_crop_no_flip"):
        return PadCrop(data.image_size, data.pad, flip=data.augment == "pad_crop")
    return eval_transform(config)


def eval_transform(config: TrainConfig) -> Transform:
    """The single-view protocol of a config."""
    return CentreCrop(config.data.image_size, config.evaluation.resize)
