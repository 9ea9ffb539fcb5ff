"""Find columns that give the target away: in use nobody has them, so a model that leans on them is of no use. n rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.columns.roles import Roles
from headstart.columns.values import dates, numbers, read_categories
from headstart.core.text import printable

FEWEST = 10  # in fewer rows chance does it
RANKED = 30  # a column with so many values in the target's order is no chance either
Codes = NDArray[np.int64]
Values = tuple[Codes, Any]


def disguised_target(frame: pd.DataFrame, roles: Roles, target: NDArray) -> list[str]:
    """Return a sentence about each column that alone predicts the target perfectly.

    It does so if each of its values, of which there are at most half as many as rows, has a single target; if it is missing
    in the rows with one label, or with one of two numbers, and in no other; or if the target is a number and the column has
    its order (Spearman's correlation is 1 or -1).

    Args:
        frame: the rows; pass training rows, on whose columns the model will lean.
        target: of each row: numbers [n] float64, or labels [n] as text.
    """
    ordered = np.issubdtype(np.asarray(target).dtype, np.floating)
    target_n, targets = pd.factorize(np.asarray(target), sort=ordered)
    if len(frame) < FEWEST or len(targets) < 2:
        return []
    found = [(name, _giveaway(values, target_n, ordered)) for name, values in _columns(frame, roles)]
    return [f"column {printable(name)} looks like the target: {what}" for name, what in found if what]


def _columns(frame: pd.DataFrame, roles: Roles) -> Iterator[tuple[str, Values]]:
    """Yield each column's name, the places of its n values among the different ones (-1 if missing), and these if ordered."""
    for name in roles.categorical:
        yield name, (read_categories(frame[name])[0], None)
    for name in roles.continuous:
        yield name, pd.factorize(numbers(frame[name]))
    for name in roles.date:
        yield name, pd.factorize(dates(frame[name]))


def _giveaway(values: Values, target_n: Codes, ordered: bool) -> str:
    """Return what gives the target away, or an empty text."""
    places_n, different = values
    missing_n = places_n < 0
    if _is_missing_for_one(missing_n, target_n, ordered):
        return "it is missing in all rows with one target, and in no other row"
    if not _determines(places_n[~missing_n], target_n[~missing_n]):
        return ""
    if ordered and different is not None and len(different) >= RANKED and _same_order(values, target_n):
        return "its values have the target's order without an exception (Spearman's correlation is 1 or -1)"
    count = int(places_n.max(initial=-1)) + 1 + int(missing_n.any())
    if 2 * count <= len(target_n) and _determines(np.where(missing_n, places_n.max(initial=-1) + 1, places_n), target_n):
        return f"each of its {count:,} values goes with a single target"
    return ""


def _is_missing_for_one(missing_n: NDArray[np.bool_], target_n: Codes, ordered: bool) -> bool:
    """Return whether the missing rows are those with one label, or with one of two numbers; one row alone is chance."""
    if not 1 < missing_n.sum() < len(missing_n) - 1 or (ordered and target_n.max() > 1):
        return False
    return np.array_equal(missing_n, target_n == target_n[missing_n][0])


def _determines(places_n: Codes, target_n: Codes) -> bool:
    """Return whether rows with the same value have the same target."""
    target_d = np.zeros(int(places_n.max(initial=-1)) + 1, np.int64)
    target_d[places_n] = target_n
    return bool((target_d[places_n] == target_n).all())


def _same_order(values: Values, target_n: Codes) -> bool:
    """Return whether a column that determines the target rises, or falls, whenever the target does."""
    places_n, different = values
    target_d = np.zeros(len(different), np.int64)
    target_d[places_n[places_n >= 0]] = target_n[places_n >= 0]
    steps = np.diff(target_d[np.argsort(different)])
    return bool((steps > 0).all() or (steps < 0).all())
