"""Heads: the networks that train on activations. Shape legend: n rows, d activation width, c classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from headstart.core.errors import InputError
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


def linear_head(width: int, classes: int) -> nn.Sequential:
    """Return a softmax regression on standardised activations, [n, d] to logits [n, c]; its weights start at zero."""
    linear = nn.Linear(width, classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(Standardise(width), linear)


def mlp_head(width: int, classes: int) -> nn.Sequential:
    """Return fastai's head, [n, d] to [n, c]: BN, dropout 0.25, 512, ReLU, BN, dropout 0.5, Kaiming-normal weights.

    Source: fastai 2, `create_head`, https://docs.fast.ai/vision.learner.html.
    """
    first, last = nn.Linear(width, HIDDEN, bias=False), nn.Linear(HIDDEN, classes, bias=False)
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


def build_head(kind: str, width: int, classes: int, seed: int) -> nn.Sequential:
    """Build a head of `kind` "linear" or "mlp"; equal seeds give equal weights."""
    with scoped_seed(seed):
        return linear_head(width, classes) if kind == "linear" else mlp_head(width, classes)


def fit_standardiser(head: nn.Sequential, blocks: Iterable[torch.Tensor]) -> None:
    """Fit a new head's fixed statistics, if it has any, to the training activations (blocks [n, d])."""
    for module in head.modules():
        if isinstance(module, Standardise):
            module.measure(blocks)


class Classifier(nn.Module):
    """A body and a head: images [n, 3, s, s] float32 to logits [n, c] float32."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        activations_nd = self.body(x_nchw).float()
        with torch.autocast(x_nchw.device.type, enabled=False):
            logits: torch.Tensor = self.head(activations_nd)
        return logits
