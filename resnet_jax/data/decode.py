"""Encoded images to pixels: libjpeg-turbo for JPEG, Pillow for everything else."""

import contextlib
import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_jax.errors import UserError


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes an image file to RGB; greyscale, 16-bit, palette, CMYK and transparent images are converted.

    EXIF rotation is ignored, as everywhere in the field.

    Args:
      data: the bytes of the file; what it is follows from them, not from its name (ImageNet has a PNG named .JPEG).
      name: for error messages.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      UserError: not an image, or a truncated or broken one.
    """
    if simplejpeg.is_jpeg(data):
        # Pillow has the last word: on CMYK, and on files with a flaw that every other program overlooks.
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits, which Pillow's own conversion clips
                grey = np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8)
                return np.repeat(grey[..., None], 3, -1)
            if image.mode == "F":
                raise UserError(f"{name}: floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image file; remove it or replace it") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_broken(name, error)) from error


def _broken(name: str, error: Exception) -> str:
    return f"{name}: broken or truncated image ({error}); remove it or replace it"
