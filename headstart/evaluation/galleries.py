"""Galleries of test images, as in fast.ai's lesson 3: most wrong, most right, most uncertain, per class, and look-alikes.

Shape legend: n test images, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from headstart.evaluation.encoding import base64_text, encoded
from headstart.images.loader import ImageSource
from headstart.plotting import label as short

SHOWN = 12
PER_CLASS = 4
CLASSES_SHOWN = 40
ALIKE_SHOWN = 6
TILE, COLUMNS = 128, 6


@dataclass(frozen=True)
class TestPredictions:
    """The test images and a model's predictions for them.

    Args:
        images: reads the images.
        table: the manifest's rows of the test split.
        p_nc: probabilities.
        classes: in the order of the columns of `p_nc`.
    """

    images: ImageSource
    table: pd.DataFrame
    p_nc: torch.Tensor
    classes: Sequence[str]

    def true_class(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the true class, its probability, and whether it was predicted, [n] each."""
        y_n = torch.tensor(self.table["class_index"].to_numpy(), dtype=torch.int64)
        return y_n, self.p_nc[torch.arange(len(y_n)), y_n], self.p_nc.argmax(1) == y_n

    def picture(self, i: int) -> torch.Tensor:
        """Return the base view of test image i, [3, s, s] uint8."""
        return self.images.base_view(self.table["path"][i], self.table["key"][i])

    def item(self, i: int) -> dict[str, Any]:
        """Return the facts about test image i and its picture, for the report."""
        return self.facts(i) | {"image": thumbnail(self.picture(i))}

    def facts(self, i: int) -> dict[str, Any]:
        """Return the path, true and predicted label of test image i, and the probabilities of both."""
        confidence, said = (float(part) for part in self.p_nc[i].max(0))
        return {
            "path": self.table["path"][i],
            "label": self.table["label"][i],
            "predicted": self.classes[int(said)],
            "confidence": confidence,
            "true": float(self.p_nc[i, int(self.table["class_index"][i])]),
        }


def rankings(judged: TestPredictions) -> dict[str, list[int]]:
    """Rank test images: most wrong (errors by lowest probability of the true class), most right, most uncertain."""
    _, true_n, hit_n = judged.true_class()
    ascending = true_n.argsort(stable=True).tolist()
    top = judged.p_nc.topk(min(2, judged.p_nc.shape[1]), dim=1).values
    margin_n = top[:, 0] - top[:, -1]
    return {
        "most wrong": [i for i in ascending if not hit_n[i]],
        "most right": [i for i in true_n.argsort(stable=True, descending=True).tolist() if hit_n[i]],
        "most uncertain": margin_n.argsort(stable=True).tolist(),
    }


def by_class(judged: TestPredictions) -> dict[str, list[int]]:
    """Choose each class's most wrong and most right images, for up to 40 classes, those with the lowest accuracy."""
    y_n, true_n, hit_n = judged.true_class()
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


def thumbnail(image: torch.Tensor) -> str:
    """Return a [3, s, s] uint8 image as PNG in base64, made smaller if it is large."""
    return base64_text(encoded(_tile(image)))


def _tile(image: torch.Tensor) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return picture


def contact_sheet(judged: TestPredictions, rows: Sequence[int]) -> bytes:
    """Draw test images side by side as one PNG, each with its true and its predicted class."""
    from matplotlib.figure import Figure

    from headstart.plotting import png

    lines, height = max(1, -(-len(rows) // COLUMNS)), 1.22  # the height of a cell, in widths
    figure = Figure(figsize=(1.5 * COLUMNS, 1.5 * height * lines))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: a subplot for each takes twice as long
    axes.set_axis_off()
    for cell, i in enumerate(rows):
        left, bottom = cell % COLUMNS, height * (cell // COLUMNS + 1)
        item = judged.facts(i)
        extent = (left + 0.03, left + 0.97, bottom - 0.03, bottom - 0.97)
        axes.imshow(np.asarray(_tile(judged.picture(i))), extent=extent, aspect="auto")
        caption = f"{short(item['label'])}\nas {short(item['predicted'])} {100 * item['confidence']:.0f} %"
        axes.text(left + 0.5, bottom - 0.98, caption, ha="center", va="bottom", fontsize=6.5)
    axes.set(xlim=(0, COLUMNS), ylim=(height * lines, 0))
    return png(figure)


def sheets(judged: TestPredictions) -> Mapping[str, bytes]:
    """Draw most_wrong.png, most_right.png and most_uncertain.png."""
    return {f"{name.replace(' ', '_')}.png": contact_sheet(judged, rows[:SHOWN]) for name, rows in rankings(judged).items()}


def look_alike_pictures(images: ImageSource, pairs: pd.DataFrame, manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the most similar pairs of a test and a training image, with their pictures."""
    keys = manifest.set_index("path")["key"]

    def picture(path: str) -> str:
        return thumbnail(images.base_view(path, keys[path]))

    return [
        {
            "path": row.path,
            "label": row.label,
            "like": row.like,
            "like_label": row.like_label,
            "image": picture(str(row.path)),
            "like_image": picture(str(row.like)),
        }
        for row in pairs.head(ALIKE_SHOWN).itertuples()
    ]
