"""Show the progress of long steps: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
Observer = Callable[[str, int, int], object]  # called with the step, the units done and their total
logger = logging.getLogger("headstart")
SECONDS_BETWEEN_LINES = 5.0
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Report the progress of the steps in this block to `observer` every few seconds."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def track(
    items: Iterable[T], what: str, total: int, unit: str = "images", weigh: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Yield `items` and show how many are done, at what rate, and how long the rest will take.

    Args:
        items: the items of the step.
        what: the step in a user's words, such as "computing activations".
        total: the number of all units; 0 if it is not known.
        unit: the name of a unit.
        weigh: returns the number of units in an item.
    """
    if sys.stderr.isatty() and _observer.get() is None:
        return _bar(items, what, total, unit, weigh)
    return _lines(items, what, total, unit, weigh)


class Pace:
    """Measure a rate from the first unit on, so that starting processes and compiling do not count."""

    def __init__(self) -> None:
        self.done = self.first = 0
        self.since = self.last = math.nan

    def add(self, units: int) -> None:
        """Count units that are done."""
        self.last = time.monotonic()
        if not self.done:
            self.first, self.since = units, self.last
        self.done += units

    @property
    def rate(self) -> float:
        """Return the units per second so far; 0 until it is known."""
        seconds = self.last - self.since
        return (self.done - self.first) / seconds if self.done > self.first and seconds > 0 else 0.0


def _bar(items: Iterable[T], what: str, total: int, unit: str, weigh: Callable[[T], int]) -> Iterator[T]:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    pace = Pace()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")
        for item in items:
            yield item
            pace.add(weigh(item))
            progress.update(task, completed=pace.done, rate=f"{_short(pace.rate)} {unit}/s" if pace.rate else "")


def _lines(items: Iterable[T], what: str, total: int, unit: str, weigh: Callable[[T], int]) -> Iterator[T]:
    said, pace = time.monotonic(), Pace()
    for item in items:
        yield item
        pace.add(weigh(item))
        if pace.last - said >= SECONDS_BETWEEN_LINES:
            said = pace.last
            observer = _observer.get()
            if observer is not None:
                observer(what, pace.done, total)
            rate = pace.rate
            left = f", {_short(rate)}/s, {(total - pace.done) / rate:.0f} s left" if rate and total else ""
            done = f"{pace.done:,} of {total:,}" if total else f"{pace.done:,}"
            logger.info("  %s: %s %s%s", what, done, unit, left)


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
