"""Count the days since an event and until the next, such as a promotion of a shop, and the events of the days around.

Shape legend: n rows, g pairs of entity and date, in this order.

Source: the notebook on the Rossmann sales of fast.ai's lesson on tabular data.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.columns.cells import MISSING, refuse
from headstart.columns.values import dates, holds, read_categories
from headstart.core.errors import InputError, require_columns
from headstart.core.text import printable

MEANS = {"1": True, "true": True, "0": False, "false": False} | dict.fromkeys(MISSING, False)
DAY = 86_400


def add_elapsed(
    frame: pd.DataFrame, date: str, event: str, by: str, values: Collection[str] = (), window: int = 0
) -> pd.DataFrame:
    """Return a table with the columns "days since EVENT" and "days until EVENT" (float64) added; rows and order stay.

    They count from the last row of the same entity with the event, on this row's date or before, and to the next one on
    this date or after. NaN means that there is none, or that the row lacks its date or its entity. With a window of 7, the
    columns "EVENT in the last 7 days" and "EVENT in the next 7 days" say on how many of this date and the 6 days before, or
    after, it took place.

    Args:
        date: the column with the dates.
        event: the column that says whether the event took place: 0 or 1, true or false, empty for 0.
        by: the column that names the entity.
        values: what the column holds where the event took place, if that is not 1 or true; all else means that it did not.
        window: days; 0 counts no events.

    Raises:
        InputError: a column does not exist or is there already, or a value is neither a date nor one of an event.
    """
    names = [f"days since {event}", f"days until {event}"]
    names += [f"{event} in the {which} {window} days" for which in ("last", "next")] if window else []
    _check(frame, (date, event, by), names)
    entity_n = read_categories(frame[by])[0]
    seconds_n = dates(frame[date])
    usable_n = (entity_n >= 0) & ~np.isnat(seconds_n)
    event_n = _events(frame[event], values)
    found = np.full((len(names), len(frame)), np.nan)
    found[:, usable_n] = _counted(entity_n[usable_n], seconds_n[usable_n].astype(np.int64), event_n[usable_n], window * DAY)
    return frame.assign(**dict(zip(names, found, strict=True)))


def _check(frame: pd.DataFrame, wanted: Collection[str], new: Collection[str]) -> None:
    require_columns("elapsed", wanted, frame.columns, fix="correct the name")
    there = [name for name in new if name in frame.columns]
    if there:
        raise InputError(f"elapsed: there is a column {printable(there[0])} already", fix="rename it")


def _events(series: pd.Series, values: Collection[str]) -> NDArray[np.bool_]:
    if values:
        return holds(series, values)
    places_n, names = read_categories(series)
    bad_n = np.array([*(name not in MEANS for name in names), False])[places_n]
    if bad_n.any():
        raise refuse(series, bad_n, "is not an event", wanted="0 or 1, true or false; empty for 0")
    return np.array([*(MEANS[name] for name in names), False])[places_n]


def _counted(
    entity_n: NDArray[np.int64], seconds_n: NDArray[np.int64], event_n: NDArray[np.bool_], window: int
) -> NDArray[np.float64]:
    """Return days since and until an event [2, n]; with a window (in seconds) the events in it too, [4, n]."""
    order = np.lexsort((seconds_n, entity_n))
    entity, seconds = entity_n[order], seconds_n[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(entity) != 0) | (np.diff(seconds) != 0)
    first = np.flatnonzero(starts)  # of each pair's rows
    if not len(first):
        return np.empty((4 if window else 2, 0))
    event_g = np.logical_or.reduceat(event_n[order], first)
    entity_g, seconds_g, places_g = entity[first], seconds[first], np.arange(len(first))
    last_g = np.maximum.accumulate(np.where(event_g, places_g, -1))
    next_g = np.minimum.accumulate(np.where(event_g, places_g, len(first))[::-1])[::-1]
    rows = [_between(last_g, entity_g, seconds_g), _between(next_g, entity_g, seconds_g)]
    rows += _in_window(entity_g, seconds_g, event_g, window) if window else []
    found = np.empty((len(rows), len(order)))
    found[:, order] = np.stack(rows)[:, np.cumsum(starts) - 1]
    return found


def _in_window(
    entity_g: NDArray[np.int64], seconds_g: NDArray[np.int64], event_g: NDArray[np.bool_], window: int
) -> list[NDArray[np.float64]]:
    """Return the number of events less than a window before each pair's date or on it, and the same after it."""
    apart = int(np.ptp(seconds_g)) + window + 1  # two entities are further apart than any window
    key_g = entity_g * apart + (seconds_g - seconds_g.min())
    before = np.concatenate([[0], np.cumsum(event_g)])
    places_g = np.arange(len(key_g))
    last = before[places_g + 1] - before[np.searchsorted(key_g, key_g - window, side="right")]
    following = before[np.searchsorted(key_g, key_g + window, side="left")] - before[places_g]
    return [last.astype(float), following.astype(float)]


def _between(places_g: NDArray[np.int64], entity_g: NDArray[np.int64], seconds_g: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the days between each pair's date and that at its place; NaN where this is another entity's, or none."""
    inside_g = np.clip(places_g, 0, len(places_g) - 1)
    own = (places_g == inside_g) & (entity_g[inside_g] == entity_g)
    return np.where(own, np.abs(seconds_g - seconds_g[inside_g]) / DAY, np.nan)
