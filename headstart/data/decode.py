"""One function turns a file's bytes into the RGB pixels that every stage and every prediction sees.

It is part of every key of cached activations: any change here is a change of all of them.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DEFAULT_MAX_PIXELS = 50_000_000

# What Pillow raises on damaged files, beside its own UnidentifiedImageError.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError, struct.error)


class DecodeError(ValueError):
    """The bytes are not an image we accept; the message is the reason, without the path."""


def decode(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one image file to RGB.

    The first frame; EXIF orientation applied; transparency composited on white; 16 bits scaled to 8.

    Args:
        data: the file's bytes, in one of `FORMATS` whatever the file's name says.
        max_pixels: the largest width x height, checked from the header before pixels are decoded.

    Returns:
        Pixels, shape [height, width, 3], uint8, writable.

    Raises:
        DecodeError: not an image, not an allowed format, too large, or damaged (a full decode is made).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(f"{width} x {height} pixels are more than {max_pixels:,}")
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of an accepted format ({', '.join(FORMATS)})") from None
    except (*_DAMAGE, zlib.error, Image.DecompressionBombError) as error:
        raise DecodeError(f"damaged image: {type(error).__name__}: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray (I;16, I) by 1/257; Pillow's own convert saturates at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
            raise DecodeError("floating-point pixels outside 0 to 255")
        scaled = values * 255 if values.max() <= 1 else values
    else:
        if values.min() < 0 or values.max() > 65535:
            raise DecodeError("32-bit pixels outside 0 to 65535")
        scaled = values / 257
    return Image.fromarray(np.round(scaled).astype(np.uint8), mode="L")
