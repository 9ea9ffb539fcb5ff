"""Work in threads, in order, with bounded memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def count(number: int | Literal["auto"]) -> int:
    """`number`, or the cores this process may use."""
    return cores() if number == "auto" else number


def cores(system: Path = Path("/")) -> int:
    """The processors this process may use: by affinity, and by the CPU limits of its control groups, rounded up.

    Args:
        system: where the system's root is.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """The limits, in processors, of the control groups this process is in and of those above them, of version 1 and 2.

    A container may see its group by the host's path though only its own part is mounted: what is not there is passed over.
    """
    mounted = system / "sys/fs/cgroup"
    try:
        groups = [line.split(":", 2) for line in (system / "proc/self/cgroup").read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, path in groups:
        tops = [mounted, mounted / "unified"] if not controllers else [mounted / "cpu", mounted / controllers]
        if not controllers or "cpu" in controllers.split(","):
            own = Path(path.lstrip("/"))
            for folder in {top / inner for top in tops for inner in (own, *own.parents)}:
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The limit of one control group, if it has one: "max" and -1 are none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    workers: int,
    ahead: int,
    initializer: Callable[[], object] | None = None,
) -> Iterator[B]:
    """`map` over threads: results in order, at most `ahead` of them in memory at once.

    Args:
        initializer: run once in each thread.
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
    """Consecutive lists of `size` items; the last may be shorter."""
    chunk: list[A] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
