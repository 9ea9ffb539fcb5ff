"""Galleries of test images, as in fast.ai's lesson 3: the rankings of the kind of target, and look-alikes."""

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
from headstart.targets.reports.judged import SHOWN, Judged, KindOfReport

ALIKE_SHOWN = 6
TILE, COLUMNS = 128, 6


@dataclass(frozen=True)
class Gallery:
    """The test images, and what a model says of them.

    Args:
        judged: the answers beside the truth.
        report: what the kind of target shows.
        images: reads the images; None for rows without images.
    """

    judged: Judged
    report: KindOfReport
    images: ImageSource | None

    def picture(self, i: int) -> torch.Tensor:
        """Return the base view of test image i, [3, s, s] uint8."""
        assert self.images is not None
        return self.images.base_view(self.judged.table["path"][i], self.judged.table["key"][i])

    def item(self, i: int) -> dict[str, Any]:
        """Return what the report shows of test image i."""
        caption = self.report.caption(self.judged, i)
        facts = {"path": self.judged.table["path"][i], "html": caption.html, "alt": caption.alt, "mark": caption.mark}
        return facts | {"image": thumbnail(self.picture(i)) if self.images is not None else ""}

    def items(self, rankings: Mapping[str, Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
        """Return `item` of each image that is ranked, by the ranking's name."""
        return {name: [self.item(i) for i in rows] for name, rows in rankings.items()}


def thumbnail(image: torch.Tensor) -> str:
    """Return a [3, s, s] uint8 image as PNG in base64, made smaller if it is large."""
    return base64_text(encoded(_tile(image)))


def _tile(image: torch.Tensor) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return picture


def contact_sheet(gallery: Gallery, rows: Sequence[int]) -> bytes:
    """Draw test images side by side as one PNG, each with the truth and the answer."""
    from matplotlib.figure import Figure

    from headstart.plotting import png

    lines, height = max(1, -(-len(rows) // COLUMNS)), 1.22  # the height of a cell, in widths
    figure = Figure(figsize=(1.5 * COLUMNS, 1.5 * height * lines))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: a subplot for each takes twice as long
    axes.set_axis_off()
    for cell, i in enumerate(rows):
        left, bottom = cell % COLUMNS, height * (cell // COLUMNS + 1)
        extent = (left + 0.03, left + 0.97, bottom - 0.03, bottom - 0.97)
        axes.imshow(np.asarray(_tile(gallery.picture(i))), extent=extent, aspect="auto")
        axes.text(
            left + 0.5, bottom - 0.98, gallery.report.caption(gallery.judged, i).sheet, ha="center", va="bottom", fontsize=6.5
        )
    axes.set(xlim=(0, COLUMNS), ylim=(height * lines, 0))
    return png(figure)


def sheets(gallery: Gallery) -> dict[str, bytes]:
    """Draw each ranking as a contact sheet, such as most_wrong.png; none for rows without images."""
    if gallery.images is None:
        return {}
    rankings = gallery.report.rankings(gallery.judged)
    return {f"{name.replace(' ', '_')}.png": contact_sheet(gallery, rows[:SHOWN]) for name, rows in rankings.items()}


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
