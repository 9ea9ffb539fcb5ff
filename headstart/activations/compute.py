"""Compute the rows of activations that the cache lacks, then assemble all rows in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.activations.cache import BLOCK_BYTES, Block, Cache, row_keys, split_blocks, split_row_key
from headstart.activations.engine import Engine
from headstart.core.errors import InputError
from headstart.core.parallel import chunks
from headstart.images.loader import ImageSource, image_map

logger = logging.getLogger("headstart")
File = tuple[str, str]  # path, key
Progress = Callable[[Iterator[int], int, int], Iterator[int]]


@dataclass(frozen=True)
class Filled:
    """Counts of what `fill` found and computed: rows (a row is one view of one image), and images with computed rows."""

    rows: int
    cached: int
    damaged: int
    computed: int
    images: int


def fill(
    cache: Cache,
    engine: Engine,
    images: ImageSource,
    files: Sequence[File],
    *,
    views: int,
    workers: int,
    progress: Progress = lambda done, total, cached: done,
) -> Filled:
    """Compute the rows that are missing or damaged in the cache, and save each batch as soon as it is computed.

    Each worker decodes images and runs the engine on them in a single thread, so that the cores never wait for each other
    inside an operation. If another process computes rows of the same cache, this one waits for it and uses its rows.

    Args:
        files: (path, key) of each image.
        views: K, the number of augmented views besides the base view.
        workers: threads that decode and compute.
        progress: wraps the numbers of rows done, as (numbers, rows to compute, rows cached).

    Raises:
        InputError: an image changed, activations are not finite, or the disk is full.
    """
    wanted = row_keys([key for _, key in files], range(1 + views))
    missing, damaged = _missing(cache, wanted)
    if damaged:
        logger.warning("  %s damaged rows in the activations cache are computed again", f"{damaged:,}")
    if not missing.any():
        return Filled(len(wanted), len(wanted), 0, 0, 0)
    with cache.writing():
        again, _ = _missing(cache, wanted[missing])
        missing[missing] = again
        if missing.any():
            _compute(cache, engine, images, files, missing.reshape(len(files), 1 + views), workers, progress)
    computed, images_computed = int(missing.sum()), int(missing.reshape(len(files), -1).any(1).sum())
    return Filled(len(wanted), len(wanted) - computed, damaged, computed, images_computed)


def _missing(cache: Cache, wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.bool_], int]:
    """Return which rows are missing from the cache or damaged, and how many are damaged."""
    rows = cache.find(wanted)
    missing: NDArray[np.bool_] = rows < 0
    present = np.flatnonzero(~missing)
    for part in split_blocks(present, cache.row_bytes):
        missing[part] = ~cache.read(rows[part])[1]
    return missing, int(missing[present].sum())


def _compute(
    cache: Cache,
    engine: Engine,
    images: ImageSource,
    files: Sequence[File],
    missing: NDArray[np.bool_],
    workers: int,
    progress: Progress,
) -> None:
    work = [(path, key, np.flatnonzero(lost).tolist()) for (path, key), lost in zip(files, missing, strict=True) if lost.any()]
    size = engine.plan.batch_size

    def compute(part: list[tuple[str, str, list[int]]]) -> list[int]:
        loaded = (
            ((key, view), image)
            for path, key, views in part
            for view, image in zip(views, images.views(path, key, views), strict=True)
        )
        return [keep(batch) for batch in chunks(loaded, size)]

    def keep(batch: list[tuple[tuple[str, int], torch.Tensor]]) -> int:
        names, inputs = zip(*batch, strict=True)
        values = engine_rows(engine, names, torch.stack(inputs))
        cache.append([row_keys([key], [view])[0] for key, view in names], values)
        return len(batch)

    def done() -> Iterator[int]:
        for counts in image_map(compute, chunks(work, size), workers, ahead=2 * workers):
            yield from counts

    for _ in progress(done(), int(missing.sum()), int((~missing).sum())):
        pass


def engine_rows(engine: Engine, names: Sequence[tuple[str, int]], images: torch.Tensor) -> NDArray[np.uint8]:
    """Compute the rows of images [n, 3, s, s] uint8 as they are stored: [n, b] bytes.

    Raises:
        InputError: activations are not finite; the message names the image.
    """
    with np.errstate(over="ignore"):
        x_nd = engine(images).flatten(1).numpy().astype(engine.plan.storage)
    finite = np.isfinite(x_nd).all(axis=1)
    if not finite.all():
        key, view = names[int(finite.argmin())]
        raise InputError(
            f"the activations of image {key[:12]}…, view {view}, are not finite in {engine.plan.storage}",
            fix="--set precompute.storage=float32 precompute.precision=float32, or check backbone.weights",
        )
    return np.ascontiguousarray(x_nd).view(np.uint8)


def assemble(cache: Cache, keys: Sequence[str], views: int) -> Iterator[Block]:
    """Yield all views of all images as blocks of rows, in the order of `keys`; an image's views stay in one block.

    Raises:
        InputError: a row is missing, or has been damaged since `fill`.
    """
    step = max(1, BLOCK_BYTES // (cache.row_bytes * (1 + views)))
    for start in range(0, len(keys), step):
        wanted = row_keys(keys[start : start + step], range(1 + views))
        rows = cache.find(wanted)
        values, sound = cache.read(rows)
        sound &= rows >= 0
        if not sound.all():
            key, view = split_row_key(wanted[int(sound.argmin())])
            raise InputError(
                f"{cache.folder}: the row of image {key[:12]}…, view {view} was damaged during the run", fix="run again"
            )
        yield Block(wanted, cache.entries["checksum"][rows], values)
