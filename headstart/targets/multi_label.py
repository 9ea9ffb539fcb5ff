"""Several classes an image: binary cross-entropy, thresholds for F-beta, a permutation test.

Shape legend: n images, c classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from headstart.core.errors import InputError
from headstart.statistics import ScoreComparison, compare_scores
from headstart.targets.labels import LabelFormat
from headstart.targets.single_label import aligned, ranked
from headstart.targets.target import WORSE, Answered, DecisionRule, Loss, LossRule, Target, calibrated, refuse_kind, refuse_loss

GRID = np.linspace(0.01, 0.99, 99)  # thresholds to choose from
HEAVIEST = 100.0  # weight of a class's positives: a class with one image would take the whole gradient
NEVER = 2.0  # a threshold that no probability reaches


@dataclass(frozen=True)
class MultiLabel:
    """Several classes an image, or none.

    Args:
        classes: in the order of the logits.
        joiner: what stands between the classes of a label.
        threshold: for all classes together, chosen on validation images.
        thresholds: for each class.
        rule: which of the two decides: "one" or "per_class".
        beta: of the F-score that they maximise.
    """

    classes: tuple[str, ...]
    joiner: str = " "
    threshold: float = 0.5
    thresholds: tuple[float, ...] = ()
    rule: str = "one"
    beta: float = 2.0
    kind: ClassVar[str] = "multi_label"
    chosen_by: ClassVar[str] = "calibrated_log_loss"
    headline: ClassVar[str] = "mean_average_precision"
    worse: ClassVar[float] = WORSE
    scores_in_words: ClassVar[Mapping[str, str]] = {
        "calibrated_log_loss": "log-loss (after temperature scaling)",
        "mean_average_precision": "mean average precision",
    }

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def format(self) -> LabelFormat:
        return LabelFormat("multi_label", self.joiner)

    def as_dict(self) -> dict[str, Any]:
        values = {"joiner": self.joiner, "threshold": self.threshold, "rule": self.rule, "beta": self.beta}
        return {"kind": self.kind, "classes": list(self.classes), "thresholds": list(self.thresholds)} | values

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Return 1 for each class that a label names, else 0: [n, c] float32."""
        index = {name: i for i, name in enumerate(self.classes)}
        rows = [[index[one] for one in label.split(self.joiner) if one] for label in labels]
        y_nc = torch.zeros(len(rows), self.outputs)
        for row, chosen in enumerate(rows):
            y_nc[row, chosen] = 1.0
        return y_nc

    truth = encode

    def loss(self, rule: LossRule, y_nc: torch.Tensor) -> Loss:
        """Return the binary cross-entropy, in nats, as a mean over images and classes."""
        refuse_loss(rule, "classes")
        weight_c = positive_weights(y_nc) if rule.balance == "weights" else None

        def loss(logits_nc: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            smooth = y * (1 - rule.label_smoothing) + rule.label_smoothing / 2
            weight = None if weight_c is None else weight_c.to(logits_nc.device)
            return F.binary_cross_entropy_with_logits(logits_nc, smooth, pos_weight=weight)

        return loss

    def guess(self, rule: LossRule, y_nc: torch.Tensor) -> float:
        share_c = y_nc.double().mean(0) * (1 - rule.label_smoothing) + rule.label_smoothing / 2
        weight_c = positive_weights(y_nc).double() if rule.balance == "weights" else torch.ones_like(share_c)
        q_c = weight_c * share_c / (weight_c * share_c + 1 - share_c)
        return float(-(torch.special.xlogy(weight_c * share_c, q_c) + torch.special.xlogy(1 - share_c, 1 - q_c)).mean())

    def sampling_weights(self, y_nc: torch.Tensor) -> torch.Tensor:
        raise InputError(
            "balance is sampling, but images have several labels: drawing them for one class changes the others",
            fix="balance: weights gives rare classes more weight",
        )

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.double().sigmoid()

    def scores(self, logits_nc: torch.Tensor, y_nc: torch.Tensor) -> dict[str, float]:
        """Return the log-loss (nats, mean over classes), the same after temperature scaling, and the mean average precision."""
        logits, y = logits_nc.double(), y_nc.double()
        return {
            "log_loss": float(F.binary_cross_entropy_with_logits(logits, y)),
            "calibrated_log_loss": calibrated(lambda scaled: F.binary_cross_entropy_with_logits(scaled, y), logits),
            "mean_average_precision": quick_mean_average_precision(logits, y),
        }

    def fitted(self, answers_nc: torch.Tensor, truth_nc: torch.Tensor, rule: DecisionRule) -> Target:
        """Choose one threshold for the highest samples-averaged F-beta, and each class's for its own F-beta.

        A class without a validation image gets the common threshold.
        """
        p, y = answers_nc.numpy(), truth_nc.numpy() > 0
        common = float(GRID[np.argmax([samples_f(p > one, y, rule.beta).mean() for one in GRID])])
        own = [_best(p[:, i], y[:, i], rule.beta) if y[:, i].any() else common for i in range(self.outputs)]
        return replace(self, threshold=common, thresholds=tuple(own), rule=rule.thresholds, beta=rule.beta)

    def chosen(self) -> torch.Tensor:
        """Return the threshold of each class that decides, [c]."""
        if self.rule == "per_class" and self.thresholds:
            return torch.tensor(self.thresholds, dtype=torch.float64)
        return torch.full((self.outputs,), self.threshold, dtype=torch.float64)

    def with_rule(self, rule: str) -> MultiLabel:
        """Return the target that decides by "one" threshold or "per_class"."""
        return replace(self, rule=rule)

    def decide(self, answers_nc: torch.Tensor) -> torch.Tensor:
        """Return which classes an image has, bool [n, c]."""
        return answers_nc > self.chosen()

    def score_of_each(self, answers_nc: torch.Tensor, truth_nc: torch.Tensor, beta: float) -> NDArray[np.float64]:
        """Return each image's F-beta, [n]."""
        return samples_f(self.decide(answers_nc).numpy(), truth_nc.numpy() > 0, beta)

    def compare(self, a: Answered, b: Answered, truth_nc: torch.Tensor, seed: int) -> ScoreComparison:
        beta = _own(b).beta
        before, after = (_own(one).score_of_each(one.answers, truth_nc, beta) for one in (a, b))
        return compare_scores(before, after, f"F{beta:g}", seed)

    def constant(self, labels: Iterable[str]) -> tuple[torch.Tensor, str]:
        """Return the classes whose common answer has the highest mean F-beta on the training labels; the common ones first."""
        y = self.encode(labels).numpy() > 0
        order = np.argsort(-y.mean(0), kind="stable")
        tried = [np.isin(np.arange(self.outputs), order[:most]) for most in range(self.outputs + 1)]
        means = [samples_f(np.broadcast_to(one, y.shape), y, self.beta).mean() for one in tried]
        best = tried[int(np.argmax(means))]
        words = self.joiner.join(name for name, one in zip(self.classes, best, strict=True) if one)
        return torch.from_numpy(best.astype(float)), repr(words) if words else "no label"

    def verdict(self, own: Answered, other: Answered, truth_nc: torch.Tensor) -> str:
        beta = _own(own).beta
        mine, others = (_own(one).score_of_each(one.answers, truth_nc, beta).mean() for one in (own, other))
        return f"its mean F{beta:g} is {mine:.4f}; {{other}} has {others:.4f}"

    def align(self, answered: Answered) -> Answered:
        refuse_kind(self.kind, answered.target.kind)
        theirs = _own(answered)
        known = dict(zip(theirs.classes, theirs.chosen().tolist(), strict=True))
        own = tuple(known.get(name, NEVER) for name in self.classes)
        target = replace(self, thresholds=own, rule="per_class", beta=theirs.beta)
        return Answered(aligned(answered.answers, theirs.classes, self.classes), target)

    def rows(self, answers_nc: torch.Tensor, top: int) -> list[dict[str, Any]]:
        return [
            {"predicted": text} | row
            for text, row in zip(self.said(answers_nc), ranked(answers_nc, self.classes, top), strict=True)
        ]

    def served_types(self) -> dict[str, str]:
        return {"predicted": "string", "probabilities": "double[]"}

    def served(self, answers_nc: torch.Tensor) -> dict[str, list[Any]]:
        return {"predicted": self.said(answers_nc), "probabilities": answers_nc.tolist()}

    def said(self, answers_nc: torch.Tensor) -> list[str]:
        """Return each image's predicted label."""
        return [self.joiner.join(self.named(row)) for row in self.decide(answers_nc)]

    def named(self, chosen_c: torch.Tensor) -> list[str]:
        """Return the names of the classes that a row [c] has."""
        return [self.classes[i] for i in torch.nonzero(chosen_c).flatten().tolist()]


def _own(answered: Answered) -> MultiLabel:
    assert isinstance(answered.target, MultiLabel)
    return answered.target


def positive_weights(y_nc: torch.Tensor) -> torch.Tensor:
    """Return the weight [c] of each class's positives: images without it over images with it, at most 100."""
    with_c = y_nc.sum(0)
    return ((len(y_nc) - with_c) / with_c.clamp_min(1)).clamp(1 / HEAVIEST, HEAVIEST)


def samples_f(said_nc: NDArray[np.bool_], true_nc: NDArray[np.bool_], beta: float) -> NDArray[np.float64]:
    """Return each image's F-beta [n]; it is 1 where both label sets are empty, as when nothing is there and nothing is said."""
    both, said, true = (part.sum(1).astype(float) for part in (said_nc & true_nc, said_nc, true_nc))
    return _f(both, said, true, beta, empty=1.0)


def _best(p_n: NDArray[np.float64], true_n: NDArray[np.bool_], beta: float) -> float:
    """Return the threshold of one class with the highest F-beta; of equal ones the lowest."""
    said = p_n[:, None] > GRID
    found = _f((said & true_n[:, None]).sum(0), said.sum(0), true_n.sum(), beta)
    return float(GRID[int(np.argmax(found))])


def _f(both: Any, said: Any, true: Any, beta: float, empty: float = 0.0) -> Any:
    """Return F-beta from the counts of right, predicted and true labels. Source: van Rijsbergen 1979, chapter 7."""
    below = beta**2 * np.asarray(true) + said
    return np.where(below > 0, (1 + beta**2) * np.asarray(both) / np.maximum(below, 1e-12), empty)


def quick_mean_average_precision(scores_nc: torch.Tensor, y_nc: torch.Tensor) -> float:
    """Return `mean_average_precision` for scores without ties; of all classes at once, since every epoch asks for it."""
    ordered_nc = y_nc.gather(0, scores_nc.argsort(dim=0, descending=True, stable=True)).double()
    precision_nc = ordered_nc.cumsum(0) / torch.arange(1, len(y_nc) + 1).unsqueeze(1)
    with_c = y_nc.sum(0)
    present_c = (with_c > 0) & (with_c < len(y_nc))
    if not present_c.any() or not scores_nc.isfinite().all():
        return float("nan") if present_c.any() else 0.0
    return float(((precision_nc * ordered_nc).sum(0) / with_c.clamp_min(1))[present_c].mean())


def mean_average_precision(scores_nc: torch.Tensor, y_nc: torch.Tensor) -> float:
    """Return the mean of the classes' average precision; classes without an image, or with all of them, do not count."""
    from sklearn.metrics import average_precision_score  # other kinds start without it

    present = [i for i in range(y_nc.shape[1]) if 0 < y_nc[:, i].sum() < len(y_nc)]
    if not present or not scores_nc.isfinite().all():
        return float("nan") if present else 0.0
    return float(np.mean([average_precision_score(y_nc[:, i].numpy(), scores_nc[:, i].numpy()) for i in present]))
