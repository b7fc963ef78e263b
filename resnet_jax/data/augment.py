"""What happens to one image on the host: crops, the paper's and the field's, in training and at test time.

A transform takes uint8 pixels `[height, width, channels]` and a random generator (training only) and returns the
arrays of one example: `image`, uint8 `[size, size, channels]`, and what the device is to do with it in float
(`normalize`), where a config asks for it: `window`, int32 `[3]`: top, left, flip of a padded crop, which a mean image must
follow; `matrix`, float32 `[3, 3]`, and `shift`, float32 `[3]`: colour (`colour`); `erase`, int32 `[4]`: top, left, height
and width of what is erased.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np

from resnet_jax.config import TrainConfig
from resnet_jax.data.colour import Colour
from resnet_jax.data.policies import Policy
from resnet_jax.data.resample import PILLOW_BILINEAR, Resample, mirror
from resnet_jax.data.resample import resized_window as resized_window  # for those who crop views of their own
from resnet_jax.errors import UserError

Example = dict[str, np.ndarray]


class Transform(Protocol):
    """Pixels to the arrays of one example."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator | None) -> Example: ...


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
    resample: Resample = PILLOW_BILINEAR

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Example:
        height, width = shorter_side(pixels, int(rng.integers(self.low, self.high, endpoint=True)))
        top = int(rng.integers(0, height - self.size, endpoint=True))
        left = int(rng.integers(0, width - self.size, endpoint=True))
        image = self.resample.window(pixels, (height, width), top, left, self.size)
        return {"image": mirror(image) if rng.random() < 0.5 else image}


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    margin: int = 0,
) -> tuple[int, int, int, int] | None:
    """A box at random whose share of the area is uniform and whose aspect ratio is log-uniform; None if 10 tries do not fit.

    Args:
      height, width: of the image.
      area: range of the share.
      ratio: range of width / height.
      rng: random generator.
      margin: how much smaller than the image the box must be at least, in either direction.

    Returns:
      top, left, height, width.
    """
    low, high = (math.log(value) for value in ratio)
    for _ in range(10):
        target, aspect = height * width * rng.uniform(*area), math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width - margin and 0 < h <= height - margin:
            return int(rng.integers(0, height - h, endpoint=True)), int(rng.integers(0, width - w, endpoint=True)), h, w
    return None


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A box of random area, shape and place, resized to a square, or its mirror image (Szegedy et al. 2014, section 6).

    As torchvision's RandomResizedCrop: where 10 draws do not fit in the image, the largest centre box whose ratio is in
    range. fb.resnet.torch draws the ratio uniformly, and takes its reciprocal half of the time.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resample: Resample = PILLOW_BILINEAR

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Example:
        height, width = pixels.shape[:2]
        box = random_box(height, width, self.area, self.ratio, rng)
        if box is None:
            h = min(height, max(1, round(width / self.ratio[0])))
            w = min(width, max(1, round(height * self.ratio[1])))
            box = (height - h) // 2, (width - w) // 2, h, w
        image = self.resample.crop(pixels, *box, self.size)
        return {"image": mirror(image) if rng.random() < 0.5 else image}


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
    resample: Resample = PILLOW_BILINEAR

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator | None) -> Example:
        if self.resize is None:
            _check_size(pixels, self.size)
            return {"image": pixels}
        height, width = shorter_side(pixels, self.resize)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return {"image": self.resample.window(pixels, (height, width), top, left, self.size)}


def _check_size(pixels: np.ndarray, size: int) -> None:
    if pixels.shape[:2] != (size, size):
        raise UserError(
            f"an image is {pixels.shape[0]}x{pixels.shape[1]} but data.image_size is {size}: set data.image_size, or let "
            "images be resized with data.augment=scale_crop and evaluation.resize"
        )


@dataclasses.dataclass(frozen=True)
class Augment:
    """A crop, and what comes on top of it.

    Attributes:
      crop: the geometry.
      policy: on the crop; before the crop where that pads, since padding is no part of the image.
      colour: after the policy.
      erasing: probability that a box is erased.
    """

    crop: Transform
    policy: Policy | None = None
    colour: Colour | None = None
    erasing: float = 0.0

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> Example:
        pads = isinstance(self.crop, PadCrop)
        if self.policy and pads:
            pixels = self.policy(pixels, rng)
        example = self.crop(pixels, rng)
        if self.policy and not pads:
            example["image"] = self.policy(example["image"], rng)
        if self.colour:
            if pixels.shape[-1] != 3:
                raise UserError(f"images have {pixels.shape[-1]} channel: set data.lighting and data.colour_jitter to 0")
            example |= self.colour(example["image"] if not pads else pixels, rng)
        if self.erasing:
            example["erase"] = erased_box(*example["image"].shape[:2], self.erasing, rng)
        return example


def erased_box(height: int, width: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Random erasing (Zhong et al. 2017) with torchvision's ranges: 2 to 33 % of the area, ratio 0.3 to 3.3.

    Returns:
      int32 `[4]`: top, left, height, width; the last two are 0 where nothing is erased.
    """
    box = None
    if rng.random() < probability:
        box = random_box(height, width, (0.02, 0.33), (1 / 3.3, 1 / 0.3), rng, margin=1)  # its ratio is height / width
    return np.array(box or (0, 0, 0, 0), np.int32)


def train_transform(config: TrainConfig) -> Transform:
    """The augmentation that a config asks for."""
    data, crop = config.data, _train_crop(config)
    policy = None
    if data.policy != "none":
        trivial = data.policy == "trivialaugment"
        policy = Policy(1 if trivial else data.policy_count, None if trivial else data.policy_magnitude, data.resample)
    colour = Colour(data.colour_jitter, data.lighting) if data.colour_jitter or data.lighting else None
    return Augment(crop, policy, colour, data.random_erasing) if policy or colour or data.random_erasing else crop


def _train_crop(config: TrainConfig) -> Transform:
    data = config.data
    resample = Resample(data.resample, data.antialias)
    if data.augment == "scale_crop":
        return ScaleCrop(data.image_size, *data.train_scale, resample)
    if data.augment == "inception_crop":
        return InceptionCrop(data.image_size, data.crop_scale, data.crop_ratio, resample)
    if data.augment in ("pad_crop", "pad_crop_no_flip"):
        return PadCrop(data.image_size, data.pad, flip=data.augment == "pad_crop")
    return centre_transform(config)


def centre_transform(config: TrainConfig) -> Transform:
    """The centre crop at the training size."""
    data = config.data
    return CentreCrop(data.image_size, config.test_resize(data.image_size), Resample(data.resample, data.antialias))


def eval_transform(config: TrainConfig) -> Transform:
    """The single-view protocol of a config."""
    data = config.data
    return CentreCrop(config.test_size(), config.test_resize(), Resample(data.resample, data.antialias))
