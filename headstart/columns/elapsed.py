"""Count the days since an event and until the next, such as a promotion of a shop. n rows, g pairs of entity and date.

Source: the notebook on the Rossmann sales of fast.ai's lesson on tabular data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.columns.cells import MISSING, refuse
from headstart.columns.values import dates, read_categories
from headstart.core.errors import InputError
from headstart.core.text import printable

MEANS = {"1": True, "true": True, "0": False, "false": False} | dict.fromkeys(MISSING, False)
DAY = 86_400


def add_elapsed(frame: pd.DataFrame, date: str, event: str, by: str) -> pd.DataFrame:
    """Return a table with the columns "days since EVENT" and "days until EVENT" (float64) added; rows and order stay.

    They count from the last row of the same entity with the event, on this row's date or before, and to the next one on
    this date or after. NaN means that there is none, or that the row lacks its date or its entity.

    Args:
        date: the column with the dates.
        event: the column that says whether the event took place: 0 or 1, true or false, empty for 0.
        by: the column that names the entity.

    Raises:
        InputError: a column does not exist or is there already, or a value is neither a date nor one of an event.
    """
    since, until = f"days since {event}", f"days until {event}"
    _check(frame, (date, event, by), (since, until))
    entity_n = read_categories(frame[by])[0]
    seconds_n = dates(frame[date])
    usable_n = (entity_n >= 0) & ~np.isnat(seconds_n)
    found = np.full((2, len(frame)), np.nan)
    found[:, usable_n] = _days(entity_n[usable_n], seconds_n[usable_n].astype(np.int64), _events(frame[event])[usable_n])
    return frame.assign(**{since: found[0], until: found[1]})


def _check(frame: pd.DataFrame, wanted: tuple[str, ...], new: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        said, found = (printable(", ".join(map(str, names))) for names in (missing, frame.columns))
        raise InputError(f"elapsed: no column {said}; columns found: {found or 'none'}", fix="correct the name")
    there = [name for name in new if name in frame.columns]
    if there:
        raise InputError(f"elapsed: there is a column {printable(there[0])} already", fix="rename it")


def _events(series: pd.Series) -> NDArray[np.bool_]:
    places_n, names = read_categories(series)
    bad_n = np.array([*(name not in MEANS for name in names), False])[places_n]
    if bad_n.any():
        raise refuse(series, bad_n, "is not an event", wanted="0 or 1, true or false; empty for 0")
    return np.array([*(MEANS[name] for name in names), False])[places_n]


def _days(entity_n: NDArray[np.int64], seconds_n: NDArray[np.int64], event_n: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return days since and until an event [2, n]."""
    order = np.lexsort((seconds_n, entity_n))
    entity, seconds = entity_n[order], seconds_n[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(entity) != 0) | (np.diff(seconds) != 0)
    first = np.flatnonzero(starts)  # of each pair's rows
    if not len(first):
        return np.empty((2, 0))
    event_g = np.logical_or.reduceat(event_n[order], first)
    entity_g, seconds_g, places_g = entity[first], seconds[first], np.arange(len(first))
    last_g = np.maximum.accumulate(np.where(event_g, places_g, -1))
    next_g = np.minimum.accumulate(np.where(event_g, places_g, len(first))[::-1])[::-1]
    days_g = np.stack([_between(last_g, entity_g, seconds_g), _between(next_g, entity_g, seconds_g)])
    found = np.empty((2, len(order)))
    found[:, order] = days_g[:, np.cumsum(starts) - 1]
    return found


def _between(places_g: NDArray[np.int64], entity_g: NDArray[np.int64], seconds_g: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the days between each pair's date and that at its place; NaN where this is another entity's, or none."""
    inside_g = np.clip(places_g, 0, len(places_g) - 1)
    own = (places_g == inside_g) & (entity_g[inside_g] == entity_g)
    return np.where(own, np.abs(seconds_g - seconds_g[inside_g]) / DAY, np.nan)
