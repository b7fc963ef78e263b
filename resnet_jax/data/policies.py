"""RandAugment and TrivialAugment: random operations of random strength on an image, with Pillow.

Operations, their ranges and their order of drawing follow torchvision (`transforms/autoaugment.py`), which the test suite
compares with operation by operation. What geometry uncovers is black.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data.resample import PILLOW

BINS = 31  # levels of magnitude, 0 to 30


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of change.

    Attributes:
      apply: of an image, a magnitude and Pillow's filter for geometry.
      strongest: magnitude of level 30 in RandAugment and in TrivialAugment (wide), from that of level 0; None: it has none.
      start: magnitude of level 0.
      signed: whether the magnitude's sign is drawn.
      whole: whether magnitudes are whole numbers.
      share: whether RandAugment's magnitude is a share of the image's side (TrivialAugment's is in pixels).
    """

    apply: Callable[[Image.Image, float, Image.Resampling], Image.Image]
    strongest: tuple[float, float] | None = None
    start: float = 0.0
    signed: bool = True
    whole: bool = False
    share: bool = False

    def magnitude(self, level: int, wide: bool, side: int) -> float:
        """Of a level in [0, 30], in the ranges of TrivialAugment (`wide`) or RandAugment, for an image's side."""
        if self.strongest is None:
            return 0.0
        end = self.strongest[wide] * (side if self.share and not wide else 1)
        value = self.start + (end - self.start) * (level / (BINS - 1))
        return round(value) if self.whole else value


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample)


OPERATIONS = {
    "Identity": Operation(lambda image, *_: image),
    "ShearX": Operation(lambda image, m, r: _affine(image, (1, m, 0, 0, 1, 0), r), (0.3, 0.99)),
    "ShearY": Operation(lambda image, m, r: _affine(image, (1, 0, 0, m, 1, 0), r), (0.3, 0.99)),
    "TranslateX": Operation(lambda image, m, r: _affine(image, (1, 0, -int(m), 0, 1, 0), r), (150 / 331, 32), share=True),
    "TranslateY": Operation(lambda image, m, r: _affine(image, (1, 0, 0, 0, 1, -int(m)), r), (150 / 331, 32), share=True),
    "Rotate": Operation(lambda image, m, r: image.rotate(m, r), (30, 135)),
    "Brightness": Operation(lambda image, m, _: ImageEnhance.Brightness(image).enhance(1 + m), (0.9, 0.99)),
    "Color": Operation(lambda image, m, _: ImageEnhance.Color(image).enhance(1 + m), (0.9, 0.99)),
    "Contrast": Operation(lambda image, m, _: ImageEnhance.Contrast(image).enhance(1 + m), (0.9, 0.99)),
    "Sharpness": Operation(lambda image, m, _: ImageEnhance.Sharpness(image).enhance(1 + m), (0.9, 0.99)),
    "Posterize": Operation(lambda image, m, _: ImageOps.posterize(image, int(m)), (4, 2), start=8, signed=False, whole=True),
    "Solarize": Operation(lambda image, m, _: ImageOps.solarize(image, m), (0, 0), start=255, signed=False),
    "AutoContrast": Operation(lambda image, *_: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, *_: ImageOps.equalize(image)),
}


def apply(name: str, image: Image.Image, level: int, sign: int, wide: bool, resample: str) -> Image.Image:
    """One operation.

    Args:
      name: in `OPERATIONS`.
      image: RGB or grey.
      level: strength, 0 to 30.
      sign: 1 or -1; counts only where the operation has a direction.
      wide: ranges of TrivialAugment (True) or RandAugment.
      resample: bilinear or bicubic, for geometry.
    """
    operation = OPERATIONS[name]
    magnitude = operation.magnitude(level, wide, image.height if name == "TranslateY" else image.width)
    return operation.apply(image, magnitude * (sign if operation.signed else 1), PILLOW[resample])


@dataclasses.dataclass(frozen=True)
class Policy:
    """RandAugment (Cubuk et al. 2019), or TrivialAugment wide (Müller, Hutter 2021) if `magnitude` is None.

    Attributes:
      count: operations in a row (TrivialAugment: 1).
      magnitude: the level of all of them, 0 to 30; None: each its own, from the wide ranges.
      resample: bilinear or bicubic, for geometry.
    """

    count: int
    magnitude: int | None
    resample: str

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 `[height, width, 1 or 3]` to the same shape."""
        image, names = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), list(OPERATIONS)
        for _ in range(self.count):
            name, sign = names[rng.integers(len(names))], 1 - 2 * int(rng.integers(2))
            level = int(rng.integers(BINS)) if self.magnitude is None else self.magnitude
            image = apply(name, image, level, sign, self.magnitude is None, self.resample)
        return np.asarray(image).reshape(pixels.shape)
