"""Shared memory in which a process reports the file of each of its threads, readable even after the process has died."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator

SLOTS, BYTES = 1024, 8


class ThreadStatus:
    """An integer for each of up to 1,024 threads: the file that the thread works on, or -1.

    Args:
        descriptor: of the shared file; see `new_thread_status`.
    """

    def __init__(self, descriptor: int) -> None:
        self.numbers = memoryview(mmap.mmap(descriptor, SLOTS * BYTES)).cast("q")

    def __setitem__(self, slot: int, number: int) -> None:
        self.numbers[slot] = number + 1  # a new file is all zeros

    def __iter__(self) -> Iterator[int]:
        return (number - 1 for number in self.numbers)


def new_thread_status() -> int:
    """Return the descriptor of a nameless file, for `ThreadStatus` in this process and in a child."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SLOTS * BYTES)
        return os.dup(file.fileno())
