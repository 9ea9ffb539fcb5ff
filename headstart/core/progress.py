"""Progress of every step over about two seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
Observer = Callable[[str, int, int], object]  # of what, units done, units in all
logger = logging.getLogger("headstart")
SECONDS_BETWEEN_LINES = 5.0
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Tell `observer` every few seconds how far the steps are that are tracked in this block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def track(
    items: Iterable[T], what: str, total: int, unit: str = "images", weigh: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Yield `items` while showing how far along they are, at what rate, and when they will be through.

    Args:
        items: what to go through.
        what: the step in a user's words, such as "computing activations".
        total: the number of units in all.
        unit: what is counted.
        weigh: units in an item.
    """
    if sys.stderr.isatty() and _observer.get() is None:
        return _bar(items, what, total, unit, weigh)
    return _lines(items, what, total, unit, weigh)


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
    start = time.monotonic()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")
        done = 0
        for item in items:
            yield item
            done += weigh(item)
            rate = done / max(time.monotonic() - start, 1e-9)
            progress.update(task, completed=done, rate=f"{_short(rate)} {unit}/s")


def _lines(items: Iterable[T], what: str, total: int, unit: str, weigh: Callable[[T], int]) -> Iterator[T]:
    start = said = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += weigh(item)
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            rate = done / (now - start)
            left = (total - done) / rate
            observer = _observer.get()
            if observer is not None:
                observer(what, done, total)
            logger.info("  %s: %s of %s %s, %s/s, %.0f s left", what, f"{done:,}", f"{total:,}", unit, _short(rate), left)


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
