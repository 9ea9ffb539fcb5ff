"""A number an image: squared or absolute errors, an interval, a permutation test. Shape legend: n images.

The network learns the *standardised* number: its logarithm if `log`, minus the training mean, over the training deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from headstart.core.errors import InputError
from headstart.statistics import ScoreComparison, compare_scores
from headstart.targets.labels import LabelFormat
from headstart.targets.tables import prediction_columns
from headstart.targets.target import Answered, DecisionRule, Loss, LossRule, Target, refuse_kind

COVERAGE = 0.9  # share of the numbers that the interval holds
LOSSES: dict[str, Loss] = {"auto": F.mse_loss, "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
LARGEST = 700.0  # exp of more is no float64


@dataclass(frozen=True)
class Number:
    """A number an image.

    Args:
        log: the network learns the logarithm.
        mean, deviation: of the training numbers, after the logarithm.
        bounds: the range of predictions, after the logarithm; None without one.
        half: half the width of the interval that holds 90 %, after the logarithm; 0 before it is fitted.
    """

    log: bool
    mean: float
    deviation: float
    bounds: tuple[float, float] | None = None
    half: float = 0.0
    kind: ClassVar[str] = "number"
    chosen_by: ClassVar[str] = "mse"
    headline: ClassVar[str] = "rmse"
    worse: ClassVar[float] = 4.0  # dropout alone makes squared errors larger than a guess's
    scores_in_words: ClassVar[Mapping[str, str]] = {"mse": "squared error (standardised)", "rmse": "RMSE"}
    classes: ClassVar[tuple[str, ...]] = ()

    @property
    def outputs(self) -> int:
        return 1

    @property
    def format(self) -> LabelFormat:
        return LabelFormat("number")

    def as_dict(self) -> dict[str, Any]:
        bounds = None if self.bounds is None else list(self.bounds)
        values = {"log": self.log, "mean": self.mean, "deviation": self.deviation, "bounds": bounds, "half": self.half}
        return {"kind": self.kind} | values

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Return standardised numbers [n] float32."""
        return ((self.learned(self.truth(labels)) - self.mean) / self.deviation).float()

    def truth(self, labels: Iterable[str]) -> torch.Tensor:
        """Return the numbers [n] float64 in their own unit."""
        return torch.tensor([float(label) for label in labels], dtype=torch.float64)

    def learned(self, values: torch.Tensor) -> torch.Tensor:
        """Return numbers after the logarithm, if there is one."""
        return values.log() if self.log else values

    def standardised(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what the network says [..., n, 1] in standardised units [..., n]."""
        z = logits.squeeze(-1)
        if self.bounds is None:
            return z
        low, high = ((end - self.mean) / self.deviation for end in self.bounds)
        return low + (high - low) * z.sigmoid()

    def loss(self, rule: LossRule, y_n: torch.Tensor) -> Loss:
        """Return the loss in standardised units."""
        self._refuse_balance(rule)
        return lambda logits, y: LOSSES[rule.loss](self.standardised(logits), y)

    def guess(self, rule: LossRule, y_n: torch.Tensor) -> float:
        def at(value: float) -> float:
            return float(LOSSES[rule.loss](torch.full_like(y_n, value), y_n))

        if rule.loss == "huber":
            return float(minimize_scalar(at, bounds=(float(y_n.min()), float(y_n.max())), method="bounded").fun)
        return at(float(y_n.median() if rule.loss == "l1" else y_n.mean()))

    def sampling_weights(self, y_n: torch.Tensor) -> torch.Tensor:
        self._refuse_balance(LossRule(balance="sampling"))
        raise AssertionError

    def _refuse_balance(self, rule: LossRule) -> None:
        if rule.balance != "none":
            raise InputError(f"balance is {rule.balance}, but the labels are numbers", wanted="balance: none")

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        """Return numbers in the labels' unit, float64 [..., n, 1]."""
        return self.natural(self.standardised(logits.double())).unsqueeze(-1)

    def scores(self, logits_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
        """Return the mean squared error in standardised units, and RMSE and MAE in the labels' unit."""
        found, wanted = self.standardised(logits_nc.double()), y_n.double()
        values, true = (self.natural(one) for one in (found, wanted))
        error = (values - true).abs()
        rmse, mae = float((error**2).mean().sqrt()), float(error.mean())
        return {"mse": float(F.mse_loss(found, wanted)), "rmse": rmse, "mae": mae}

    def natural(self, standardised: torch.Tensor) -> torch.Tensor:
        """Return standardised numbers in the labels' unit."""
        learned = standardised * self.deviation + self.mean
        return learned.clamp(-LARGEST, LARGEST).exp() if self.log else learned

    def fitted(self, answers_nc: torch.Tensor, truth_n: torch.Tensor, rule: DecisionRule) -> Target:
        """Choose the interval that holds 90 % of new numbers, by the validation images' errors (split conformal).

        Source: Angelopoulos and Bates 2021, arXiv:2107.07511, section 2.
        """
        errors = (self.learned(answers_nc[:, 0]) - self.learned(truth_n)).abs().numpy()
        rank = min(len(errors), math.ceil((len(errors) + 1) * COVERAGE))
        return replace(self, half=float(np.sort(errors)[rank - 1]))

    def interval(self, answers_nc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ends of the interval that holds 90 % of the numbers, [n] each."""
        learned = self.learned(answers_nc[:, 0])
        low, high = learned - self.half, learned + self.half
        return (low.exp(), high.exp()) if self.log else (low, high)

    def score_of_each(self, answers_nc: torch.Tensor, truth_n: torch.Tensor) -> NDArray[np.float64]:
        """Return the negative absolute error of each image (of the logarithm, if that was learned), so that more is better."""
        error: NDArray[np.float64] = -(self.learned(answers_nc[:, 0]) - self.learned(truth_n)).abs().numpy()
        return error

    def compare(self, a: Answered, b: Answered, truth_n: torch.Tensor, seed: int) -> ScoreComparison:
        """Compare absolute errors: of the logarithm if both models learned that, for the other's answers may have none."""
        judge = _judge(a, b)
        before, after = (judge.score_of_each(one.answers, truth_n) for one in (a, b))
        return compare_scores(before, after, "error", seed, share_of=float(-before.mean()))

    def constant(self, labels: Iterable[str]) -> tuple[torch.Tensor, str]:
        """Return the median, which has the smallest absolute error."""
        middle = float(np.median(self.truth(labels).numpy()))
        return torch.tensor([middle], dtype=torch.float64), f"{middle:g}"

    def verdict(self, own: Answered, other: Answered, truth_n: torch.Tensor) -> str:
        judge = _judge(own, other)
        mine, others = (-float(judge.score_of_each(one.answers, truth_n).mean()) for one in (own, other))
        return f"its mean absolute error{' of the logarithm' if judge.log else ''} is {mine:.4g}; {{other}} has {others:.4g}"

    def align(self, answered: Answered) -> Answered:
        refuse_kind(self.kind, answered.target.kind)
        return answered

    def rows(self, answers_nc: torch.Tensor, top: int) -> list[dict[str, Any]]:
        low, high = self.interval(answers_nc)
        columns = (answers_nc[:, 0].tolist(), low.tolist(), high.tolist())
        return [{"predicted": said, "low": least, "high": most} for said, least, most in zip(*columns, strict=True)]

    def served_types(self) -> dict[str, str]:
        return prediction_columns(self.kind, 1)

    def served(self, answers_nc: torch.Tensor) -> dict[str, list[Any]]:
        rows = self.rows(answers_nc, 1)
        return {name: [row[name] for row in rows] for name in self.served_types()}


def _judge(one: Answered, other: Answered) -> Number:
    """Return the target by whose unit two models' errors are compared."""
    assert isinstance(one.target, Number) and isinstance(other.target, Number)
    return replace(one.target, log=one.target.log and other.target.log)
