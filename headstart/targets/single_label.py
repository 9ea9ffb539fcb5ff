"""One class an image: cross-entropy, the most probable class, McNemar's test. Shape legend: n images, c classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from headstart.statistics import Comparison, compare
from headstart.targets.labels import LabelFormat
from headstart.targets.target import WORSE, Answered, DecisionRule, Loss, LossRule, Target, calibrated, refuse_kind, refuse_loss


@dataclass(frozen=True)
class SingleLabel:
    """One class an image. `classes` are in the order of the logits."""

    classes: tuple[str, ...]
    kind: ClassVar[str] = "single_label"
    chosen_by: ClassVar[str] = "calibrated_log_loss"
    headline: ClassVar[str] = "accuracy"
    worse: ClassVar[float] = WORSE
    scores_in_words: ClassVar[Mapping[str, str]] = {
        "calibrated_log_loss": "log-loss (after temperature scaling)",
        "accuracy": "accuracy",
    }

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def format(self) -> LabelFormat:
        return LabelFormat("single_label")

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": list(self.classes)}

    def encode(self, labels: Iterable[str]) -> torch.Tensor:
        """Return class indices [n] int64."""
        index = {name: i for i, name in enumerate(self.classes)}
        return torch.tensor([index[label] for label in labels], dtype=torch.int64)

    truth = encode

    def loss(self, rule: LossRule, y_n: torch.Tensor) -> Loss:
        refuse_loss(rule, "classes")
        weights = class_weights(y_n, int(y_n.max()) + 1) if rule.balance == "weights" else None
        return cross_entropy(rule.label_smoothing, weights)

    def guess(self, rule: LossRule, y_n: torch.Tensor) -> float:
        """Return the entropy of the targets, in nats; weights also count the share that smoothing spreads over all classes."""
        counts = torch.bincount(y_n, minlength=self.outputs).double()
        shown = (counts > 0).double() if rule.balance == "sampling" else counts
        share_c = (1 - rule.label_smoothing) * shown / shown.sum() + rule.label_smoothing / self.outputs
        if rule.balance == "weights":
            weight_c = class_weights(y_n, self.outputs).double()
            share_c = weight_c * share_c * counts.sum() / (weight_c * counts).sum()
        return float(-torch.special.xlogy(share_c, share_c / share_c.sum()).sum())

    def sampling_weights(self, y_n: torch.Tensor) -> torch.Tensor:
        return class_weights(y_n, int(y_n.max()) + 1)[y_n]

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.double().softmax(-1)

    def scores(self, logits_nc: torch.Tensor, y_n: torch.Tensor) -> dict[str, float]:
        """Return the log-loss (nats), the log-loss after temperature scaling, and the accuracy."""
        logits = logits_nc.double()
        return {
            "log_loss": float(F.cross_entropy(logits, y_n)),
            "calibrated_log_loss": calibrated(lambda scaled: F.cross_entropy(scaled, y_n), logits),
            "accuracy": float((logits_nc.argmax(1) == y_n).double().mean()),
        }

    def fitted(self, answers_nc: torch.Tensor, truth: torch.Tensor, rule: DecisionRule) -> Target:
        return self

    def compare(self, a: Answered, b: Answered, y_n: torch.Tensor, seed: int) -> Comparison:
        return compare(a.answers, b.answers, y_n, seed)

    def constant(self, labels: Iterable[str]) -> tuple[torch.Tensor, str]:
        """Return the most frequent class; of several, the first by name."""
        counts = Counter(labels)
        most = min(counts, key=lambda label: (-counts[label], label))
        return F.one_hot(torch.tensor(self.classes.index(most)), self.outputs).double(), repr(most)

    def verdict(self, own: Answered, other: Answered, y_n: torch.Tensor) -> str:
        right, others = (int((one.answers.argmax(1) == y_n).sum()) for one in (own, other))
        return f"it classifies {right:,} correctly; {{other}} would be correct for {others:,}"

    def align(self, answered: Answered) -> Answered:
        refuse_kind(self.kind, answered.target.kind)
        assert isinstance(answered.target, SingleLabel)
        return Answered(aligned(answered.answers, answered.target.classes, self.classes), self)

    def rows(self, answers_nc: torch.Tensor, top: int) -> list[dict[str, Any]]:
        found = []
        for row in ranked(answers_nc, self.classes, top):
            found.append({"predicted": row["label_1"], "confidence": row["probability_1"], "abstained": False} | row)
        return found

    def served_types(self) -> dict[str, str]:
        return {"predicted": "string", "confidence": "double", "probabilities": "double[]"}

    def served(self, answers_nc: torch.Tensor) -> dict[str, list[Any]]:
        first = self.rows(answers_nc, 1)
        return {name: [row[name] for row in first] for name in ("predicted", "confidence")} | {
            "probabilities": answers_nc.tolist()
        }


def ranked(answers_nc: torch.Tensor, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Return for each image label_1, probability_1, … of its `top` most probable classes."""
    p_nk, i_nk = answers_nc.topk(min(top, len(classes)), dim=1)
    return [
        {name: value for rank, (one, i) in enumerate(zip(p, index, strict=True), start=1)
         for name, value in ((f"label_{rank}", classes[i]), (f"probability_{rank}", one))}
        for p, index in zip(p_nk.tolist(), i_nk.tolist(), strict=True)
    ]  # fmt: skip


def aligned(p_nc: torch.Tensor, own: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return probabilities in the order of `classes`, with 0 for each class that the model does not know."""
    columns = [p_nc[:, own.index(label)] if label in own else torch.zeros_like(p_nc[:, 0]) for label in classes]
    return torch.stack(columns, dim=1)


def cross_entropy(label_smoothing: float = 0.0, weight_c: torch.Tensor | None = None) -> Loss:
    """Return a cross-entropy loss with smoothed labels (Szegedy et al. 2015, arXiv:1512.00567, section 7) and class weights.

    Args:
        label_smoothing: share of the target that is spread over all classes.
        weight_c: weight of each class, [c]; the mean is over the weights.
    """

    def loss(logits_nc: torch.Tensor, y_n: torch.Tensor) -> torch.Tensor:
        weight = weight_c
        if weight is not None:  # the last classes may have no training image
            weight = F.pad(weight, (0, logits_nc.shape[1] - len(weight))).to(logits_nc.device)
        return F.cross_entropy(logits_nc, y_n, weight=weight, label_smoothing=label_smoothing)

    return loss


def class_weights(y_n: torch.Tensor, classes: int) -> torch.Tensor:
    """Return weights [c] that make every class count the same: n / (c x its images); 0 for a class without images."""
    counts = torch.bincount(y_n, minlength=classes).float()
    return torch.where(counts > 0, len(y_n) / (classes * counts.clamp_min(1)), 0.0)
