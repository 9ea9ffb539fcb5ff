"""Which file each thread of a process is at, in memory that another process can read, also after the first one died."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator

SLOTS, BYTES = 1024, 8


class ThreadStatus:
    """A whole number for each of up to 1,024 threads, 0 or more where the thread is at something.

    Args:
        descriptor: of the file that is shared; see `new_thread_status`.
    """

    def __init__(self, descriptor: int) -> None:
        self.numbers = memoryview(mmap.mmap(descriptor, SLOTS * BYTES)).cast("q")

    def __setitem__(self, slot: int, number: int) -> None:
        self.numbers[slot] = number + 1  # a new file is all zeros

    def __iter__(self) -> Iterator[int]:
        return (number - 1 for number in self.numbers)


def new_thread_status() -> int:
    """A descriptor of a file without a name, to be handed to `ThreadStatus` here and in a child."""
    with tempfile.TemporaryFile() as file:
        file.truncate(SLOTS * BYTES)
        return os.dup(file.fileno())
