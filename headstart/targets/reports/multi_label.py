"""The report of several classes an image: F-beta, average precision, thresholds, which labels come together.

Shape legend: n test images, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from sklearn import metrics as sklearn

from headstart.manifest import SPLITS
from headstart.plotting import label as short
from headstart.targets.multi_label import MultiLabel, mean_average_precision, samples_f
from headstart.targets.reports import plots
from headstart.targets.reports.judged import Caption, Judged, KindOfReport, most, no_groups

PAIRS_SHOWN = 10
MEANINGS = {
    "worst": "Images with the highest log-loss. They are mislabelled, ambiguous, or worth learning from.",
    "best": "Images with the lowest log-loss.",
    "most uncertain": "Images with a probability nearly at its threshold. More training images like these would help most.",
}


def summarise(answers_nc: torch.Tensor, truth_nc: torch.Tensor, target: MultiLabel) -> dict[str, float]:
    """Return F-beta averaged over images (with the deciding, the common and each class's thresholds), and other metrics.

    `f_beta` and the F1 scores use the thresholds that decide; `log_loss` is the mean over images and classes, in nats.
    """
    true, said = truth_nc.numpy() > 0, target.decide(answers_nc).numpy()
    p = answers_nc.clamp(1e-15, 1 - 1e-15)
    rules = {rule: target.with_rule(rule).decide(answers_nc).numpy() for rule in ("one", "per_class")}
    return {
        "f_beta": float(samples_f(said, true, target.beta).mean()),
        "f_beta_one_threshold": float(samples_f(rules["one"], true, target.beta).mean()),
        "f_beta_per_class_thresholds": float(samples_f(rules["per_class"], true, target.beta).mean()),
        "micro_f1": float(sklearn.f1_score(true, said, average="micro", zero_division=0.0)),
        "macro_f1": float(sklearn.f1_score(true, said, average="macro", zero_division=0.0)),
        "mean_average_precision": mean_average_precision(answers_nc, truth_nc),
        "subset_accuracy": float((said == true).all(1).mean()),
        "log_loss": float(-(truth_nc * p.log() + (1 - truth_nc) * (1 - p).log()).mean()),
    }


def in_words(row: Mapping[str, Any]) -> str:
    """Return a model's F-beta, average precision and subset accuracy."""
    return (
        f"test F-beta {row['f_beta']:.4f}, mean average precision {row['mean_average_precision']:.4f},"
        f" all labels right {row['subset_accuracy']:.4f}"
    )


def losses(judged: Judged) -> torch.Tensor:
    """Return each image's log-loss, [n], as a mean over classes."""
    p = judged.answers.clamp(1e-15, 1 - 1e-15)
    return -(judged.truth * p.log() + (1 - judged.truth) * (1 - p).log()).mean(1)


def rankings(judged: Judged) -> dict[str, list[int]]:
    """Rank test images: worst by loss, best by loss, and most uncertain (their nearest probability to its threshold)."""
    loss_n = losses(judged)
    margin_n = (judged.answers - judged.target.chosen()).abs().amin(1)
    return {"worst": most(loss_n), "best": most(loss_n, descending=False), "most uncertain": most(margin_n, descending=False)}


def caption(judged: Judged, i: int) -> Caption:
    """Return an image's labels, with those that are missed and those that are predicted wrongly."""
    target = judged.target
    true, said = set(target.named(judged.truth[i])), set(target.named(target.decide(judged.answers[i])))
    parts = [Markup("<b>{}</b>").format(name) for name in sorted(true & said)]
    parts += [
        Markup("missed <b>{}</b> ({:.0f} %)").format(name, 100 * probability(judged, i, name)) for name in sorted(true - said)
    ]
    parts += [
        Markup("wrongly <b>{}</b> ({:.0f} %)").format(name, 100 * probability(judged, i, name)) for name in sorted(said - true)
    ]
    alt = f"labelled {', '.join(sorted(true)) or 'with nothing'}, predicted {', '.join(sorted(said)) or 'nothing'}"
    sheet = f"{short(' '.join(sorted(true)) or '–')}\nas {short(' '.join(sorted(said)) or '–')}"
    return Caption(Markup(", ").join(parts) or Markup("no label"), alt, sheet, "right" if true == said else "wrong")


def probability(judged: Judged, i: int, name: str) -> float:
    """Return the probability of a class for an image."""
    return float(judged.answers[i, judged.classes.index(name)])


def pictures(judged: Judged) -> dict[str, bytes]:
    """Draw precision_recall.png (the classes that have test images, at most ten worst if there are more) and together.png."""
    true = judged.truth.numpy() > 0
    present = [i for i in range(true.shape[1]) if true[:, i].sum() > 0]
    worst = sorted(present, key=lambda i: (sklearn.average_precision_score(true[:, i], judged.answers[:, i].numpy()), i))
    curves = []
    for i in sorted(worst[:10]):
        precision, recall, _ = sklearn.precision_recall_curve(true[:, i], judged.answers[:, i].numpy())
        curves.append((judged.classes[i], recall, precision))
    counts = true.astype(np.int64).T @ true.astype(np.int64)
    return {"precision_recall.png": plots.precision_recall(curves), "together.png": plots.together(counts, judged.classes)}


def context(judged: Judged, manifest: pd.DataFrame) -> dict[str, Any]:
    """Return each class's metrics, threshold and counts, and the pairs of labels that come together most often."""
    true, said = judged.truth.numpy() > 0, judged.target.decide(judged.answers).numpy()
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(true, said, average=None, zero_division=0.0)
    thresholds = judged.target.chosen().tolist()
    counts = manifest.drop_duplicates(["split", "key", "label"]).groupby(["label", "split"]).size()
    rows = []
    for i, name in enumerate(judged.classes):
        has = true[:, i].any()
        ap = float(sklearn.average_precision_score(true[:, i], judged.answers[:, i].numpy())) if has else 0.0
        figures = {"precision": precision[i], "recall": recall[i], "f1": f1[i], "average_precision": ap}
        rows.append(
            {"name": name, "threshold": thresholds[i], **figures}
            | {split: int(counts.get((name, split), 0)) for split in SPLITS}
        )
    return {"per_class": rows, "pairs": _pairs(true, judged.classes), "thresholds": judged.target}


def _pairs(true: Any, classes: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return (class, class, test images) of the pairs of labels that come together most often."""
    counts = true.astype(np.int64).T @ true.astype(np.int64)
    found = [(int(counts[i, j]), classes[i], classes[j]) for i in range(len(classes)) for j in range(i) if counts[i, j]]
    return [(one, other, count) for count, one, other in sorted(found, key=lambda p: (-p[0], p[1], p[2]))[:PAIRS_SHOWN]]


REPORT = KindOfReport(
    "multi_label.html.j2", "f_beta", summarise, in_words, MEANINGS, rankings, no_groups, caption, pictures, context
)
