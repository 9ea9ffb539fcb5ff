"""Find where an image ends in its file, from the container's structure. The bytes after it are not image data."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

# In a JPEG's entropy-coded data 0xFF is followed by 0 (stuffing) or a restart marker; anything else ends the scan.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_STANDALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_PADDING = b"\0\r\n \t\x1a"


def trailing_bytes(data: bytes, kind: str) -> int:
    """Return how many bytes follow the image in its file, not counting padding of zeros or white space.

    Args:
        data: the whole file.
        kind: its format. The result is 0 for formats without a known end, such as TIFF and AVIF, and for broken structures.

    Source: the formats' structure as in ITU T.81 B.1, PNG 3rd edition 5, GIF89a, and RIFF.
    """
    find = _END_OF.get(kind)
    end = find(data) if find else None
    return len(data[end:].rstrip(_PADDING)) if end else 0


def _jpeg_end(data: bytes) -> int | None:
    if data.rstrip(_PADDING).endswith(b"\xff\xd9"):
        return None  # nearly all files end here and need no search
    place = 0
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            return None if data[place : place + 3] == b"\xff\xd8\xff" else place  # another picture (MPO) counts as image data
        if marker not in _STANDALONE:
            if place + 2 > len(data):
                return None
            place += struct.unpack_from(">H", data, place)[0]
    return None


def png_end(data: bytes) -> int | None:
    """Return where the IEND chunk of a PNG ends, or None if it has none."""
    return next((end + 4 for kind, _, end in png_chunks(data) if kind == b"IEND"), None)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each PNG chunk, and where its content begins and ends; its checksum follows."""
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place + 8, place + 8 + length
        place += 12 + length


def _gif_end(data: bytes) -> int | None:
    if len(data) < 13:
        return None
    place = 13 + _colour_table(data[10])
    while place < len(data):
        block = data[place]
        if block == 0x3B:
            return place + 1
        if block == 0x21:
            place = _sub_blocks(data, place + 2)
        elif block == 0x2C and place + 10 <= len(data):
            place = _sub_blocks(data, place + 11 + _colour_table(data[place + 9]))
        else:
            return None
    return None


def _colour_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1


def _riff_end(data: bytes) -> int | None:
    return 8 + int(struct.unpack_from("<I", data, 4)[0]) if len(data) >= 12 else None


def _bmp_end(data: bytes) -> int | None:
    size = int(struct.unpack_from("<I", data, 2)[0]) if len(data) >= 14 else 0
    return size if size > 14 else None


_END_OF: dict[str, Callable[[bytes], int | None]] = {
    "JPEG": _jpeg_end,
    "PNG": png_end,
    "GIF": _gif_end,
    "WEBP": _riff_end,
    "BMP": _bmp_end,
}
