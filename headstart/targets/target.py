"""What all kinds of target have in common: the protocol that training, evaluation and prediction know.

Shape legend: v views, n images or rows, c outputs of the network (classes; 1 for a number).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from scipy.optimize import minimize_scalar

from headstart.core.errors import InputError
from headstart.statistics import Comparison, ScoreComparison
from headstart.targets.labels import LabelFormat

WORSE = 1.1  # a loss so many times a guess's is that of a network that has been spoilt
HOTTEST = 8.0  # temperatures from 1/8 to 8: without a limit, a small set without errors would drive it to 0


class Loss(Protocol):
    """A function from logits [n, c] and encoded labels [n] or [n, c] to one number."""

    def __call__(self, logits_nc: torch.Tensor, y: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class LossRule:
    """What a training minimises, named as in params.yaml.

    Args:
        label_smoothing: share of the target probability that is spread over the other answers, in training only.
        balance: treatment of classes of unequal size: "none", "weights" in the loss, or "sampling".
        loss: "auto" (the target's own), or for a number "mse", "l1" or "huber".
    """

    label_smoothing: float = 0.0
    balance: str = "none"
    loss: str = "auto"


@dataclass(frozen=True)
class DecisionRule:
    """How answers become decisions, for targets that need validation images to choose; see params.yaml, evaluate.

    Args:
        beta: of the F-score that thresholds maximise: recall counts beta times as much as precision.
        thresholds: "one" for all classes, or "per_class".
    """

    beta: float = 2.0
    thresholds: str = "one"


class Target(Protocol):
    """What a model answers: the same few functions for every kind.

    A target is a frozen value. It is part of a model's card, so that an answer means the same wherever the model is used.
    `chosen_by` names the validation score whose lowest value chooses an epoch, `headline` the one that logs show;
    `scores_in_words` has both in words. `worse` times a guess's loss is the loss of a network that has been spoilt.
    """

    @property
    def kind(self) -> str: ...
    @property
    def chosen_by(self) -> str: ...
    @property
    def headline(self) -> str: ...
    @property
    def scores_in_words(self) -> Mapping[str, str]: ...
    @property
    def worse(self) -> float: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> int: ...

    def as_dict(self) -> dict[str, Any]:
        """Return the target as JSON values, for `target_of`."""
        ...

    @property
    def format(self) -> LabelFormat:
        """Return how the manifest writes these labels."""
        ...

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Return labels as training uses them, [n] or [n, c]."""
        ...

    def truth(self, labels: Iterable[str]) -> torch.Tensor:
        """Return labels as answers are judged by, [n] or [n, c]."""
        ...

    def loss(self, rule: LossRule, y: torch.Tensor) -> Loss:
        """Return the loss to minimise, given the encoded training labels."""
        ...

    def guess(self, rule: LossRule, y: torch.Tensor) -> float:
        """Return the loss of the best constant answer for these encoded training labels."""
        ...

    def sampling_weights(self, y: torch.Tensor) -> torch.Tensor:
        """Return weights [n] to draw training images by, so that the answers are balanced.

        Raises:
            InputError: this kind of target has no classes to balance so.
        """
        ...

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what logits [..., n, c] mean, float64 [..., n, c]: probabilities, or numbers in the label's own unit."""
        ...

    def scores(self, logits_nc: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        """Return the validation scores of logits, given the encoded labels."""
        ...

    def fitted(self, answers_nc: torch.Tensor, truth: torch.Tensor, rule: DecisionRule) -> Target:
        """Return the target with its decision chosen on validation images, such as thresholds."""
        ...

    def compare(self, a: Answered, b: Answered, truth: torch.Tensor, seed: int) -> Comparison | ScoreComparison:
        """Compare two models' answers for the same images by a paired test."""
        ...

    def constant(self, labels: Iterable[str]) -> tuple[torch.Tensor, str]:
        """Return the best answer [c] that looks at no image, by the training labels, and the same in words."""
        ...

    def verdict(self, own: Answered, other: Answered, truth: torch.Tensor) -> str:
        """Say how well two models do on the same images: `{own}` and `{other}` are for the figures."""
        ...

    def align(self, answered: Answered) -> Answered:
        """Return another model's answers in the order of this target's outputs; classes that it does not know get 0.

        Raises:
            InputError: the other model has another kind of target.
        """
        ...

    def served_types(self) -> dict[str, str]:
        """Return the names and types of what the server answers for each image."""
        ...

    def served(self, answers_nc: torch.Tensor) -> dict[str, list[Any]]:
        """Return what the server answers for n images, by the names of `served_types`."""
        ...

    def rows(self, answers_nc: torch.Tensor, top: int) -> list[dict[str, Any]]:
        """Return predictions as the values of `prediction_columns`, one dictionary for each of n images."""
        ...


@dataclass(frozen=True)
class Answered:
    """A model's answers for some images.

    Args:
        answers: [n, c] float64, see `Target.answers`.
        target: the model's own, with its thresholds or intervals.
    """

    answers: torch.Tensor
    target: Target


def tta(answers_vnc: torch.Tensor, formula: str) -> torch.Tensor:
    """Combine the answers of all views into one [n, c].

    Args:
        answers_vnc: view 0 is the base view.
        formula: "mean" over all views (fastai 0.7), or "blend": 0.25 x base view + 0.75 x mean of the augmented views
            (fastai 2).
    """
    if formula == "mean" or len(answers_vnc) == 1:
        return answers_vnc.mean(0)
    return 0.25 * answers_vnc[0] + 0.75 * answers_vnc[1:].mean(0)


def calibrated(loss: Callable[[torch.Tensor], torch.Tensor], logits_nc: torch.Tensor) -> float:
    """Return the loss (nats) of logits divided by the temperature that suits these labels best.

    It chooses epochs, because label smoothing and long training change a network's confidence more than its knowledge.

    Source: Guo et al. 2017, arXiv:1706.04599 (temperature); Berta et al. 2025, arXiv:2501.19195 (choice of epoch).
    """
    if not logits_nc.isfinite().all():
        return math.nan

    def at(log_temperature: float) -> float:
        return float(loss(logits_nc / math.exp(log_temperature)))

    most = math.log(HOTTEST)
    return min(float(minimize_scalar(at, bounds=(-most, most), method="bounded", options={"xatol": 1e-3}).fun), at(0.0))


def refuse_loss(rule: LossRule, kind: str) -> None:
    """Refuse a loss that is for numbers.

    Raises:
        InputError: `rule.loss` is not "auto".
    """
    if rule.loss != "auto":
        found = f"loss is {rule.loss}, which is for numbers, but the labels are {kind}"
        raise InputError(found, wanted="loss: auto", fix="--set train_head.loss=auto fine_tune.loss=auto")


def refuse_kind(own: str, other: str) -> None:
    """Refuse answers of another kind.

    Raises:
        InputError: the kinds differ.
    """
    if own != other:
        raise InputError(f"a model of kind {other} answers another question than {own}")
