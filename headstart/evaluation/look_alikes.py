"""Test images that look, to the backbone, much like a training image: a hint of leaks that no image hash finds.

A turned, cropped or mirrored copy, the next frame of a video, the same object again: only people can tell, so
these are listed and nothing is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch.nn import functional

from headstart.activations.store import Activations

COSINE = 0.93  # no two digits reach it; half of recompressed, a fifth of turned and cropped photos do
BLOCK = 4096


def look_alikes(test_md: torch.Tensor, train_blocks: Callable[[], Iterator[torch.Tensor]]) -> list[tuple[int, int, float]]:
    """Test rows whose nearest training row is unusually near.

    Args:
        test_md: activations of the plain view, [m, d].
        train_blocks: called twice (for the mean, then to compare); yields the training rows [b, d] in order.

    Returns:
        (test row, training row, cosine of the activations less the training mean) of at least `COSINE`, nearest first.
    """
    total, count = torch.zeros(test_md.shape[1], dtype=torch.float64), 0
    for block in train_blocks():
        total, count = total + block.double().sum(0), count + len(block)
    mean = (total / count).float()
    test = functional.normalize(test_md - mean)
    best, place, start = torch.full((len(test),), -2.0), torch.zeros(len(test), dtype=torch.long), 0
    for block in train_blocks():
        cosine, row = (test @ functional.normalize(block - mean).T).max(1)
        nearer = cosine > best
        best, place = torch.where(nearer, cosine, best), torch.where(nearer, row + start, place)
        start += len(block)
    rows = [(i, int(place[i]), round(float(best[i]), 4)) for i in torch.nonzero(best >= COSINE).flatten().tolist()]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def look_alike_pairs(activations: Activations, train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Test images that look much like a training image to the backbone: path, label, like, like_label, cosine.

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
    return pd.DataFrame(rows, columns=["path", "label", "like", "like_label", "cosine"])
