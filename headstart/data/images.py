"""Read images in worker threads, in order, with bounded memory; check that each is what the manifest says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.core.errors import InputError
from headstart.core.files import sha256_bytes
from headstart.data.decode import DecodeError, decode
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


def read_pixels(source: Path, path: str, key: str, max_pixels: int) -> NDArray[np.uint8]:
    """Read and decode `source / path`, whose bytes must still have the hash `key`.

    Returns:
        [h, w, 3] uint8.

    Raises:
        InputError: the file is gone, changed, or cannot be decoded any more.
    """
    relink = "python -m flows.pipeline --force link_data"
    try:
        data = (source / path).read_bytes()
    except OSError as error:
        raise InputError(f"{source / path}: {error.strerror}, though the manifest lists it", fix=relink) from None
    if sha256_bytes(data) != key:
        raise InputError(f"{source / path}: its bytes changed since the manifest was made", fix=relink)
    try:
        return decode(data, max_pixels)
    except DecodeError as error:
        raise InputError(f"{source / path}: {error}, though it was readable before", fix=relink) from None


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, ahead: int) -> Iterator[B]:
    """`map` over threads: results in order, at most `ahead` of them in memory at once.

    Each worker keeps torch to one thread, so that workers do not crowd each other out.
    """
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def chunks(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    chunk: list[A] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
