"""The data sets that accuracy is measured on, and how seeds divide them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.core.files import sha256_bytes
from headstart.images.transforms import Augmentation

PHOTOS = Augmentation("side_on", True, 10, 1.1, 0.05)  # as in the fast.ai lesson
DIGITS = Augmentation("side_on", False, 10, 1.1, 0.1)  # as in params.yaml


@dataclass(frozen=True)
class Set:
    """A data set and how much of it trains.

    Args:
        trains: numbers of training images to try; 15 % of the rest are for validation, the others for the test.
    """

    name: str
    size: int
    augmentation: Augmentation
    trains: tuple[int, ...]
    write: Callable[[Path], None]


def write_digits(folder: Path) -> None:
    """Write the 1,797 digits."""
    from headstart.datasets.digits import write_digits

    write_digits(folder)


def write_textures(folder: Path, each: int = 60) -> None:
    """Write crops of 160 x 160 of scikit-image's photos and textures; the class is the picture that a crop comes from.

    Crops named l… come from the left part of a picture and r… from the right one, so that the two share no pixel.
    """
    from PIL import Image
    from skimage import data

    names = (
        "astronaut",
        "brick",
        "camera",
        "cat",
        "coffee",
        "grass",
        "gravel",
        "hubble_deep_field",
        "immunohistochemistry",
        "rocket",
    )
    rng = np.random.default_rng(0)
    for name in names:
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        (folder / name).mkdir()
        border = int(picture.width * 0.5)
        for number in range(each):
            part, low, high = ("l", 0, border - 160) if number % 2 else ("r", border, picture.width - 160)
            left, top = int(rng.integers(low, max(low, high) + 1)), int(rng.integers(0, picture.height - 160))
            crop = picture.crop((left, top, left + 160, top + 160))
            crop.save(folder / name / f"{part}{number:03}.png")


def divide(files: list[tuple[str, str]], train: int, seed: int) -> dict[str, list[int]]:
    """Divide files into training, validation and test rows by a hash of seed and key; left and right parts stay apart."""
    order = sorted(range(len(files)), key=lambda i: sha256_bytes(f"{seed} {files[i][1]}".encode()))
    sided = [Path(path).name[0] for path, _ in files]
    learn = [i for i in order if sided[i] != "r"]
    rest = [i for i in order if sided[i] == "r"] or learn[train:]
    cut = round(0.15 * len(rest))
    return {"train": learn[:train], "valid": rest[:cut], "test": rest[cut:]}


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % t-interval of the mean of paired differences."""
    from scipy import stats

    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
    return statistics.mean(differences) - half, statistics.mean(differences) + half
