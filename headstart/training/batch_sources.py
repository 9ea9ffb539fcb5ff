"""Sources of a phase's batches: images, decoded and augmented as needed, or cached maps of the network's frozen front.

Shape legend: n images in a batch; f, h, w of a map; s the network's input side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from headstart.core.parallel import chunks
from headstart.images.loader import image_map
from headstart.images.preprocessing import Preprocessing, normalise
from headstart.seeds import derive_seed
from headstart.training.activation_dataset import ActivationDataset, epoch_batches
from headstart.training.loop import Batch
from headstart.training.optimizers import epoch_order
from headstart.training.options import Options
from headstart.training.schedules import steps_per_epoch


@dataclass(frozen=True)
class BatchSource:
    """A source of inputs for a phase.

    Args:
        after: the layer group whose cached map gives the inputs; None for images.
        batches: takes an epoch, the seed of its order, the batch size, whether to balance classes, and the number of
            the first batch, and returns the batches.
        valid: returns the validation inputs in order.
        example: returns one or two inputs.
        digest: the digest of the cached maps; empty for images.
    """

    after: str | None
    batches: Callable[[int, int, int, bool, int], Iterator[Batch]]
    valid: Callable[[], Iterator[torch.Tensor]]
    example: Callable[[], torch.Tensor]
    digest: str = ""


def image_batches(
    items: Sequence[int],
    load: Callable[[int], torch.Tensor],
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Load images in order, in threads, and normalise them in batches.

    A GPU trains while the next images are loaded. On a CPU training and loading take turns: both use all cores, and running
    them at the same time takes longer than running one after the other.

    Args:
        items: arguments for `load`.
        load: returns an item's image [3, s, s] uint8.

    Yields:
        [n, 3, s, s] float32 on `device`.
    """
    batches: Iterator[Iterable[torch.Tensor]]
    if device.type == "cpu":
        batches = (image_map(load, part, workers, ahead=len(part)) for part in chunks(items, batch_size))
    else:
        batches = chunks(image_map(load, items, workers, ahead=2 * batch_size), batch_size)
    for batch in batches:
        yield normalise(torch.stack(list(batch)).to(device), preprocessing)


def from_images(
    train: tuple[Callable[[int, int], torch.Tensor], torch.Tensor],
    valid: tuple[Callable[[int], torch.Tensor], torch.Tensor],
    preprocessing: Preprocessing,
    workers: int,
    device: torch.device,
) -> BatchSource:
    """Return a source that decodes and augments images as they are needed.

    It drops a last batch of one image, because batch norm cannot normalise it.

    Args:
        train: a function from (epoch, row) to an augmented image [3, s, s] uint8, and the class indices [n].
        valid: a function from a row to the image's base view, and the class indices [m].
    """
    (load, y_n), (load_valid, y_valid) = train, valid

    def batches(epoch: int, seed: int, batch_size: int, balance: bool, first: int) -> Iterator[Batch]:
        order = epoch_order(y_n, balance, torch.Generator().manual_seed(seed))
        order = order[first * batch_size : batch_size * steps_per_epoch(len(y_n), batch_size)]
        images = image_batches(order.tolist(), lambda row: load(epoch, row), preprocessing, batch_size, workers, device)
        parts = order.split(batch_size) if len(order) else ()
        return ((x, y_n[part].to(device), part) for x, part in zip(images, parts, strict=True))

    def base_views() -> Iterator[torch.Tensor]:
        return image_batches(range(len(y_valid)), load_valid, preprocessing, 64, workers, device)

    return BatchSource(None, batches, base_views, lambda: next(image_batches([0], load_valid, preprocessing, 1, 1, device)))


def from_feature_maps(
    after: str, train: ActivationDataset, valid: ActivationDataset, device: torch.device, digest: str = ""
) -> BatchSource:
    """Return a source of the frozen front's cached maps [n, f, h, w]; each epoch draws one view of every image."""

    def to(x: torch.Tensor) -> torch.Tensor:
        x = x.to(device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def batches(epoch: int, seed: int, batch_size: int, balance: bool, first: int) -> Iterator[Batch]:
        for x, y, rows in epoch_batches(train, batch_size, seed, balance=balance, first=first):
            yield to(x), y.to(device), rows

    def base_views() -> Iterator[torch.Tensor]:
        return (to(part) for x in valid.base_views() for part in x.split(64))

    first = torch.zeros(1, dtype=torch.int64)
    return BatchSource(after, batches, base_views, lambda: to(train.take(first, first)), digest)


def endless(source: BatchSource, options: Options, seed: int) -> Iterator[Batch]:
    """Yield batches epoch after epoch, for the range test; its views differ from those of every training epoch."""
    balance = options.balance == "sampling"
    return itertools.chain.from_iterable(
        source.batches(-1 - epoch, derive_seed(seed, "order", epoch), options.batch_size, balance, 0)
        for epoch in itertools.count()
    )
