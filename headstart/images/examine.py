"""Examine one file for the scan: its hash, a full decode, its shape and kind, and the features that near copies share."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import PurePath
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.files import sha256_bytes
from headstart.images.containers import trailing_bytes
from headstart.images.decode import Decoded, DecodeError, decode_image
from headstart.images.kinds import EXTENSIONS, OTHER_EXTENSIONS, RAW, advice, extension, other_image
from headstart.images.limits import MOST_ELONGATED, Limits
from headstart.images.whites import Whites

THUMB_SIDE = 8
HASH_SIDE = 32
LOOK_SIDE = 40  # least side of the picture for hash and thumbnail; a larger one finds no more (bench.duplicates)
MAX_BYTES_PER_PIXEL = 8  # an uncompressed image of four 16-bit channels
SLACK_BYTES = 10_000_000  # for headers, profiles, thumbnails


class Unusable(Exception):
    """The file must be quarantined.

    Args:
        reason: the reason.
        key: SHA-256 of its bytes; empty if they were not read.
    """

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


class Unreadable(Unusable):
    """The file must be quarantined, but the system may be at fault: the file may be readable next time."""


class Gone(Exception):
    """The file has disappeared since the folder was listed."""


def usable(path: str, limits: Limits, min_decode_side: int, whites: Whites | None = None) -> tuple[str, bytes, Decoded]:
    """Read, hash and fully decode one file. Training and prediction refuse the same files.

    Args:
        min_decode_side, whites: see `decode_image`.

    Returns:
        The SHA-256 of its bytes, the bytes, the image.

    Raises:
        Unusable: the file must be quarantined; `Unreadable` if the system may be at fault.
        Gone: the file is missing.
    """
    data = _read(path, limits.max_pixels * MAX_BYTES_PER_PIXEL + SLACK_BYTES)
    key = sha256_bytes(data)
    named = OTHER_EXTENSIONS.get(extension(PurePath(path).name), "")
    try:
        image = accepted(data, limits, min_decode_side, whites)
    except DecodeError as error:
        known = not named or other_image(data)
        raise Unusable(str(error) if known else f"{error}; named as {named}: {advice(named)}", key) from None
    if named == RAW and image.format == "TIFF":
        raise Unusable(f"{named}: the readable part may be its preview; {advice(named)}", key)
    return key, data, image


def accepted(data: bytes, limits: Limits, min_decode_side: int, whites: Whites | None = None) -> Decoded:
    """Decode a file's bytes, if they are an image within the limits.

    Raises:
        DecodeError: they are not an accepted image.
    """
    try:
        image = decode_image(data, limits.max_pixels, limits.formats, min_decode_side=min_decode_side, whites=whites)
    except DecodeError:
        kind = other_image(data)
        if not kind:
            raise
        raise DecodeError(f"not an image of an accepted format: it is {kind}; {advice(kind)}") from None
    if min(image.width, image.height) < limits.min_side:
        raise DecodeError(f"{image.width} x {image.height} pixels: a side below {limits.min_side} (data.min_side)")
    return image


def examine(path: str, limits: Limits) -> tuple[dict[str, Any], Decoded]:
    """Collect the scan's facts about one file.

    Returns:
        key, width, height, bytes, format, mode, orientation, peak, and notes, a list of (kind, text) to warn about; all
        are JSON values. And a picture for `look`.

    Raises:
        Unusable, Gone: see `usable`.
    """
    key, data, image = usable(path, limits, LOOK_SIDE)
    found = {
        "key": key,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "format": image.format,
        "mode": image.mode,
        "orientation": image.orientation,
        "peak": image.peak,
        "notes": _notes(path, data, image, limits),
    }
    return found, image


def look(image: Decoded) -> tuple[str, NDArray[np.uint8]]:
    """Compute the features that near copies share.

    Args:
        image: an image decoded with `min_decode_side=LOOK_SIDE`, or in full.

    Returns:
        The perceptual hash (ImageHash's DCT hash, 64 bits in hex) and a thumbnail [8, 8, 3] uint8.
    """
    height, width, _ = image.pixels.shape
    scale = round(8 * width / image.width) / 8  # a JPEG is reduced by eighths; its last pixel may cover less than a whole one
    small = Image.fromarray(image.pixels).resize(
        (HASH_SIDE, HASH_SIDE),
        Image.Resampling.HAMMING,
        box=(0, 0, min(width, image.width * scale), min(height, image.height * scale)),
        reducing_gap=2.0,
    )
    bits = imagehash.phash(small, highfreq_factor=HASH_SIDE // 8).hash
    return np.packbits(bits).tobytes().hex(), np.asarray(small.reduce(HASH_SIDE // THUMB_SIDE))


def _read(path: str, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("not a regular file")
            if status.st_size > max_bytes:
                raise Unusable(f"{status.st_size:,} bytes: more than any image of data.max_pixels can have")
            return stream.read()
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise Gone(path) from None
        raise Unreadable(f"cannot be read: {os.strerror(error.errno or 0)}") from None


def _notes(path: str, data: bytes, image: Decoded, limits: Limits) -> list[tuple[str, str]]:
    notes = []
    suffix = PurePath(path).suffix.lower()
    if suffix not in EXTENSIONS[image.format]:
        notes.append(("extension", f"{image.format} in a file named {suffix or 'without extension'}"))
    behind = trailing_bytes(data, image.format)
    if behind:
        notes.append(("trailing bytes", f"{behind:,} bytes after the end of the image"))
    if image.complaint:
        notes.append(("decoder", image.complaint))
    if image.animated:
        notes.append(("frames", "several frames or pages: the first one is used"))
    if image.transparent:
        notes.append(("transparent", "transparent pixels: composited on white"))
    if max(image.width, image.height) > MOST_ELONGATED * min(image.width, image.height):
        text = f"{image.width} x {image.height} pixels: longer than {MOST_ELONGATED} to 1, so only the middle is used"
        notes.append(("elongated", text))
    if image.dim:
        text = f"16 bits per channel, but the brightest level is {image.dim} of 255: scale it if it uses fewer than 16 bits"
        notes.append(("dark", text))
    if _is_constant(image.pixels) and _is_constant(decode_image(data, limits.max_pixels, limits.formats).pixels):
        notes.append(("constant", "all pixels are equal"))
    return notes


def _is_constant(pixels: NDArray[np.uint8]) -> bool:
    first = pixels[0, 0]
    return bool((pixels[0] == first).all() and (pixels == first).all())
