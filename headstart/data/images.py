"""From the manifest's rows to the network's input; each image is checked to be what the manifest says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.core.parallel import ordered_map
from headstart.data.reading import read_pixels
from headstart.data.transforms import Augmentation, Preprocessing, augmented_view, plain_view, view_generator

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class ImageSource:
    """A source folder's images, and how a file of it becomes the network's input.

    Args:
        folder: what the manifest's paths are relative to.
        max_pixels: larger images are refused.
        preprocessing: size, crop, interpolation.
        augmentation: what a view may do.
        seed: views depend on it and on the image's bytes.
    """

    folder: Path
    max_pixels: int
    preprocessing: Preprocessing
    augmentation: Augmentation
    seed: int

    def plain(self, path: str, key: str) -> torch.Tensor:
        """The plain view [3, s, s] uint8 of the file with SHA-256 `key`."""
        return plain_view(self._pixels(path, key), self.preprocessing)

    def views(self, path: str, key: str, count: int) -> list[torch.Tensor]:
        """The plain view and `count` augmented ones, decoded once; view v depends on bytes, seed and v alone."""
        pixels = self._pixels(path, key)
        augmented = [self._augment(pixels, key, "view", view) for view in range(1, count + 1)]
        return [plain_view(pixels, self.preprocessing), *augmented]

    def augmented(self, path: str, key: str, epoch: int) -> torch.Tensor:
        """A view for one epoch of training; it depends on bytes, seed and epoch alone."""
        return self._augment(self._pixels(path, key), key, "epoch", epoch)

    def _pixels(self, path: str, key: str) -> NDArray[np.uint8]:
        return read_pixels(self.folder, path, key, self.max_pixels)

    def _augment(self, pixels: NDArray[np.uint8], key: str, kind: str, number: int) -> torch.Tensor:
        rng = view_generator(self.seed, kind, key, number)
        return augmented_view(pixels, self.preprocessing, self.augmentation, rng)


def image_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """`ordered_map` with torch kept to one thread in each worker, so that workers do not crowd each other out."""
    return ordered_map(function, items, workers, ahead, partial(torch.set_num_threads, 1))
