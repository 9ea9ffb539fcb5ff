"""Training a head on cached activations: matrix work on one tensor, no image is touched.

Shape legend: v views (the plain one first), n images, d activation width, c classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from headstart.activations.store import Activations
from headstart.seeds import derive_seed
from headstart.training.checkpoints import Checkpoint
from headstart.training.loop import Batch, Forward, History, Log, Phase, Trainer
from headstart.training.optimizers import epoch_order
from headstart.training.options import Options
from headstart.training.schedules import OneCycle, steps_per_epoch
from headstart.training.validation import predict, scores

TAKE = 8192  # rows gathered at a time
TAKE_VALUES = 1 << 25  # and values, where rows are large


@dataclass(frozen=True)
class Rows:
    """Training rows that need not be in memory.

    Args:
        take: from images [m] and views [m] (int64) to activations [m, ...] float32.
        views: v.
        y_n: class index of each image.
        most: rows to take at a time.
    """

    take: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    views: int
    y_n: torch.Tensor
    most: int = TAKE

    def plain(self) -> Iterator[torch.Tensor]:
        """The plain view of all images, some thousands at a time."""
        for images in torch.arange(len(self.y_n)).split(self.most):
            yield self.take(images, torch.zeros_like(images))


def activations_of(activations: Activations, chosen: pd.DataFrame) -> Rows:
    """The rows and classes of some of the manifest's images, on the mapped file; maps keep their shape [f, h, w]."""
    located = activations.locate(list(chosen["key"]))
    shape = tuple(activations.meta["shape"])

    def take(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        return activations.gather(located[images.numpy()] + views.numpy()).reshape(len(images), *shape)

    y_n = torch.tensor(chosen["class_index"].to_numpy(), dtype=torch.int64)
    return Rows(take, activations.views, y_n, max(1, min(TAKE, TAKE_VALUES // activations.width)))


def epoch_batches(rows: Rows, batch_size: int, seed: int, *, balance: bool = False, first: int = 0) -> Iterator[Batch]:
    """One epoch in random order, for each image one of its views drawn afresh.

    A last batch of one row is dropped: batch norm cannot normalise it.

    Args:
        balance: draw images so that classes come equally often.
        first: batches to leave out at the beginning.
    """
    y_n, generator = rows.y_n, torch.Generator().manual_seed(seed)
    order = epoch_order(y_n, balance, generator)
    views = torch.randint(rows.views, (len(y_n),), generator=generator)[first * batch_size :]
    if not len(views):
        return
    at_once = batch_size * max(1, rows.most // batch_size)  # many at a time: gathering has a cost per call
    for images, chosen in zip(order[first * batch_size :].split(at_once), views.split(at_once), strict=True):
        x = rows.take(images, chosen)
        for x_b, part in zip(x.split(batch_size), images.split(batch_size), strict=True):
            if len(part) > 1 or len(order) == 1:
                yield x_b, y_n[part], part


def endless(rows: Rows, options: Options, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of shuffled batches, for the range test."""
    balance = options.balance == "sampling"
    return itertools.chain.from_iterable(
        epoch_batches(rows, options.batch_size, derive_seed(seed, "order", epoch), balance=balance)
        for epoch in itertools.count()
    )


def head_prepare(options: Options, lr: float) -> Callable[[nn.Module], tuple[Forward, torch.optim.Optimizer]]:
    """How the range test trains a copy of a head."""
    return lambda head: (head.train(), options.optimize([(list(head.parameters()), lr)]))


def train_head(
    head: nn.Module,
    rows: Rows,
    valid: Rows,
    *,
    epochs: int,
    lr: float,
    seed: int,
    log: Log,
    options: Options,
    name_of: Callable[[int], str] = str,
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a head on the activations of a frozen body.

    Args:
        head: [n, d] to [n, c], trained in place.
        rows: training activations and classes.
        valid: those whose plain view chooses the epoch.
        lr: peak learning rate.
        name_of, checkpoint: see `Trainer`.
    """
    steps = steps_per_epoch(len(rows.y_n), options.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        order = derive_seed(seed, "order", epoch)
        return epoch_batches(rows, options.batch_size, order, balance=options.balance == "sampling", first=first)

    def prepare() -> None:
        head.train()

    phase = Phase(
        name="head",
        epochs=epochs,
        steps=steps,
        begin=lambda: options.optimize([(list(head.parameters()), lr)]),
        schedule=options.over(steps, OneCycle(epochs * steps)),
        prepare=prepare,
        forward=head,
        batches=batches,
        validate=lambda: scores(predict(head, valid.plain()), valid.y_n),
    )
    trainer = Trainer(
        model=head,
        loss=options.loss(rows.y_n, torch.device("cpu")),
        seed=seed,
        log=log,
        what="train_head",
        name_of=name_of,
        patience=options.patience,
        checkpoint=checkpoint,
    )
    return trainer.fit([phase])
