"""The report of one class an image: accuracy, galleries as in fast.ai's lesson 3, confusion, calibration.

Shape legend: n test images, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from markupsafe import Markup

from headstart.manifest import SPLITS
from headstart.plotting import label as short
from headstart.targets.reports import plots
from headstart.targets.reports.classification import confusion_matrix, most_confused, per_class, reliability, summarise
from headstart.targets.reports.judged import Caption, Judged, KindOfReport

PER_CLASS = 4
CLASSES_SHOWN = 40
MEANINGS = {
    "most wrong": "Errors in which the true class has the lowest probability."
    " Such images are mislabelled, ambiguous, or worth learning from.",
    "most right": "Correct predictions with the highest confidence.",
    "most uncertain": "Images whose two likeliest classes have nearly the same probability."
    " More training images like these would help most.",
}


def rankings(judged: Judged) -> dict[str, list[int]]:
    """Rank test images: most wrong (errors by lowest probability of the true class), most right, most uncertain."""
    _, true_n, hit_n = true_class(judged)
    ascending = true_n.argsort(stable=True).tolist()
    top = judged.answers.topk(min(2, judged.answers.shape[1]), dim=1).values
    margin_n = top[:, 0] - top[:, -1]
    return {
        "most wrong": [i for i in ascending if not hit_n[i]],
        "most right": [i for i in true_n.argsort(stable=True, descending=True).tolist() if hit_n[i]],
        "most uncertain": margin_n.argsort(stable=True).tolist(),
    }


def true_class(judged: Judged) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the true class, its probability, and whether it was predicted, [n] each."""
    y_n = judged.truth
    return y_n, judged.answers[torch.arange(len(y_n)), y_n], judged.answers.argmax(1) == y_n


def by_class(judged: Judged) -> dict[str, list[int]]:
    """Choose each class's most wrong and most right images, for up to 40 classes, those with the lowest accuracy."""
    y_n, true_n, hit_n = true_class(judged)
    present = [c for c in range(len(judged.classes)) if bool((y_n == c).any())]
    worst = sorted(present, key=lambda c: (float(hit_n[y_n == c].double().mean()), c))[:CLASSES_SHOWN]
    chosen: dict[str, list[int]] = {}
    for c in sorted(worst):
        rows = torch.nonzero(y_n == c).flatten()
        order = rows[true_n[rows].argsort(stable=True)].tolist()
        wrong = [i for i in order if not hit_n[i]][:PER_CLASS]
        right = [i for i in reversed(order) if hit_n[i]][:PER_CLASS]
        chosen[judged.classes[c]] = wrong + right
    return chosen


def caption(judged: Judged, i: int) -> Caption:
    """Return an image's true and predicted class with their probabilities."""
    confidence, said = (float(part) for part in judged.answers[i].max(0))
    label, predicted = judged.table["label"][i], judged.classes[int(said)]
    sheet = f"{short(label)}\nas {short(predicted)} {100 * confidence:.0f} %"
    if predicted == label:
        html = Markup("<b>{}</b>, right ({:.1f} %)").format(label, 100 * confidence)
        return Caption(html, f"a {label}", sheet, "right")
    true = float(judged.answers[i, int(judged.truth[i])])
    html = Markup("<b>{}</b> ({:.1f} %) classified as <b>{}</b> ({:.1f} %)").format(
        label, 100 * true, predicted, 100 * confidence
    )
    return Caption(html, f"a {label} classified as {predicted}", sheet, "wrong")


def counts_of(judged: Judged) -> Any:
    """Return counts [c, c]: rows are the true classes, columns the predicted ones."""
    return confusion_matrix(judged.truth, judged.answers.argmax(1), len(judged.classes))


def pictures(judged: Judged) -> dict[str, bytes]:
    """Draw confusion_matrix.png and calibration.png."""
    return {
        "confusion_matrix.png": plots.confusion(counts_of(judged), judged.classes),
        "calibration.png": plots.reliability_diagram(reliability(judged.answers, judged.truth)),
    }


def context(judged: Judged, manifest: pd.DataFrame) -> dict[str, Any]:
    """Return the most frequent confusions, and each class's metrics and counts."""
    counts = counts_of(judged)
    measured = per_class(judged.truth, judged.answers.argmax(1), len(counts))
    return {"confused": most_confused(counts, judged.classes), "per_class": class_rows(measured, judged.classes, manifest)}


def class_rows(measured: Sequence[Mapping[str, float]], classes: Sequence[str], manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Join per-class metrics with the number of images in each split; copies count once.

    Args:
        manifest: a row for each class of each image.
    """
    counts = manifest.drop_duplicates(["split", "key", "label"]).groupby(["label", "split"]).size()
    return [
        {"name": name, **row, **{split: int(counts.get((name, split), 0)) for split in SPLITS}}
        for name, row in zip(classes, measured, strict=True)
    ]


def in_words(row: Mapping[str, Any]) -> str:
    """Return a model's accuracy with its interval."""
    figures = f"{row['accuracy']:.4f} (95 % interval {row['accuracy_low']:.4f} to {row['accuracy_high']:.4f})"
    return f"test accuracy {figures}"


REPORT = KindOfReport(
    "single_label.html.j2",
    "accuracy",
    lambda answers, truth, target: summarise(answers, truth),
    in_words,
    MEANINGS,
    rankings,
    by_class,
    caption,
    pictures,
    context,
)
