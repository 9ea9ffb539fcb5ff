"""Heads: the networks that train on activations. Shape legend: n rows, d activation width, c outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from headstart.core.errors import InputError
from headstart.models.column_head import ColumnHead, ColumnSpec
from headstart.seeds import scoped_seed

HIDDEN = 512


class Standardise(nn.Module):
    """A fixed layer that subtracts the training activations' mean and divides by one scale, their typical deviation.

    It gives every backbone's activations the same scale, so that a learning rate means the same for all. All columns share
    one scale, because a max-pooled feature that is zero except for a few images would be blown up by its own tiny
    deviation (measured: docs/decisions.md).
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(1))

    def measure(self, blocks: Iterable[torch.Tensor]) -> None:
        """Compute mean [d] and scale [1] from all rows of `blocks` [n, d].

        Raises:
            InputError: the activations are all the same, or not finite.
        """
        count, mean_d, squares_d = 0, torch.zeros(0), torch.zeros(0)
        for x_nd in blocks:  # Chan et al. 1979, Updating formulae and a pairwise algorithm for sample variances
            variance_d, centre_d = torch.var_mean(x_nd.double(), dim=0, correction=0)
            n, total = len(x_nd), count + len(x_nd)
            apart_d = centre_d - mean_d if count else torch.zeros_like(centre_d)
            squares_d = variance_d * n + (squares_d if count else 0) + apart_d**2 * (count * n / total)
            mean_d = (mean_d + apart_d * (n / total)) if count else centre_d
            count = total
        scale = (squares_d / count).mean().sqrt()
        if not 0 < scale < float("inf"):
            raise InputError(
                f"the activations of all {count} training images have standard deviation {scale:.3g}",
                wanted="activations that differ between images",
                fix="check backbone.weights and the images",
            )
        self.mean.copy_(mean_d)
        self.scale.fill_(float(scale))

    def forward(self, x_nd: torch.Tensor) -> torch.Tensor:
        return (x_nd - self.mean) / self.scale


def linear_head(width: int, outputs: int) -> nn.Sequential:
    """Return a (softmax) regression on standardised activations, [n, d] to logits [n, c]; its weights start at zero."""
    linear = nn.Linear(width, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(Standardise(width), linear)


def mlp_head(width: int, outputs: int) -> nn.Sequential:
    """Return fastai's head, [n, d] to [n, c]: BN, dropout 0.25, 512, ReLU, BN, dropout 0.5, Kaiming-normal weights.

    Source: fastai 2, `create_head`, https://docs.fast.ai/vision.learner.html.
    """
    first, last = nn.Linear(width, HIDDEN, bias=False), nn.Linear(HIDDEN, outputs, bias=False)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Dropout(0.25),
        first,
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(0.5),
        last,
    )


@dataclass(frozen=True)
class HeadSpec:
    """All that is needed to build a head again.

    Args:
        kind: "linear" or "mlp".
        width: activations per image; 0 without images.
        outputs: see `Target.outputs`.
        columns: the columns that it takes besides, with its layers; None without columns.
    """

    kind: str
    width: int
    outputs: int
    columns: ColumnSpec | None = None


def build_head(spec: HeadSpec, seed: int) -> nn.Module:
    """Build a head; equal seeds give equal weights."""
    with scoped_seed(seed):
        if spec.columns is not None:
            return ColumnHead(spec.width, spec.outputs, spec.columns, Standardise(spec.width) if spec.width else nn.Identity())
        return linear_head(spec.width, spec.outputs) if spec.kind == "linear" else mlp_head(spec.width, spec.outputs)


def members_of(head: nn.Module) -> int:
    """Return how many networks a head trains side by side, each on rows of its own; see `ColumnHead`."""
    return len(head.members) if isinstance(head, ColumnHead) else 1


def fit_standardiser(head: nn.Module, blocks: Iterable[torch.Tensor]) -> None:
    """Fit a new head's fixed statistics, if it has any, to the training activations (blocks [n, d], or rows that begin so)."""
    for module in head.modules():
        if isinstance(module, Standardise):
            width = len(module.mean)
            module.measure(x_nd[:, :width] for x_nd in blocks)


class Classifier(nn.Module):
    """A body and a head: images [n, 3, s, s] float32 to logits [n, c] float32.

    With columns, the input is (images, columns [n, m + k]); without a body it is the columns alone.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x_nchw, columns = x if isinstance(x, tuple) else (x, None)
        activations_nd = self.body(x_nchw).float()
        if columns is not None:
            activations_nd = torch.cat([activations_nd, columns], dim=1)
        if self.head.training and (members := members_of(self.head)) > 1:  # one pass through the body serves all
            activations_nd = activations_nd.repeat(members, 1)
        with torch.autocast(x_nchw.device.type, enabled=False):
            logits: torch.Tensor = self.head(activations_nd)
        return logits
