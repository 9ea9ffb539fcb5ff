"""Measure recall and precision of finding planted near copies: `python -m bench.duplicates`.

The originals ("strangers", since none is a copy of another) are crops of scikit-image's bundled pictures, no two of which
share more than half of their area, and the 1,797 digits, many of which look alike. The bench plants a copy of each:
recompressed (JPEG 50 to 95, WebP 60 to 95, or losslessly), resized (half to double), or both. It searches for pairs of copy
and original: the right pair is a hit, any other is a false pair. Copies of digits have another format, or are enlarged, which
at 8 x 8 pixels changes as much as lies between two people's digits. For digits the aim is that no stranger counts as a copy.
Exact copies are found by their hash, which the bench shows too.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from skimage import data as pictures
from sklearn.datasets import load_digits

from headstart.core.files import sha256_bytes
from headstart.hardware import resolve_workers
from headstart.images.decode import decode_image
from headstart.images.examine import LOOK_SIDE, look
from headstart.ingest.near_duplicates import near_duplicates

NAMES = (
    "astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def crops(each: int, seed: int = 0) -> list[bytes]:
    """Return up to `each` crops of every picture as PNG files."""
    rng = np.random.default_rng(seed)
    files = []
    for name in NAMES:
        picture = Image.fromarray(getattr(pictures, name)()).convert("RGB")
        boxes: list[tuple[int, int, int, int]] = []
        for _ in range(40 * each):
            width, height = (int(side * share) for side, share in zip(picture.size, [rng.uniform(0.2, 0.6)] * 2, strict=True))
            left, top = int(rng.integers(0, picture.width - width)), int(rng.integers(0, picture.height - height))
            box = (left, top, left + width, top + height)
            if len(boxes) < each and all(overlap(box, other) <= 0.5 for other in boxes):
                boxes.append(box)
        files += [encode(picture.crop(box), "PNG") for box in boxes]
    return files


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Return the shared area of two boxes over their joint area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_copy(original: bytes, rng: np.random.Generator) -> bytes:
    """Make a recompressed copy, a resized one, or one that is both."""
    image: Image.Image = Image.open(io.BytesIO(original))
    how = rng.integers(3)
    if how:
        scale = rng.uniform(0.5, 2)
        image = image.resize((round(image.width * scale), round(image.height * scale)), FILTERS[rng.integers(3)])
    if how == 1:
        return encode(image, "PNG")
    quality = int(rng.integers(60, 96)) if rng.integers(2) else int(rng.integers(50, 96))
    return encode(image, "WEBP", quality=max(quality, 60)) if rng.integers(2) else encode(image, "JPEG", quality=quality)


def enlarged(original: bytes, rng: np.random.Generator) -> bytes:
    """Return the same digit at twice its size."""
    image = Image.open(io.BytesIO(original))
    return encode(image.resize((image.width * 2, image.height * 2), FILTERS[rng.integers(3)]), "BMP")


def digits() -> list[bytes]:
    images = load_digits().images
    return [encode(Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)), "PNG") for image in images]


def looks(files: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    seen = [look(decode_image(data, min_decode_side=LOOK_SIDE)) for data in files]
    return np.array([int(text, 16) for text, _ in seen], np.uint64), np.stack([thumb.ravel() for _, thumb in seen])


def measure(name: str, originals: Sequence[bytes], copies: Sequence[bytes]) -> None:
    left, right = looks(copies), looks(originals)
    found = pd.concat(near_duplicates(*left, *right))
    hits = int((found["left"] == found["right"]).sum())
    false = len(found) - hits
    among = pd.concat(near_duplicates(*right, *right))
    strangers = int((among["left"] < among["right"]).sum())
    print(
        f"{name:<20} {len(originals):>6,} strangers, {len(copies):>6,} copies: recall {hits / len(copies):.4f}"
        f"  precision {hits / max(len(found), 1):.4f} ({false} false pairs);"
        f" strangers taken for copies of each other: {strangers} of {len(originals) * (len(originals) - 1) // 2:,} pairs"
    )


def exact(files: Sequence[bytes]) -> None:
    planted = list(files) + list(files)
    keys = [sha256_bytes(data) for data in planted]
    found = sum(keys.count(key) == 2 for key in keys[: len(files)])
    print(f"exact                {len(files):>6,} copies planted: recall {found / len(files):.4f}")


def speed(count: int) -> None:
    """Measure how long the comparison takes for a large set, 70 % of it in train."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, count).astype(np.uint64)
    thumbs = rng.integers(0, 256, (count, 192)).astype(np.uint8)
    part = int(0.7 * count)
    start = time.monotonic()
    for _ in near_duplicates(hashes[:part], thumbs[:part], hashes[part:], thumbs[part:], resolve_workers("auto")):
        pass
    print(f"speed                {count:,} images, 30 % of them in valid and test: {time.monotonic() - start:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.duplicates")
    parser.add_argument("--each", type=int, default=60, help="the most crops of each picture")
    options = parser.parse_args()
    for seed in range(3):
        photos = crops(options.each, seed)
        measure("photos", photos, [photo_copy(data, np.random.default_rng([seed, i])) for i, data in enumerate(photos)])
    eights = digits()
    measure("digits, other format", eights, [encode(Image.open(io.BytesIO(data)), "BMP") for data in eights])
    measure("digits, enlarged", eights, [enlarged(data, np.random.default_rng(i)) for i, data in enumerate(eights)])
    exact(photos + eights)
    speed(100_000)


if __name__ == "__main__":
    main()
