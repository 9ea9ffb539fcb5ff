"""The range of gray images with more than 8 bits: which raw value becomes white, one for all images of a source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Whites:
    """The raw values that become white (255), the same for all images of a source, so that equal values look equal.

    Args:
        integer: of gray images with more than 8 bits.
        floating: of gray images of floating-point numbers.
    """

    integer: float = 65535.0
    floating: float = 1.0


def integer_white(peak: float) -> float:
    """White for whole numbers up to `peak`: the end of 8, 10, 12, 14 or 16 bits, or what was found where it is more."""
    return next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if peak < 2**bits), float(peak))


def floating_white(peak: float) -> float:
    """White for floating-point numbers up to `peak`: 1 for shares, 255 for levels of 8 bits, else what was found."""
    if peak <= 1:
        return 1.0
    return 255.0 if 128 <= peak <= 255 else float(peak)


def whites_of(manifest: pd.DataFrame) -> Whites:
    """The raw values that become white: from the largest one found in all gray images of more than 8 bits."""

    def peak(kinds: str) -> float:
        return float(manifest.loc[manifest["mode"].str.startswith(kinds), "peak"].max(skipna=True))

    integer, floating = peak("I"), peak("F")
    standard = Whites()
    return Whites(
        standard.integer if math.isnan(integer) else integer_white(integer),
        standard.floating if math.isnan(floating) else floating_white(floating),
    )
