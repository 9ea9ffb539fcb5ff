"""What a head takes for each image or row: its activations, its encoded columns, or both side by side.

Shape legend: v views (the base view first), n images or rows, d activation width, m numbers, k categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.activations.store import Activations
from headstart.columns.encoders import Encoders


class HeadInputs:
    """The inputs of a head, in mapped files below data/activations.

    Attributes:
        pooled: activations; None without images.
        columns: encoded columns; None without columns.
        width: d; 0 without images.

    Raises:
        InputError: neither is there, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        has_columns = (folder / "columns").is_dir()
        self.columns = Activations(folder / "columns") if has_columns else None
        self.pooled = Activations(folder / "pooled") if (folder / "pooled").is_dir() or not has_columns else None
        self.width = self.pooled.width if self.pooled else 0
        self.views = self.pooled.views if self.pooled else 1

    @property
    def parts(self) -> list[Activations]:
        """Return what there is of activations and columns."""
        return [part for part in (self.pooled, self.columns) if part is not None]

    @property
    def row_width(self) -> int:
        """Return the number of values of a row, d + m + k."""
        return sum(part.width for part in self.parts)

    def digest(self) -> str:
        """Return a digest of all rows, without reading any."""
        return " ".join(part.digest() for part in self.parts)

    def meta(self) -> dict[str, Any]:
        """Return the provenance of the activations; of no network if there are no images."""
        return (
            self.pooled.meta if self.pooled else {"backbone": "none", "options": {}, "weights": "none", "preprocessing": None}
        )

    def encoders(self) -> Encoders | None:
        """Return what encoded the columns."""
        return Encoders.from_dict(self.columns.meta["encoders"]) if self.columns else None

    def reader(self, keys: Iterable[str]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return a function from numbers of keys [n] and views [n] to rows [n, d + m + k] float32.

        Raises:
            InputError: a key has no row.
        """
        chosen = list(keys)
        located = [part.locate(chosen) for part in self.parts]

        def take(images: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
            shifts = [views.numpy() if part is self.pooled else 0 for part in self.parts]
            found = [
                part.gather(rows[images.numpy()] + shift) for part, rows, shift in zip(self.parts, located, shifts, strict=True)
            ]
            return found[0] if len(found) == 1 else torch.cat(found, dim=1)

        return take

    def all_views(self, keys: Sequence[str]) -> Iterable[torch.Tensor]:
        """Yield rows [n, d + m + k] of each view, the base view first."""
        take, images = self.reader(keys), torch.arange(len(keys))
        return (take(images, torch.full_like(images, view)) for view in range(self.views))

    def rows(self, keys: Iterable[str]) -> torch.Tensor:
        """Return the base views' rows [n, d + m + k], all in memory."""
        take = self.reader(chosen := list(keys))
        return take(torch.arange(len(chosen)), torch.zeros(len(chosen), dtype=torch.int64))

    def numbers(self, keys: Iterable[str]) -> np.ndarray:
        """Return the encoded numbers [n, m] float32 of rows."""
        assert self.columns is not None
        encoders = self.encoders()
        assert encoders is not None
        return self.columns.rows(list(keys))[:, : len(encoders.continuous_names)].numpy()
