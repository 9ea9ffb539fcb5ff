"""Image files with something special about them, built byte by byte where Pillow would not write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
BIG = RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)


def save(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, more: bytes = b"", interlaced: int = 0) -> bytes:
    """A PNG of raw `rows`, each begun by its filter byte; `more` chunks come before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be large and has hardly any data."""
    return png(width, height, 8, 2, b"\0" * 64)


def interlaced(pixels: np.ndarray, passes: int = 7) -> bytes:
    """An interlaced PNG of [h, w, 3] uint8, or the first of its seven passes."""
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[y::down, x::right] for x, y, right, down in steps[:passes]]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.shape[1] for row in part)
    return png(pixels.shape[1], pixels.shape[0], 8, 2, rows, interlaced=1)


def sixteen_bit_rgb() -> tuple[bytes, np.ndarray]:
    """A PNG of 16-bit RGB, and its values [4, 4, 3]."""
    values = np.linspace(0, 65535, 48).round().astype(">u2").reshape(4, 4, 3)
    return png(4, 4, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)), values.astype(np.int64)


def text_bomb() -> bytes:
    """A small PNG whose zTXt chunk unpacks to 100 MB."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
    return png(8, 8, 8, 0, (b"\0" + bytes(8)) * 8, text)


def bad_idat() -> bytes:
    """A whole PNG with one damaged byte in its compressed pixels."""
    data = bytearray(save(BIG, "PNG"))
    data[data.index(b"IDAT") + 200] ^= 0xFF
    return bytes(data)


def lying_jpeg(width: int, height: int) -> bytes:
    """A JPEG of 90 x 90 whose header claims another size."""
    data = bytearray(save(BIG, "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def lying_png(width: int, height: int) -> bytes:
    """A PNG of 90 x 90 whose header claims another size, its checksum right."""
    whole = save(BIG, "PNG")
    header = struct.pack(">II", width, height) + whole[24:29]
    return whole[:8] + chunk(b"IHDR", header) + whole[33:]


def lying_tiff(height: int) -> bytes:
    """A TIFF of 90 x 90 whose header claims another height."""
    data = bytearray(save(BIG, "TIFF"))
    directory = struct.unpack_from("<I", data, 4)[0]
    for place in range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12):
        if struct.unpack_from("<H", data, place)[0] == 257:
            struct.pack_into("<I", data, place + 8, height)
    return bytes(data)


def lying_gif() -> bytes:
    """A GIF with a screen of 4 x 4 pixels and a frame of 65,535 x 65,535."""
    data = bytearray(save(Image.fromarray(BIG).convert("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 4, 4)
    place = data.index(b",", 13 + 768)
    data[place + 5 : place + 9] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def animated(kind: str) -> bytes:
    """Two frames, red and blue."""
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue")]
    for frame in frames:
        frame.paste("white", (0, 0, 3, 12))
    return save(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))


def heic() -> bytes:
    """The beginning of a HEIC file."""
    return struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + RNG.bytes(500)


def cmyk(kind: str) -> bytes:
    """A CMYK file of pure cyan, magenta, yellow and black stripes."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    for i in range(4):
        pixels[:, 4 * i : 4 * i + 4, i] = 255
    return save(Image.fromarray(pixels, mode="CMYK"), kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
