"""Run work in threads, with results in order and bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    workers: int,
    ahead: int,
    initializer: Callable[[], object] | None = None,
) -> Iterator[B]:
    """Map over threads: yield the results in order, with at most `ahead` of them in memory at once.

    Args:
        initializer: a function to run once in each thread.
    """
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def chunks(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Yield consecutive lists of `size` items; the last may be shorter."""
    chunk: list[A] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
