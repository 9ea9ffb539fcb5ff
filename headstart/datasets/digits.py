"""Data sets made from scikit-learn's handwritten digits (UCI, 1,797 images of 8 x 8 pixels, 17 grays), offline.

Every choice is keyed on a fixed seed, so that a set is the same on every machine.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.seeds import share_and_fold, view_generator

SEED = 0
SIDE = 8
PAGE_CELL = 12  # pixels of a page's quarter: a digit and room to move
ROUNDS = 4  # pages that each digit is on
TURN = 60.0  # degrees, either way
ENLARGED = 64  # pixels of a side before an image is turned
SPLITS = (("test", 0.2), ("valid", 0.3), ("train", 1.0))  # up to this share


def write_digits(folder: Path) -> int:
    """Write the digits as PNG class folders, and return their number."""
    images, labels = _digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(pixels).save(folder / str(label) / f"{number:04}.png")
    return len(labels)


def write_digit_pages(folder: Path) -> int:
    """Write pages with 2 to 4 digits in the quarters of a square, and labels.csv: which digits a page has.

    Each digit belongs to one split and is on `ROUNDS` pages of it, so no digit is in two splits.

    Returns:
        The number of pages.
    """
    images, labels = _digits()
    rows: list[Sequence[Any]] = [("path", "tags", "split")]
    (folder / "pages").mkdir(parents=True)
    for split, members in _by_split(len(images)).items():
        for chosen in _handfuls(split, members):
            path = f"pages/{len(rows) - 1:05}.png"
            Image.fromarray(_page(images[chosen], path)).save(folder / path)
            rows.append((path, " ".join(sorted({str(label) for label in labels[chosen]})), split))
    _write_csv(folder / "labels.csv", rows)
    return len(rows) - 1


def write_turned_digits(folder: Path) -> int:
    """Write each digit turned by a random angle of up to 60 degrees either way, and labels.csv with the angle.

    An angle above zero is counter-clockwise. A digit is enlarged eight times (bicubic) before it is turned.

    Returns:
        The number of images.
    """
    images, _ = _digits()
    rows: list[Sequence[Any]] = [("path", "label")]
    (folder / "images").mkdir(parents=True)
    for number, pixels in enumerate(images):
        angle = round(float(view_generator(SEED, "turned", number).uniform(-TURN, TURN)), 1)
        large = Image.fromarray(pixels).resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC)
        path = f"images/{number:04}.png"
        large.rotate(angle, Image.Resampling.BICUBIC).save(folder / path)
        rows.append((path, angle))
    _write_csv(folder / "labels.csv", rows)
    return len(images)


def write_two_notations(folder: Path) -> int:
    """Write each digit once, and labels.csv with a column `notation` that says what the digit means.

    With the notation "plain" the label is the digit; with "complement" it is 9 minus the digit. The notation is drawn at
    random for each image. So the image alone leaves two labels, and the column alone says nothing about the label.

    Returns:
        The number of images.
    """
    images, digits = _digits()
    rows: list[Sequence[Any]] = [("path", "label", "notation")]
    (folder / "images").mkdir(parents=True)
    for number, (pixels, digit) in enumerate(zip(images, digits.tolist(), strict=True)):
        plain = bool(view_generator(SEED, "notation", number).integers(2))
        path = f"images/{number:04}.png"
        Image.fromarray(pixels).save(folder / path)
        rows.append((path, digit if plain else 9 - digit, "plain" if plain else "complement"))
    _write_csv(folder / "labels.csv", rows)
    return len(images)


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images [n, 8, 8] with grays from 0 to 255, and their digits [n]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target


def _by_split(count: int) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of the digits in each split, by a hash."""
    shares = np.array([share_and_fold(SEED, f"digit {number}", 2)[0] for number in range(count)])
    found, start = {}, 0.0
    for split, end in SPLITS:
        found[split] = np.flatnonzero((shares >= start) & (shares < end))
        start = end
    return found


def _handfuls(split: str, members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield 2 to 4 members at a time; each comes in every round once (but for fewer than 2 at a round's end)."""
    for turn in range(ROUNDS):
        generator = view_generator(SEED, "pages", split, turn)
        order, start = generator.permutation(members), 0
        while len(order) - start >= 2:
            size = int(generator.integers(2, 5))
            yield order[start : start + size]
            start += size


def _page(digits: NDArray[np.uint8], path: str) -> NDArray[np.uint8]:
    """Return a page [24, 24] with each digit in a quarter of its own, a few pixels from the quarter's corner."""
    generator = view_generator(SEED, "page", path)
    page = np.zeros((2 * PAGE_CELL, 2 * PAGE_CELL), np.uint8)
    for quarter, digit in zip(generator.permutation(4), digits, strict=False):
        y, x = PAGE_CELL * np.array(divmod(int(quarter), 2)) + generator.integers(0, PAGE_CELL - SIDE + 1, 2)
        page[y : y + SIDE, x : x + SIDE] = digit
    return page


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)
