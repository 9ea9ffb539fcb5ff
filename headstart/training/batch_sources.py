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

Input = torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # images or maps, with encoded columns if there are any
Columns = tuple[torch.Tensor, torch.Tensor]  # encoded columns [n, m + k] of the training and the validation rows
VALID_BATCH = 64


@dataclass(frozen=True)
class BatchSource:
    """A source of inputs for a phase.

    Args:
        after: the layer group whose cached map gives the inputs; None for images.
        batches: takes an epoch, the seed of its order, the batch size, and the number of the first batch, and returns the
            batches.
        valid: returns the validation inputs in order.
        example: returns one or two inputs.
        digest: the digest of the cached maps; empty for images.
    """

    after: str | None
    batches: Callable[[int, int, int, int], Iterator[Batch]]
    valid: Callable[[], Iterator[Input]]
    example: Callable[[], Input]
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


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on.

    Args:
        load: maps (epoch, row) to an augmented image [3, s, s] uint8.
        y: encoded labels, [n] or [n, c].
        weights_n: weights to draw the images of an epoch by; None takes each once.
    """

    load: Callable[[int, int], torch.Tensor]
    y: torch.Tensor
    weights_n: torch.Tensor | None = None


def from_images(
    train: TrainingImages,
    valid: tuple[Callable[[int], torch.Tensor], int],
    preprocessing: Preprocessing,
    workers: int,
    device: torch.device,
    columns: Columns | None = None,
) -> BatchSource:
    """Return a source that decodes and augments images as they are needed.

    It drops a last batch of one image, because batch norm cannot normalise it.

    Args:
        valid: a function from a row to the image's base view, and the number of rows.
        columns: encoded columns of the training and the validation rows; with them, x is (images, columns).
    """
    y, (load_valid, valid_rows) = train.y, valid
    train_columns, valid_columns = columns or (None, None)

    def batches(epoch: int, seed: int, batch_size: int, first: int) -> Iterator[Batch]:
        order = epoch_order(len(y), train.weights_n, torch.Generator().manual_seed(seed))
        order = order[first * batch_size : batch_size * steps_per_epoch(len(y), batch_size)]
        images = image_batches(order.tolist(), lambda row: train.load(epoch, row), preprocessing, batch_size, workers, device)
        parts = order.split(batch_size) if len(order) else ()
        joined = ((beside(x, train_columns, part), part) for x, part in zip(images, parts, strict=True))
        return ((x, y[part].to(device), part) for x, part in joined)

    def base_views() -> Iterator[Input]:
        images = image_batches(range(valid_rows), load_valid, preprocessing, VALID_BATCH, workers, device)
        rows = torch.arange(valid_rows).split(VALID_BATCH)
        return (beside(x, valid_columns, part) for x, part in zip(images, rows, strict=True))

    def example() -> Input:
        first = next(image_batches([0], load_valid, preprocessing, 1, 1, device))
        return beside(first, valid_columns, torch.zeros(1, dtype=torch.int64))

    return BatchSource(None, batches, base_views, example)


def beside(x: torch.Tensor, columns: torch.Tensor | None, rows: torch.Tensor) -> Input:
    """Return inputs with their rows of encoded columns, if there are columns."""
    return x if columns is None else (x, columns[rows].to(x.device))


def from_feature_maps(
    after: str,
    train: ActivationDataset,
    valid: ActivationDataset,
    device: torch.device,
    digest: str = "",
    columns: Columns | None = None,
) -> BatchSource:
    """Return a source of the frozen front's cached maps [n, f, h, w]; each epoch draws one view of every image.

    Args:
        columns: see `from_images`.
    """
    train_columns, valid_columns = columns or (None, None)

    def to(x: torch.Tensor) -> torch.Tensor:
        x = x.to(device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def batches(epoch: int, seed: int, batch_size: int, first: int) -> Iterator[Batch]:
        for x, y, rows in epoch_batches(train, batch_size, seed, first=first):
            yield beside(to(x), train_columns, rows), y.to(device), rows

    def base_views() -> Iterator[Input]:
        parts = (to(part) for x in valid.base_views() for part in x.split(VALID_BATCH))
        start = 0
        for part in parts:
            yield beside(part, valid_columns, torch.arange(start, start + len(part)))
            start += len(part)

    first = torch.zeros(1, dtype=torch.int64)
    return BatchSource(after, batches, base_views, lambda: beside(to(train.take(first, first)), train_columns, first), digest)


def endless(source: BatchSource, options: Options, seed: int) -> Iterator[Batch]:
    """Yield batches epoch after epoch, for the range test; its views differ from those of every training epoch."""
    return itertools.chain.from_iterable(
        source.batches(-1 - epoch, derive_seed(seed, "order", epoch), options.batch_size, 0) for epoch in itertools.count()
    )
