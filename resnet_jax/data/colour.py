"""Colour augmentation, drawn on the host and applied on the device in float (`normalize`): nothing is rounded or clipped.

Brightness, contrast, saturation (Howard 2013, as facebookarchive/fb.resnet.torch writes them, datasets/transforms.lua) and
PCA lighting ("standard color augmentation", section 3.4, from AlexNet, Krizhevsky et al. 2012) are all affine in an image's
colours: `matrix @ colour + shift`. The one thing that they need to know of the image, for contrast, is its mean colour.
torchvision's ColorJitter is the same but for rounding and clipping to [0, 255] after each of the three.
"""

import dataclasses

import cv2
import numpy as np

GREY = np.array([0.299, 0.587, 0.114])

# Principal components of the colours of ImageNet's training set, pixels in [0, 1] (fb.resnet.torch, datasets/imagenet.lua):
# what AlexNet's p_i and lambda_i are taken to be everywhere. One component a column.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)


def lighting(std: float, rng: np.random.Generator) -> np.ndarray:
    """The shift of all pixels of an image, for values in [0, 255]: `255 [p1 p2 p3] [a1 l1, a2 l2, a3 l3]`.

    Args:
      std: standard deviation of a1, a2, a3, drawn once per image (AlexNet: 0.1).
      rng: random generator.

    Returns:
      float64 `[3]`.
    """
    return 255 * EIGENVECTORS @ (rng.normal(0, std, 3) * EIGENVALUES)


def brightness(factor: float, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blends an image with black: (matrix `[3, 3]`, shift `[3]`)."""
    del mean
    return factor * np.eye(3), np.zeros(3)


def contrast(factor: float, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blends an image with the grey of its mean colour, `[3]`: (matrix `[3, 3]`, shift `[3]`)."""
    return factor * np.eye(3), np.full(3, (1 - factor) * (GREY @ mean))


def saturation(factor: float, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blends an image with itself in grey: (matrix `[3, 3]`, shift `[3]`)."""
    del mean
    return factor * np.eye(3) + (1 - factor) * np.tile(GREY, (3, 1)), np.zeros(3)


def jitter(strength: float, mean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Brightness, contrast and saturation in random order, each by a factor in [1 - strength, 1 + strength].

    Args:
      strength: at most 1 (fb.resnet.torch: 0.4).
      mean: mean colour of the image, `[3]`.
      rng: random generator.

    Returns:
      matrix `[3, 3]` and shift `[3]`, float64.
    """
    matrix, shift = np.eye(3), np.zeros(3)
    operations = (brightness, contrast, saturation)
    for index in rng.permutation(3):
        by, plus = operations[index](1 + rng.uniform(-strength, strength), matrix @ mean + shift)
        matrix, shift = by @ matrix, by @ shift + plus
    return matrix, shift


@dataclasses.dataclass(frozen=True)
class Colour:
    """Draws the colour augmentation of one image: jitter, then lighting.

    Attributes:
      jitter: strength of brightness, contrast and saturation; 0: none.
      lighting: standard deviation of the principal components' weights; 0: none.
    """

    jitter: float
    lighting: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """From a uint8 image `[height, width, 3]`: shift, float32 `[3]`, and if there is jitter matrix, float32 `[3, 3]`."""
        drawn, shift = {}, np.zeros(3)
        if self.jitter:
            matrix, shift = jitter(self.jitter, np.array(cv2.mean(image)[:3]), rng)
            drawn["matrix"] = matrix.astype(np.float32)
        if self.lighting:
            shift = shift + lighting(self.lighting, rng)
        return drawn | {"shift": shift.astype(np.float32)}
