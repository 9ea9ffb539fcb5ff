"""Train a head on cached activations: matrix work on one tensor, without reading any image.

Shape legend: v views (the base view first), n images, d activation width, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from headstart.seeds import derive_seed
from headstart.training.activation_dataset import ActivationDataset, epoch_batches
from headstart.training.checkpoints import Checkpoint
from headstart.training.loop import Batch, Forward, History, Log, Phase, Trainer
from headstart.training.options import Options
from headstart.training.schedules import OneCycle, steps_per_epoch
from headstart.training.validation import collect_logits, scores


def head_prepare(options: Options, lr: float) -> Callable[[nn.Module], tuple[Forward, torch.optim.Optimizer]]:
    """Return the function that makes a copy of a head ready for the range test."""
    return lambda head: (head.train(), options.optimize([(list(head.parameters()), lr)]))


def train_head(
    head: nn.Module,
    train: ActivationDataset,
    valid: ActivationDataset,
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
        train: activations and classes to train on.
        valid: activations and classes that choose the epoch, by their base views.
        lr: peak learning rate.
        name_of, checkpoint: see `Trainer`.
    """
    steps = steps_per_epoch(len(train.y_n), options.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        order = derive_seed(seed, "order", epoch)
        return epoch_batches(train, options.batch_size, order, balance=options.balance == "sampling", first=first)

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
        validate=lambda: scores(collect_logits(head, valid.base_views()), valid.y_n),
    )
    trainer = Trainer(
        model=head,
        loss=options.loss(train.y_n, torch.device("cpu")),
        seed=seed,
        log=log,
        what="train_head",
        name_of=name_of,
        patience=options.patience,
        checkpoint=checkpoint,
    )
    return trainer.fit([phase])
