"""Resizing by name: bilinear or bicubic, each as Pillow does it (antialiased) or as OpenCV does it (fast).

Antialiased is the field's reference: when it shrinks, every pixel of the source counts. Fast looks at the 2 x 2 (bilinear)
or 4 x 4 (bicubic) nearest pixels whatever the scale, so that a shrunken image is sharper and has aliases. On 200 of
ImageNet's photographs at 224 pixels the two differ by 1.4 grey levels on average in training (Inception crop) and 2.1 at
test (shorter side 256), bicubic by 2.0 and 2.7. Where nothing shrinks, fast bilinear is Pillow's to 1 grey level; fast
bicubic still differs, by its sharper kernel (a = -0.75, as in PyTorch; Pillow has -0.5).
"""

import dataclasses

import cv2
import numpy as np
from PIL import Image

# A loader has its own threads, one per core: OpenCV's would only get in their way.
cv2.setNumThreads(0)

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclasses.dataclass(frozen=True)
class Resample:
    """A way of resizing.

    Attributes:
      name: bilinear or bicubic.
      antialias: as Pillow (True) or as OpenCV (False).
    """

    name: str = "bilinear"
    antialias: bool = True

    def crop(self, pixels: np.ndarray, top: int, left: int, height: int, width: int, size: int) -> np.ndarray:
        """Cuts a box out and resizes it. The pixels around the box count for nothing, as if they were not there.

        Args:
          pixels: uint8 `[height, width, 1 or 3]`.
          top, left, height, width: of the box.
          size: height and width of the result.

        Returns:
          uint8 `[size, size, channels]`.
        """
        box = pixels[top : top + height, left : left + width]
        # Where nothing shrinks there is nothing to antialias, and OpenCV's bilinear is Pillow's, to 1 grey level.
        if self.antialias and (self.name != "bilinear" or max(height, width) > size):
            return _array(_image(box).resize((size, size), PILLOW[self.name]), pixels)
        return cv2.resize(box, (size, size), interpolation=OPENCV[self.name]).reshape(size, size, -1)

    def window(self, pixels: np.ndarray, resized: tuple[int, int], top: int, left: int, size: int) -> np.ndarray:
        """Cuts a `size` x `size` window out of the whole image resized to `resized`.

        Antialiased bilinear, only the window is resized: equal to Pillow's resize of the whole followed by the crop, to 1
        grey level. Otherwise the whole is. Pillow chooses the order of its two passes by the sizes, and bicubic, which clips
        its overshoots after each, differs by up to 4 levels with it. OpenCV takes no fractional box, and looks at no more
        pixels than the result needs.

        Args:
          pixels: uint8 `[height, width, 1 or 3]`.
          resized: height and width of the whole image after resizing.
          top, left: of the window, in the resized image.
          size: height and width of the window.

        Returns:
          uint8 `[size, size, channels]`.
        """
        height, width, channels = pixels.shape
        if not self.antialias:
            whole = cv2.resize(pixels, resized[::-1], interpolation=OPENCV[self.name])
            return whole.reshape(*resized, channels)[top : top + size, left : left + size]
        if self.name == "bicubic":
            whole = _image(pixels).resize(resized[::-1], PILLOW[self.name])
            return _array(whole.crop((left, top, left + size, top + size)), pixels)
        y, x = height / resized[0], width / resized[1]
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        return _array(_image(pixels).resize((size, size), PILLOW[self.name], box), pixels)


PILLOW_BILINEAR = Resample()


def resized_window(pixels: np.ndarray, resized: tuple[int, int], top: int, left: int, size: int) -> np.ndarray:
    """`Resample.window`, bilinear and antialiased."""
    return PILLOW_BILINEAR.window(pixels, resized, top, left, size)


def mirror(image: np.ndarray) -> np.ndarray:
    """The image seen in a mirror, `[height, width, channels]`; copying NumPy's reversed view takes 30 times as long."""
    return cv2.flip(image, 1).reshape(image.shape)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _array(image: Image.Image, like: np.ndarray) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, like.shape[-1])
