"""Read an image that the manifest lists, and refuse a file whose bytes have changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import InputError
from headstart.core.files import sha256_bytes
from headstart.images.decode import FORMATS, HEIF, DecodeError, decode_image
from headstart.images.kinds import HEIC, other_image
from headstart.images.whites import Whites


def read_pixels(
    source: Path, path: str, key: str, max_pixels: int, whites: Whites, min_decode_side: int | None = None
) -> NDArray[np.uint8]:
    """Read and decode `source / path`, whose bytes must still have the hash `key`.

    Args:
        whites: the source's raw values for white, see `whites.whites_of`.
        min_decode_side: see `decode_image`.

    Returns:
        [h, w, 3] uint8.

    Raises:
        InputError: the file is missing, has changed, or can no longer be decoded.
    """
    relink = "relink: python -m tasks.link_data --verify, then python -m flows.pipeline --force link_data"
    try:
        data = (source / path).read_bytes()
    except OSError as error:
        raise InputError(f"{source / path}: {error.strerror}, although the manifest lists it", fix=relink) from None
    if sha256_bytes(data) != key:
        raise InputError(f"{source / path}: its bytes changed since the manifest was made", fix=relink)
    try:
        formats = (*FORMATS, HEIF) if other_image(data) == HEIC else FORMATS  # the scan has accepted every listed file
        return decode_image(data, max_pixels, formats, min_decode_side=min_decode_side, whites=whites).pixels
    except DecodeError as error:
        raise InputError(f"{source / path}: {error}, although the scan could decode it", fix=relink) from None
