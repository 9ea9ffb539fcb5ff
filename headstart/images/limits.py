"""The limits of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST_ELONGATED = 16  # largest ratio of the sides that is resized; no view reaches the rest


@dataclass(frozen=True)
class Limits:
    """The limits of an image: its size and its format.

    Args:
        max_pixels: the largest width x height.
        min_side: the smallest width and height.
        formats: the accepted ones of `decode.FORMATS`.
    """

    max_pixels: int
    min_side: int
    formats: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
