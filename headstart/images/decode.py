"""Decode a file's bytes to RGB pixels, in the same way for every stage and every prediction.

The scan, precompute, fine-tuning, evaluation and prediction all call `decode` or `decode_image`. This code is part
of every key of cached activations: any change here changes all of them.
"""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from headstart.images.containers import png_chunks, png_end
from headstart.images.whites import Whites, floating_white, integer_white

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HEIF = "HEIF"  # iPhones' photos; accepted if data.formats has it and pillow-heif is installed
DEFAULT_MAX_PIXELS = 50_000_000
ORIENTATION = 0x0112  # EXIF tag
WHITE = (255, 255, 255, 255)
ROWS_PER_STRIP, STRIP_OFFSETS, IMAGE_LENGTH, BITS_PER_SAMPLE = 278, 273, 257, 258  # TIFF tags
DIM = 64  # of 255: the brightest level of 14-bit values that are stored in 16 bits without scaling
EXTRANEOUS_SHARE = 0.01  # share of a JPEG's bytes that may be superfluous: some cameras write a few
# The passes of an interlaced PNG: first column, first row, column step, row step (PNG 3rd edition 8.1).
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes")

# What Pillow raises on damaged files, in addition to its own UnidentifiedImageError.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError,
    AssertionError, MemoryError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip


class DecodeError(ValueError):
    """The bytes are not an image that we accept. The message gives the reason, without the path."""


NEARLY_0 = 0.05  # as a share of the largest value
SIGNED = "signed values"  # the reason for such an image begins with this


@dataclass(frozen=True)
class Decoded:
    """An image as every stage sees it, and facts about its file.

    Args:
        pixels: [height, width, 3] uint8, upright, writable; reduced if the caller needs fewer pixels.
        width, height: the size of the full upright image, pixels.
        format: one of `FORMATS`.
        mode: Pillow's name of the file's pixel layout, such as RGB, L, P, CMYK, I;16.
        orientation: EXIF's, 1 to 8; 1 is upright.
        transparent: whether any pixel was not opaque.
        animated: whether the file has more frames or pages.
        complaint: a fault that the decoder reported and recovered from, or "".
        peak: the largest raw value of a gray image with more than 8 bits or of floating-point numbers; 0 for others.
        dim: the brightest level (of 255) of a colour image with 16 bits per channel if it is below 64; 0 for others.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str
    mode: str
    orientation: int
    transparent: bool
    animated: bool
    complaint: str
    peak: float = 0.0
    dim: int = 0


def decode(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the pixels of `decode_image`, [height, width, 3] uint8."""
    return decode_image(data, max_pixels, whites=Whites()).pixels


def decode_image(
    data: bytes,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    *,
    fast: bool = True,
    min_decode_side: int | None = None,
    whites: Whites | None = None,
) -> Decoded:
    """Decode one image file to RGB.

    It decodes the first frame, applies the EXIF orientation, composites transparency on white, and scales to 8 bits.

    Args:
        data: the file's bytes, in one of `formats`; the file's name does not count.
        max_pixels: the largest width x height, checked from the header before pixels are decoded.
        formats: the accepted ones of `FORMATS`.
        fast: decode JPEG with libjpeg-turbo directly, which is faster than through Pillow; the pixels are the same.
        min_decode_side: accept a reduced picture whose sides have at least so many pixels. A JPEG's data are still unpacked
            and checked in full; only the last step (inverse DCT, colours) is done for fewer pixels.
        whites: the raw values that become white; None takes each image's own range, as the scan does.

    Raises:
        DecodeError: not an image, not an accepted format, too large, or damaged (the image is decoded in full).
    """
    if HEIF in formats:
        _open_heif()
    try:
        with Image.open(io.BytesIO(data), formats=tuple(formats)) as image:
            return _decode_open(data, image, max_pixels, fast, min_decode_side, whites)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of an accepted format ({', '.join(formats)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # above twice, or once, Pillow's own limit
        raise DecodeError(f"more than {max_pixels:,} pixels") from None
    except _DAMAGE as error:
        raise DecodeError(f"damaged image: {type(error).__name__}: {error}") from None


@functools.cache
def _open_heif() -> None:
    """Register HEIC files with Pillow.

    Raises:
        DecodeError: pillow-heif is not installed.
    """
    try:
        import pillow_heif
    except ImportError:
        raise DecodeError("data.formats has HEIF, but pillow-heif is not installed: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def _decode_open(
    data: bytes, image: Image.Image, max_pixels: int, fast: bool, min_decode_side: int | None, whites: Whites | None
) -> Decoded:
    _check_size(image, max_pixels)
    turned = 1
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG followed by more pictures
    mode, animated = image.mode, bool(getattr(image, "is_animated", False))
    pixels, complaint = _turbo(data, image, min_decode_side or 0) if kind == "JPEG" else (None, "")
    if pixels is not None and fast and mode in ("RGB", "L"):
        orientation = _orientation(image)
        if orientation == 1 and mode == "RGB":
            return Decoded(pixels, *image.size, kind, mode, orientation, False, animated, complaint)
        size, image = image.size, Image.fromarray(pixels)
    else:
        _check_strips(image)
        if kind == "TIFF":
            turned = _orientation(image)  # Pillow turns these itself, and keeps no record of it
        image.load()
        _check_size(image, max_pixels)  # a frame may be larger than the header says
        if kind == "PNG":
            _check_png(data, image)
        size = image.size
        orientation = _orientation(image)  # not earlier: a PNG may have its EXIF after the pixels
    image, peak = _to_8_bits(_upright(image, orientation), whites)
    rgb, transparent = _to_rgb(image)
    width, height = size if orientation < 5 else size[::-1]  # 5 to 8 swap width and height
    array, orientation = np.array(rgb), max(orientation, turned)
    dim = _dim(data, kind, image, array)
    return Decoded(array, width, height, kind, mode, orientation, transparent, animated, complaint, peak, dim)


def _dim(data: bytes, kind: str, image: Image.Image, pixels: NDArray[np.uint8]) -> int:
    """Return the brightest level of an image with 16 bits per channel if the upper 8, which Pillow keeps, are hardly used."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, ()) if kind == "TIFF" else ()
    deep = (kind == "PNG" and image.mode in ("RGB", "RGBA", "LA") and data[24] == 16) or (len(bits) > 1 and max(bits) == 16)
    brightest = int(pixels.max()) if deep else 255
    return brightest if brightest < DIM else 0


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels are more than {max_pixels:,}")


def _turbo(data: bytes, image: Image.Image, min_decode_side: int) -> tuple[NDArray[np.uint8] | None, str]:
    """Decode a JPEG with libjpeg-turbo. Return the pixels and its warning, which Pillow hides.

    Returns:
        [h, w, 3] or [h, w] uint8, or None for files that Pillow must decode: kinds that libjpeg-turbo cannot decode, and
        files with a few superfluous bytes, after which it would hide other warnings.

    Raises:
        DecodeError: data are missing or superfluous: the file is truncated, or its header is wrong.
    """
    space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[image.mode]
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:
            raise DecodeError(f"damaged image: {width} x {height} pixels by one header, {image.size} by another")
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, space, min_height=min_decode_side, min_width=min_decode_side)
        return (pixels[..., 0] if space == "GRAY" else pixels), ""
    except DecodeError:
        raise
    except ValueError as error:
        complaint = str(error)
    if not complaint.startswith(("Corrupt JPEG", "Premature end")):
        return None, ""
    found = _EXTRANEOUS.search(complaint)
    if found is None or int(found[1]) > EXTRANEOUS_SHARE * len(data):
        raise DecodeError(f"damaged image: {complaint}")
    return None, complaint


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF with fewer rows in its strips than its header claims; Pillow would leave the rest black."""
    tags = getattr(image, "tag_v2", {})
    rows, strips, height = tags.get(ROWS_PER_STRIP), tags.get(STRIP_OFFSETS), tags.get(IMAGE_LENGTH)
    if rows and strips and height and rows * len(strips) < height:
        raise DecodeError(f"damaged image: {height} rows by its header, {rows * len(strips)} in its strips")


def _check_png(data: bytes, image: Image.Image) -> None:
    """Refuse a PNG without an end, or with fewer rows than its header claims; Pillow leaves the rest black.

    Only interlaced files and those with a black last row are checked, so that few files are unpacked twice.
    """
    if png_end(data) is None:
        raise DecodeError("damaged image: truncated, it has no IEND chunk")
    last = image.crop((0, image.height - 1, image.width, image.height))
    suspect = image.info.get("interlace") or last.getbbox(alpha_only=False) is None
    if suspect and _png_rows_missing(data):
        raise DecodeError("damaged image: fewer rows of pixels than its header claims")


def _png_rows_missing(data: bytes) -> bool:
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    pixel_bits = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    wanted = 0
    for x, y, step_x, step_y in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = len(range(x, width, step_x)), len(range(y, height, step_y))
        wanted += rows * (1 + -(-columns * pixel_bits // 8)) if columns else 0  # each row has a byte for its filter
    unpack, size = zlib.decompressobj(), 0
    for kind, start, end in png_chunks(data):
        if kind == b"IDAT":
            size += len(unpack.decompress(data[start:end], wanted - size))
            if size >= wanted:  # the rest may be a decompression bomb
                return False
    return True


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1 if it is missing or unreadable."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) and 2 <= value <= 8 else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info = image.info
    return turned


def _to_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image as RGB on white, and whether any pixel was not opaque."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    lowest, _ = rgba.getchannel("A").getextrema()
    if lowest == 255:
        return rgba.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", rgba.size, WHITE), rgba).convert("RGB"), True


def _to_8_bits(image: Image.Image, whites: Whites | None) -> tuple[Image.Image, float]:
    """Scale gray images of more than 8 bits (I;16, I) or of floating-point numbers (F) to 8 bits.

    It returns the image and its largest raw value; other images stay as they are, with 0. Pillow's own convert saturates
    at 255.
    """
    if not image.mode.startswith(("I", "F")):
        return image, 0.0
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise DecodeError("floating-point pixels that are NaN or infinite")
    lowest, peak = float(values.min()), float(values.max())
    if lowest < -NEARLY_0 * max(peak, 1e-9):  # more than rounding and resampling produce
        raise DecodeError(f"{SIGNED} from {lowest:,.6g} to {peak:,.6g}, such as the Hounsfield units of a CT")
    own = Whites(integer_white(peak), floating_white(peak))
    white = (whites or own).floating if image.mode == "F" else (whites or own).integer
    scaled = np.clip(np.round(values / (white / 255)), 0, 255)
    gray = Image.fromarray(scaled.astype(np.uint8), mode="L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # PNG: one gray value is transparent
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8), mode="L"))
    return gray, peak
