"""Train a head on cached activations: matrix work on one tensor, without reading any image.

Shape legend: v views (the base view first), n images, d activation width, c outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from headstart.models.heads import members_of
from headstart.seeds import derive_seed
from headstart.targets.target import Target
from headstart.training.activation_dataset import ActivationDataset, epoch_batches
from headstart.training.loop import Batch, Forward, History, Phase, Trainer, TrainingRun
from headstart.training.options import Options
from headstart.training.schedules import OneCycle, steps_per_epoch
from headstart.training.validation import collect_logits


def head_prepare(options: Options, lr: float) -> Callable[[nn.Module], tuple[Forward, torch.optim.Optimizer]]:
    """Return the function that makes a copy of a head ready for the range test."""
    return lambda head: (head.train(), options.optimize([(list(head.parameters()), lr)]))


def train_head(
    head: nn.Module,
    train: ActivationDataset,
    valid: ActivationDataset,
    target: Target,
    *,
    epochs: int,
    lr: float,
    options: Options,
    run: TrainingRun,
) -> History:
    """Train a head on the activations of a frozen body.

    Args:
        head: [n, d] to [n, c], trained in place.
        train: activations and labels to train on.
        valid: activations and labels that choose the epoch, by their base views.
        target: what the labels are.
        lr: peak learning rate.
    """
    steps = steps_per_epoch(len(train.y), options.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        return epoch_batches(
            train, options.batch_size, derive_seed(run.seed, "order", epoch), first=first, members=members_of(head)
        )

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
        validate=lambda: target.scores(collect_logits(head, valid.base_views()), valid.y),
    )
    objective = replace(options.objective(target, train.y), guess=None)  # a new head has nothing that could be spoilt
    return Trainer(head, objective, run, what="train_head", patience=options.patience).fit([phase])
