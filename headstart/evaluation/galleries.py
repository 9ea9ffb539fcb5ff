"""Pictures for the report: the test images that a model got most wrong, and those that look like training images."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from headstart.data.images import ImageSource
from headstart.evaluation.report import thumbnail
from headstart.models.trained import Card

MOST_WRONG = 12
ALIKE_SHOWN = 6


def most_wrong(images: ImageSource, test: pd.DataFrame, p_nc: torch.Tensor, card: Card) -> list[dict[str, Any]]:
    """The misclassified test images with the least probability of their true class, with their pictures."""
    y_n = torch.tensor(test["class_index"].to_numpy(), dtype=torch.int64)
    true_n = p_nc[torch.arange(len(y_n)), y_n]
    predicted_n = p_nc.argmax(1)
    order = [i for i in true_n.argsort(stable=True).tolist() if predicted_n[i] != y_n[i]][:MOST_WRONG]
    items = []
    for i in order:
        row = test.iloc[i]
        items.append(
            {
                "path": row["path"],
                "label": row["label"],
                "predicted": card.classes[int(predicted_n[i])],
                "confidence": float(p_nc[i].max()),
                "image": thumbnail(images.plain(row["path"], row["key"])),
            }
        )
    return items


def look_alike_pictures(images: ImageSource, pairs: pd.DataFrame, manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """The nearest pairs of a test and a training image, with their pictures."""
    keys = manifest.set_index("path")["key"]

    def picture(path: str) -> str:
        return thumbnail(images.plain(path, keys[path]))

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
