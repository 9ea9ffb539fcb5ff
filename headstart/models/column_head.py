"""A head for columns, alone or beside an image's activations: entity embeddings, piecewise-linear numbers, hidden layers.

Shape legend: n rows, d activation width, m numbers, k categories, b bins of all numbers, e embedded width, h hidden width,
c outputs, s members. A row of the input is [activations d | numbers m | codes k]; codes are whole numbers as float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

EMBEDDED_STD = 0.3  # of new embeddings: with 1, rare categories drown the numbers (docs/decisions.md)
MOMENTUM = 0.01  # of batch norm's running statistics in the end: batches of a table are small, their averages must be steady
UNKNOWN, RESERVED = 0, 2  # the code of a category that training has not seen; codes for unknown and missing
SAMPLE = 100_000  # rows that are enough for quantiles


@dataclass(frozen=True)
class ColumnSpec:
    """The columns that a head takes, and its layers; all that is needed to build it again.

    Args:
        edges: of each number, the ends of its bins, ascending; at least two.
        cardinalities: codes of each category, the reserved ones included.
        hidden: share of training rows whose code is hidden, by category: as many as are unknown in validation.
        layers: hidden widths.
        dropouts: after each hidden layer.
        embedding_dropout: of the embedded categories.
        embedding: "lesson": min(50, (codes + 1) // 2), or "fastai": min(600, round(1.6 x codes ^ 0.56)).
        members: networks that are trained side by side, and averaged.
    """

    edges: tuple[tuple[float, ...], ...]
    cardinalities: tuple[int, ...]
    hidden: tuple[float, ...]
    layers: tuple[int, ...]
    dropouts: tuple[float, ...]
    embedding_dropout: float
    embedding: str
    members: int

    @property
    def width(self) -> int:
        """Return the number of values that the columns add to a row."""
        return len(self.edges) + len(self.cardinalities)

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ColumnSpec:
        """Return the spec that `as_dict` gave."""
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**lists | {"edges": tuple(tuple(one) for one in values["edges"])})


def bin_edges(numbers_nm: NDArray[np.float32], bins: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Return for each number the ends of up to `bins` bins with equally many training rows; equal ends are merged.

    Source: Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep Learning, arXiv:2203.05556, section 3.
    """
    step = max(1, len(numbers_nm) // SAMPLE)
    found = []
    for column, most in zip(numbers_nm[::step].T, bins, strict=True):
        ends = np.unique(np.quantile(column, np.linspace(0, 1, most + 1)).astype(np.float32))
        found.append(tuple(float(end) for end in (ends if len(ends) > 1 else [ends[0], ends[0] + 1])))
    return tuple(found)


def embedding_width(codes: int, rule: str) -> int:
    """Return the width of a category's embedding by the rule of fast.ai's lesson, or of fastai 2."""
    return min(50, (codes + 1) // 2) if rule == "lesson" else min(600, round(1.6 * codes**0.56))


class PiecewiseLinear(nn.Module):
    """Numbers [n, m] to [n, b]: how far a number has come through each of its bins, from 0 to 1."""

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        of_bin = [column for column, ends in enumerate(edges) for _ in ends[1:]]
        left, right = ([end for ends in edges for end in part(ends)] for part in (lambda e: e[:-1], lambda e: e[1:]))
        self.register_buffer("column_b", torch.tensor(of_bin, dtype=torch.int64))
        self.register_buffer("left_b", torch.tensor(left, dtype=torch.float32))
        self.register_buffer(
            "scale_b", 1 / (torch.tensor(right, dtype=torch.float32) - torch.tensor(left, dtype=torch.float32))
        )

    column_b: torch.Tensor
    left_b: torch.Tensor
    scale_b: torch.Tensor

    def forward(self, numbers_nm: torch.Tensor) -> torch.Tensor:
        return ((numbers_nm.index_select(1, self.column_b) - self.left_b) * self.scale_b).clamp(0, 1)


class Entities(nn.Module):
    """Codes [n, k] to [n, e]: entity embeddings of all categories in one table.

    In training a category is hidden as often as validation rows have an unknown one: so the network learns what to answer
    without it, and leans on it as far as new rows can.

    Source: Guo and Berkhahn 2016, Entity Embeddings of Categorical Variables, arXiv:1604.06737.
    """

    hidden_k: torch.Tensor

    def __init__(self, spec: ColumnSpec) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, embedding_width(n, spec.embedding)) for n in spec.cardinalities)
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=EMBEDDED_STD)
            with torch.no_grad():
                table.weight[:RESERVED].zero_()  # a code that never comes in training adds nothing
        self.register_buffer("hidden_k", torch.tensor(spec.hidden), persistent=False)
        self.hides = any(spec.hidden)
        self.dropout = nn.Dropout(spec.embedding_dropout)
        self.width = sum(embedding_width(n, spec.embedding) for n in spec.cardinalities)

    def forward(self, codes_nk: torch.Tensor) -> torch.Tensor:
        if self.training and self.hides:
            hidden_nk = torch.rand(codes_nk.shape, device=codes_nk.device) < self.hidden_k
            codes_nk = codes_nk.masked_fill(hidden_nk, UNKNOWN)
        parts = [table(codes_nk[:, i]) for i, table in enumerate(self.tables)]
        out: torch.Tensor = self.dropout(torch.cat(parts, dim=1))
        return out


class Folded(torch.autograd.Function):
    """The weight [h, d + b] of activations and bins, with the weight [h, b] of the hats folded in: see `First`.

    A hat is its bin minus the next one, if the number has one. As one function with a gradient of its own, it takes about
    half the time of its parts.
    """

    @staticmethod
    def forward(ctx: Any, fixed_hd: torch.Tensor, near_hb: torch.Tensor, continues_b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(continues_b)
        of_bins_hb = near_hb.clone()
        of_bins_hb[:, 1:].addcmul_(near_hb[:, :-1], continues_b[1:], value=-1)
        folded_hd = fixed_hd.clone()
        folded_hd[:, -len(continues_b) :] += of_bins_hb
        return folded_hd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        ((gradient_hd,), (continues_b,)) = gradients, ctx.saved_tensors
        of_bins_hb = gradient_hd[:, -len(continues_b) :]
        near_hb = of_bins_hb.clone()
        near_hb[:, :-1].addcmul_(of_bins_hb[:, 1:], continues_b[1:], value=-1)
        return gradient_hd, near_hb, None


class First(nn.Module):
    """The first linear layer, of [activations | bins | embeddings] to [n, h].

    Beside the weight for how far a number has come through a bin, each bin has one for how near the number is to the bin's
    end: for a hat function, which is 1 there and 0 at the ends of the neighbours. (A number's last bin stays 1 beyond its
    end.) The same functions can be learned without hats, but then a step for one bin moves the answer for all numbers beyond
    it, and a network learns what happens in a few bins only slowly, such as on a few days of a year.

    A hat is its bin minus the next one. So the hats need no columns of the input: `weight` folds them into those of the bins.
    Bins need no gradient, so the embeddings, which do, are a product of their own.
    """

    continues_b: torch.Tensor

    def __init__(self, width: int, edges: Sequence[Sequence[float]], embedded: int, hidden: int) -> None:
        super().__init__()
        bins = sum(len(ends) - 1 for ends in edges)
        weight = nn.init.kaiming_normal_(torch.empty(hidden, width + 2 * bins + embedded))
        parts = weight.split([width + bins, bins, embedded], dim=1)
        self.fixed, self.near, self.embedded = (nn.Parameter(part.clone()) if part.numel() else None for part in parts)
        self.bias = nn.Parameter(torch.zeros(hidden))
        continues = [float(place > 0) for ends in edges for place in range(len(ends) - 1)]
        self.register_buffer("continues_b", torch.tensor(continues), persistent=False)  # 0 for a number's first bin

    def weight(self) -> torch.Tensor | None:
        """Return the weight [h, d + b] of activations and bins, the hats included."""
        if self.fixed is None or self.near is None:
            return self.fixed
        folded: torch.Tensor = Folded.apply(self.fixed, self.near, self.continues_b)  # type: ignore[no-untyped-call]
        return folded

    def forward(self, parts: list[torch.Tensor], embedded_ne: torch.Tensor | None) -> torch.Tensor:
        out_nh: torch.Tensor = self.bias
        if (weight := self.weight()) is not None:
            out_nh = F.linear(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), weight, out_nh)
        if self.embedded is not None and embedded_ne is not None:
            out_nh = out_nh + F.linear(embedded_ne, self.embedded)
        return out_nh


class SteadyBatchNorm(nn.BatchNorm1d):
    """Batch norm with running statistics that are right after few batches, and steady after many.

    The k-th of the first 200 batches counts k times; later ones move the statistics by 1 % each. With 1 % from the start, the
    initial statistics (mean 0, variance 1) would still count a fifth after 160 batches. An epoch's short last batch moves
    them less, in proportion to its rows: the variance of two rows says little.
    """

    num_batches_tracked: torch.Tensor
    most: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("most", torch.tensor(0))  # rows of the largest batch so far

    def forward(self, x_nh: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.most.clamp_(min=len(x_nh))
            k = 1 + int(self.num_batches_tracked)
            self.momentum = max(MOMENTUM, 2 / (k + 1)) * len(x_nh) / int(self.most)  # k's share of 1 + 2 + … + k
        return super().forward(x_nh)


class ColumnNetwork(nn.Module):
    """A row [n, d + m + k] to logits [n, c]."""

    def __init__(self, width: int, outputs: int, spec: ColumnSpec) -> None:
        super().__init__()
        self.numbers, self.width = len(spec.edges), width
        self.bins = PiecewiseLinear(spec.edges) if spec.edges else None
        self.entities = Entities(spec) if spec.cardinalities else None
        embedded = self.entities.width if self.entities else 0
        sizes = [*spec.layers, outputs]
        self.first = First(width, spec.edges, embedded, sizes[0])
        layers: list[nn.Module] = []
        for place, (hidden, following, dropout) in enumerate(zip(spec.layers, sizes[1:], spec.dropouts, strict=True), 1):
            layers += [nn.ReLU(inplace=True), SteadyBatchNorm(hidden)]
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(linear := nn.Linear(hidden, following))
            if place < len(spec.layers):
                nn.init.kaiming_normal_(linear.weight)
        self.layers = nn.Sequential(*layers)

    def forward(self, x_nd: torch.Tensor) -> torch.Tensor:
        end = self.width + self.numbers
        parts = [x_nd[:, : self.width]] if self.width else []
        parts += [self.bins(x_nd[:, self.width : end])] if self.bins is not None else []
        embedded = self.entities(x_nd[:, end:].long()) if self.entities is not None else None
        logits: torch.Tensor = self.layers(self.first(parts, embedded))
        return logits


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return x; the gradient that flows back through it is multiplied by a factor."""
    if x.requires_grad and factor != 1:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient * factor)
    return x


class ColumnHead(nn.Module):
    """Members side by side: in training s parts of n rows, [s x n, d + m + k], to logits [s x n, c], each part by its member.

    After training, all members see the same rows [n, d + m + k], and their mean logits [n, c] count. Each member learns by
    itself, and from rows in an order of its own: with the same batches their errors are alike, and a mean gains nothing.
    A loss is a mean over all parts, so each member's gradient comes divided by s; it is multiplied by s again, so that a
    member learns as it would alone: AdamW's eps is not small beside the gradients of a table. x still gets the gradient of
    the mean loss.

    Source: Lakshminarayanan et al. 2017, Simple and Scalable Predictive Uncertainty Estimation, arXiv:1612.01474.
    """

    def __init__(self, width: int, outputs: int, spec: ColumnSpec, standardise: nn.Module) -> None:
        super().__init__()
        self.width = width
        self.standardise = standardise
        self.members = nn.ModuleList(ColumnNetwork(width, outputs, spec) for _ in range(spec.members))

    def forward(self, x_nd: torch.Tensor) -> torch.Tensor:
        if self.width:
            x_nd = torch.cat([self.standardise(x_nd[:, : self.width]), x_nd[:, self.width :]], dim=1)
        if self.training:
            s = len(self.members)
            logits = torch.cat([member(part) for member, part in zip(self.members, scaled(x_nd, 1 / s).chunk(s), strict=True)])
            return scaled(logits, s)
        return torch.stack([member(x_nd) for member in self.members]).mean(0)
