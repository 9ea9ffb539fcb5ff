"""Cached activations as training data: rows from memory-mapped files, without reading any image.

Shape legend: v views (the base view first), n images, m rows taken at once; f, h, w of a map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from headstart.activations.inputs import HeadInputs
from headstart.activations.store import Activations
from headstart.seeds import derive_seed
from headstart.training.loop import Batch
from headstart.training.optimizers import epoch_order
from headstart.training.options import Options

TAKE = 8192  # largest number of rows to gather at once
TAKE_VALUES = 1 << 25  # largest number of values to gather at once, for large rows


@dataclass(frozen=True)
class ActivationDataset:
    """Activations and labels of some images, which need not be in memory.

    Args:
        take: maps images [m] and views [m] (int64) to activations [m, ...] float32.
        views: v.
        y: encoded labels, [n] or [n, c].
        most: the largest number of rows to take at once.
        weights_n: weights to draw the images of an epoch by; None takes each once.
    """

    take: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    views: int
    y: torch.Tensor
    most: int = TAKE
    weights_n: torch.Tensor | None = None

    def base_views(self) -> Iterator[torch.Tensor]:
        """Yield the base views of all images, up to `most` at a time."""
        for images in torch.arange(len(self.y)).split(self.most):
            yield self.take(images, torch.zeros_like(images))


def activations_of(
    activations: Activations, keys: Iterable[str], y: torch.Tensor, weights_n: torch.Tensor | None = None
) -> ActivationDataset:
    """Return a dataset of the images with these keys, read from the mapped files; maps keep their shape [f, h, w].

    Args:
        y, weights_n: see `ActivationDataset`.
    """
    located = activations.locate(list(keys))
    shape = tuple(activations.meta["shape"])

    def take(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        return activations.gather(located[images.numpy()] + views.numpy()).reshape(len(images), *shape)

    return ActivationDataset(take, activations.views, y, _most(activations.width), weights_n)


def inputs_of(
    inputs: HeadInputs, keys: Iterable[str], y: torch.Tensor, weights_n: torch.Tensor | None = None
) -> ActivationDataset:
    """Return a dataset of a head's inputs: activations, columns, or both; see `activations_of`."""
    return ActivationDataset(inputs.reader(keys), inputs.views, y, _most(inputs.row_width), weights_n)


def _most(width: int) -> int:
    return max(1, min(TAKE, TAKE_VALUES // width))


def epoch_batches(data: ActivationDataset, batch_size: int, seed: int, *, first: int = 0, members: int = 1) -> Iterator[Batch]:
    """Yield one epoch in random order, with one randomly drawn view of each image.

    Each of s members of a head has an order of its own; a batch then has s parts of `batch_size` rows, one after the other.

    It drops a last batch of one row, because batch norm cannot normalise it.

    Args:
        first: number of batches to skip at the beginning.
    """
    y, generator = data.y, torch.Generator().manual_seed(seed)
    order_sn = torch.stack([epoch_order(len(y), data.weights_n, generator) for _ in range(members)])
    views_sn = torch.randint(data.views, order_sn.shape, generator=generator)
    order_sn, views_sn = order_sn[:, first * batch_size :], views_sn[:, first * batch_size :]
    if not order_sn.numel():
        return
    at_once = batch_size * max(1, data.most // (members * batch_size))  # several batches: each call has a fixed cost
    for images, chosen in zip(order_sn.split(at_once, 1), views_sn.split(at_once, 1), strict=True):
        x = data.take(images.flatten(), chosen.flatten()).unflatten(0, images.shape)
        for x_sb, part in zip(x.split(batch_size, 1), images.split(batch_size, 1), strict=True):
            if part.shape[1] > 1 or len(y) == 1:
                rows = part.flatten()
                yield x_sb.flatten(0, 1), y[rows], rows


def endless(data: ActivationDataset, options: Options, seed: int, members: int = 1) -> Iterator[Batch]:
    """Yield shuffled batches epoch after epoch, for the range test; see `epoch_batches`."""
    return itertools.chain.from_iterable(
        epoch_batches(data, options.batch_size, derive_seed(seed, "order", epoch), members=members)
        for epoch in itertools.count()
    )
