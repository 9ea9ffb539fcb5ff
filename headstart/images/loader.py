"""Load the manifest's images as network input, and check that each is the one that the manifest lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from headstart.core.parallel import ordered_map
from headstart.images.preprocessing import Preprocessing
from headstart.images.reading import read_pixels
from headstart.images.transforms import Augmentation, augmented_view, centre, resized
from headstart.seeds import view_generator

A = TypeVar("A")
B = TypeVar("B")
RESIZED_CACHE_BYTES = 1 << 30


class ResizedImageCache:
    """A cache of the first resized images, up to a number of bytes, so that later epochs need not decode them again."""

    def __init__(self, most: int) -> None:
        self.room = most
        self.images: dict[tuple[str, int], torch.Tensor] = {}
        self.lock = threading.Lock()

    def add(self, name: tuple[str, int], image: torch.Tensor) -> None:
        """Keep an image if there is room."""
        with self.lock:
            if name not in self.images and image.nbytes <= self.room:
                self.images[name] = image
                self.room -= image.nbytes


@dataclass(frozen=True)
class ImageSource:
    """The images of a source folder, and how each becomes the network's input.

    Args:
        folder: the folder that the manifest's paths are relative to.
        max_pixels: larger images are refused.
        preprocessing: size, crop, interpolation.
        augmentation: the augmentation of views.
        seed: the seed of views, which also depend on the image's bytes.
        cache: keeps images that are read more than once, as in training; empty by default. Sources that differ only in
            size may share it.
    """

    folder: Path
    max_pixels: int
    preprocessing: Preprocessing
    augmentation: Augmentation
    seed: int
    cache: ResizedImageCache = field(default_factory=partial(ResizedImageCache, 0), compare=False, repr=False)

    def base_view(self, path: str, key: str) -> torch.Tensor:
        """Return the base view (the centre crop) [3, s, s] uint8 of the file with SHA-256 `key`."""
        return centre(self._resized(path, key), self.preprocessing)

    def views(self, path: str, key: str, numbers: Iterable[int]) -> Iterator[torch.Tensor]:
        """Yield the views of these numbers, decoded once: 0 is the base view, view v depends only on bytes, seed and v."""
        image = self._resized(path, key)
        for number in numbers:
            yield self._augment(image, key, "view", number) if number else centre(image, self.preprocessing)

    def augmented(self, path: str, key: str, epoch: int) -> torch.Tensor:
        """Return a view for one epoch of training; it depends only on bytes, seed and epoch."""
        return self._augment(self._resized(path, key), key, "epoch", epoch)

    def _resized(self, path: str, key: str) -> torch.Tensor:
        name = key, self.preprocessing.resized_side  # `key` hashes the bytes: a changed file does no harm
        image = self.cache.images.get(name)
        if image is None:
            p = self.preprocessing
            image = resized(read_pixels(self.folder, path, key, self.max_pixels, p.whites, p.min_decode_side), p)
            self.cache.add(name, image)
        return image

    def _augment(self, image: torch.Tensor, key: str, kind: str, number: int) -> torch.Tensor:
        rng = view_generator(self.seed, kind, key, number)
        return augmented_view(image, self.preprocessing, self.augmentation, rng)


def image_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """Map over threads in order, with torch limited to one thread in each, so that workers do not compete for cores."""
    return ordered_map(function, items, workers, ahead, partial(torch.set_num_threads, 1))


def alone(function: Callable[[], B]) -> B:
    """Call a function as `image_map`'s workers do, with torch limited to one thread, so that it gives the same bits."""
    return next(image_map(lambda _: function(), [None], workers=1, ahead=1))


def open_images(
    folder: Path,
    max_pixels: int,
    preprocessing: Preprocessing,
    augment: Mapping[str, Any],
    seed: int,
    keep_resized: bool = True,
) -> ImageSource:
    """Return a source's images.

    Args:
        augment: params.yaml, section precompute.augment.
        seed: of the augmented views.
        keep_resized: keep resized images in memory, for a caller that reads each several times.
    """
    cache = ResizedImageCache(RESIZED_CACHE_BYTES if keep_resized else 0)
    return ImageSource(folder, max_pixels, preprocessing, Augmentation(**augment), seed, cache)
