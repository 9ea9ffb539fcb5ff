"""From manifest rows to blocks of activations, in a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.activations.engine import Engine
from headstart.core.errors import InputError
from headstart.core.parallel import chunks
from headstart.data.images import ImageSource, image_map

Block = tuple[list[str], list[int], NDArray[Any]]
DTYPES = {"float32": "float32", "bfloat16": "float16"}  # 16 bits are enough for what was computed in 16


def compute_blocks(
    engine: Engine, images: ImageSource, files: Sequence[tuple[str, str]], *, views: int, workers: int
) -> Iterator[Block]:
    """Compute activations block by block, one block a batch of the engine.

    Each worker decodes a batch's files and runs the engine on them, all in one thread: the cores never wait
    for each other inside an operation, and the activations do not depend, to the bit, on their number.

    Args:
        engine: the frozen body.
        images: where the files are.
        files: (path, key) pairs; rows come in this order, all views of an image together.
        views: K, augmented views besides the plain one.
        workers: threads that decode and compute.

    Yields:
        keys, views, activations [n, d]; memory holds a few batches whatever the number of images.

    Raises:
        InputError: an image changed, or activations that are not finite.
    """
    size = engine.plan.batch_size
    dtype = np.dtype(DTYPES[engine.plan.precision])

    def compute(part: list[tuple[str, str]]) -> list[Block]:
        loaded = [images.views(path, key, views) for path, key in part]
        rows = [(key, view, image) for (_, key), seen in zip(part, loaded, strict=True) for view, image in enumerate(seen)]
        return [block(batch) for batch in chunks(rows, size)]

    def block(rows: list[tuple[str, int, torch.Tensor]]) -> Block:
        keys, numbers, inputs = zip(*rows, strict=True)
        with np.errstate(over="ignore"):
            x_nd = engine(torch.stack(inputs)).numpy().astype(dtype)
        if not np.isfinite(x_nd).all():
            raise InputError(
                f"activations of image {keys[0][:12]}… and its neighbours are not finite in {dtype}",
                fix="set precompute.precision: float32, or check backbone.weights",
            )
        return list(keys), list(numbers), x_nd

    for blocks in image_map(compute, chunks(files, size), workers, ahead=2 * workers):
        yield from blocks
