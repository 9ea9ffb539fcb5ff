"""Classify files and folders by name and first bytes: an image, an image that we cannot read, a file of the system."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from posixpath import splitext

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
IMAGE_EXTENSIONS = frozenset(extension for extensions in EXTENSIONS.values() for extension in extensions)

RAW, HEIC = "a camera's raw file", "HEIC"
OTHER_EXTENSIONS = {
    ".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".psd": "Photoshop",
    ".ppm": "Netpbm", ".pgm": "Netpbm", ".pbm": "Netpbm", ".pnm": "Netpbm", ".tga": "Targa",
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"), RAW),
}  # fmt: skip
CONVERT = {
    "HEIC": "heif-convert in.heic out.jpg; or read it as it is: pip install pillow-heif, and add HEIF to data.formats",
    "JPEG XL": "djxl in.jxl out.png",
    "JPEG 2000": "opj_decompress -i in.jp2 -o out.png",
    "Photoshop": "magick 'in.psd[0]' out.png",
    RAW: "darktable-cli in.nef out.jpg",
}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
SIGNATURES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
)
OURS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")

IGNORED_NAMES = ("Thumbs.db", ".DS_Store", "desktop.ini")
IGNORED_FOLDERS = frozenset(
    {".ipynb_checkpoints", "__macosx", "@eadir", "system volume information", "lost+found", "#recycle", "$recycle.bin"}
)  # in lower case
_EXTENSION = re.compile(r"\.(?=[a-z0-9]*[a-z])[a-z0-9]{1,12}")  # not .2024 or .jpg_large: for these the content decides


@functools.lru_cache(maxsize=4096)
def extension(name: str) -> str:
    """Return a file name's extension in lower case with its dot, or an empty string if it could not name a kind of file."""
    ending = splitext(name)[1].lower()
    return ending if _EXTENSION.fullmatch(ending) else ""


def is_named_as_image(name: str) -> bool:
    """Return whether a file is named like an image, including kinds that we cannot read."""
    return (own := extension(name)) in IMAGE_EXTENSIONS or own in OTHER_EXTENSIONS


def why_sidecar(name: str) -> str:
    """Return why a file is ignored by its extension, or an empty string."""
    return f"named {extension(name)}, which is no image" if extension(name) and not is_named_as_image(name) else ""


def why_ignored(folders: Sequence[str], name: str) -> str:
    """Return why a file is ignored by its name or folder, or an empty string."""
    for folder in folders:
        if folder.lower() in IGNORED_FOLDERS or folder.startswith("."):
            return f"in {folder}"
        if extension(folder) in IMAGE_EXTENSIONS:
            return f"in the folder {folder}, named like an image"
    hidden = name.startswith(".") and extension(name) not in IMAGE_EXTENSIONS
    return "a system's own file" if name in IGNORED_NAMES or name.startswith("._") or hidden else ""


def begins_like_an_image(data: bytes) -> bool:
    """Return whether a file's first 12 bytes are those of an image that we can read."""
    return data.startswith(OURS) or (data[4:8] == b"ftyp" and data[8:12] in AVIF_BRANDS)


def other_image(data: bytes) -> str:
    """Return the kind of an image that we cannot read, by its first bytes, or an empty string for any other file."""
    if data[4:8] == b"ftyp":
        size = int.from_bytes(data[:4], "big")
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(size, 256), 4))}
        if data[8:12] == b"crx ":
            return RAW
        return "HEIC" if data[8:12] in HEIF_BRANDS and not brands & AVIF_BRANDS else ""
    if data[:4] in (b"II*\0", b"MM\0*") and data[8:10] == b"CR":
        return RAW
    return next((kind for signature, kind in SIGNATURES if data.startswith(signature)), "")


def advice(kind: str) -> str:
    """Return what to do about an image that we cannot read, as the end of a reason."""
    return f"convert it first, for example: {CONVERT.get(kind, 'magick in out.png')}"
