"""From manifest rows to blocks of activations, in a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.activations.engine import Engine
from headstart.core.errors import InputError
from headstart.data.images import ImageSource, chunks, ordered_map

Block = tuple[list[str], list[int], NDArray[Any]]
DTYPES = {"float32": "float32", "bfloat16": "float16"}  # 16 bits are enough for what was computed in 16


def compute_blocks(
    engine: Engine, images: ImageSource, files: Sequence[tuple[str, str]], *, views: int, workers: int
) -> Iterator[Block]:
    """Compute activations block by block, one block a batch of the engine.

    Args:
        engine: the frozen body.
        images: where the files are.
        files: (path, key) pairs; rows come in this order, all views of an image together.
        views: K, augmented views besides the plain one.
        workers: threads that decode.

    Yields:
        keys, views, activations [n, d]; memory holds a few batches whatever the number of images.

    Raises:
        InputError: an image changed, or activations that are not finite.
    """

    def load(file: tuple[str, str]) -> list[tuple[str, int, torch.Tensor]]:
        path, key = file
        return [(key, view, image) for view, image in enumerate(images.views(path, key, views))]

    size = engine.plan.batch_size
    dtype = np.dtype(DTYPES[engine.plan.precision])
    loaded = ordered_map(load, files, workers, ahead=2 * max(workers, -(-size // (1 + views))))
    for rows in chunks((row for image in loaded for row in image), size):
        keys, numbers, inputs = zip(*rows, strict=True)
        with np.errstate(over="ignore"):
            x_nd = engine(torch.stack(inputs)).numpy().astype(dtype)
        if not np.isfinite(x_nd).all():
            raise InputError(
                f"activations of image {keys[0][:12]}… and its neighbours are not finite in {dtype}",
                fix="set precompute.precision: float32, or check backbone.weights",
            )
        yield list(keys), list(numbers), x_nd
