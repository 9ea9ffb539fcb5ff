"""The range of gray images with more than 8 bits: one raw value becomes white in all images of a source."""

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
        integer: the value for gray images with more than 8 bits.
        floating: the value for gray images of floating-point numbers.
    """

    integer: float = 65535.0
    floating: float = 1.0


def integer_white(peak: float) -> float:
    """Return white for whole numbers up to `peak`: the largest value of 8, 10, 12, 14 or 16 bits, or else `peak`."""
    return next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if peak < 2**bits), float(peak))


def floating_white(peak: float) -> float:
    """Return white for floating-point numbers up to `peak`: 1 for shares, 255 for levels of 8 bits, or else `peak`."""
    if peak <= 1:
        return 1.0
    return 255.0 if 128 <= peak <= 255 else float(peak)


def whites_of(manifest: pd.DataFrame) -> Whites:
    """Return the raw values that become white, from the largest one in all gray images of more than 8 bits."""

    def peak(kinds: str) -> float:
        return float(manifest.loc[manifest["mode"].str.startswith(kinds), "peak"].max(skipna=True))

    integer, floating = peak("I"), peak("F")
    standard = Whites()
    return Whites(
        standard.integer if math.isnan(integer) else integer_white(integer),
        standard.floating if math.isnan(floating) else floating_white(floating),
    )
