"""Test images whose activations are very similar to a training image's: possible leaks that no image hash finds.

Such a pair may be a rotated, cropped or mirrored copy, two frames of a video, or the same object twice. Only people can
judge that, so the pairs are listed and no image is excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch.nn import functional

from headstart.activations.store import Activations

COSINE = 0.93  # no two digits reach it; half of all recompressed photos do, and a fifth of rotated and cropped ones
BLOCK = 4096
NO_PAIRS = pd.DataFrame(columns=["path", "label", "like", "like_label", "cosine"])


def look_alikes(test_md: torch.Tensor, train_blocks: Callable[[], Iterator[torch.Tensor]]) -> list[tuple[int, int, float]]:
    """Find test rows whose nearest training row is unusually similar.

    Args:
        test_md: activations of the base view, [m, d].
        train_blocks: called twice (for the mean, then to compare); yields the training rows [b, d] in order.

    Returns:
        (test row, training row, cosine) with a cosine of at least `COSINE`, most similar first. The cosine is between
        activations minus the training mean.
    """
    total, count = torch.zeros(test_md.shape[1], dtype=torch.float64), 0
    for block in train_blocks():
        total, count = total + block.double().sum(0), count + len(block)
    mean = (total / count).float()
    test = functional.normalize(test_md - mean)
    best, nearest, start = torch.full((len(test),), -2.0), torch.zeros(len(test), dtype=torch.long), 0
    for block in train_blocks():
        cosine, row = (test @ functional.normalize(block - mean).T).max(1)
        nearer = cosine > best
        best, nearest = torch.where(nearer, cosine, best), torch.where(nearer, row + start, nearest)
        start += len(block)
    rows = [(i, int(nearest[i]), round(float(best[i]), 4)) for i in torch.nonzero(best >= COSINE).flatten().tolist()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def look_alike_pairs(activations: Activations, train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return a table of look-alikes with columns path, label, like, like_label and cosine; `like` is the training image.

    Args:
        activations: of all images.
        train, test: the manifest's rows to compare, each image once.
    """

    def blocks() -> Iterator[torch.Tensor]:
        return activations.blocks(list(train["key"]), BLOCK)

    rows = [
        (test["path"][i], test["label"][i], train["path"][j], train["label"][j], cosine)
        for i, j, cosine in look_alikes(activations.rows(list(test["key"])), blocks)
    ]
    return pd.DataFrame(rows, columns=list(NO_PAIRS.columns))
