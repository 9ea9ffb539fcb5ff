"""A model's answers for the test images beside the truth: what every kind of report is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

SHOWN = 12  # images of a gallery


@dataclass(frozen=True)
class Judged:
    """Test images or rows, and what a model says of them. Shape legend: n images, c outputs.

    Args:
        table: the manifest's rows of the test split, each image once.
        answers: [n, c] float64, see `Target.answers`.
        truth: labels as answers are judged by, see `Target.truth`.
        target: the model's own.
    """

    table: pd.DataFrame
    answers: torch.Tensor
    truth: torch.Tensor
    target: Any

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes in the order of the answers; none for a number."""
        classes: tuple[str, ...] = self.target.classes
        return classes


@dataclass(frozen=True)
class Caption:
    """What stands below an image.

    Args:
        html: escaped HTML.
        alt: the same as text, for an image's alternative text.
        sheet: two short lines for a contact sheet.
        mark: "right", "wrong" or "" (numbers are neither).
    """

    html: str
    alt: str
    sheet: str
    mark: str = ""


@dataclass(frozen=True)
class KindOfReport:
    """What a kind of target adds to the report.

    Args:
        template: beside this module; it extends report.html.j2.
        headline: the metric that summaries show.
        summarise: maps answers, truth and target to metrics.
        in_words: one model's metrics in words, for the log.
        meanings: what each gallery shows.
        rankings: names of galleries, with the test images of each, the most telling first.
        grouped: further galleries, by class; may be empty.
        caption: of a test image.
        pictures: PNG files by name.
        context: values for the template's own sections; the manifest has all splits.
    """

    template: str
    headline: str
    summarise: Callable[[torch.Tensor, torch.Tensor, Any], dict[str, float]]
    in_words: Callable[[Mapping[str, Any]], str]
    meanings: Mapping[str, str]
    rankings: Callable[[Judged], dict[str, list[int]]]
    grouped: Callable[[Judged], dict[str, list[int]]]
    caption: Callable[[Judged, int], Caption]
    pictures: Callable[[Judged], dict[str, bytes]]
    context: Callable[[Judged, pd.DataFrame], dict[str, Any]]


def no_groups(judged: Judged) -> dict[str, list[int]]:
    """Return no further galleries."""
    return {}


def most(values: torch.Tensor, descending: bool = True) -> list[int]:
    """Return indices by value; equal values keep their order."""
    order: list[int] = values.argsort(stable=True, descending=descending).tolist()
    return order
