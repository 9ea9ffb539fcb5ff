"""End what a process started, once it has died: `python guardian.py DESCRIPTOR PROCESS TOKEN RECORD COMMAND` (`offspring.py`).

It runs on the standard library alone, without site-packages, so that it costs milliseconds and a few megabytes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

NAME = "HEADSTART_STARTED_BY"  # the tokens of the runs that a process descends from, with commas between them
SECONDS_TO_END, SECONDS_TO_STOP = 3.0, 8.0


def descendants(token: str) -> list[int]:
    """Return the live processes, except this one, that have a run's token in their environment."""
    pairs = ((process, _tokens(process)) for process in _processes())
    return [process for process, tokens in pairs if token in tokens and process != os.getpid()]


def end_all(token: str, seconds: float = SECONDS_TO_END) -> list[int]:
    """Terminate all descendants of a run, and kill those that are left after some seconds. Return the processes it found."""
    signalled: set[int] = set()
    deadline = time.monotonic() + seconds
    while found := descendants(token):
        late = time.monotonic() > deadline
        if time.monotonic() > deadline + seconds:  # the kernel cannot end it, such as on a dead file system
            break
        for process in found:
            if late or process not in signalled:
                _signal(process, signal.SIGKILL if late else signal.SIGTERM)
        signalled.update(found)
        time.sleep(0.05)
    return sorted(signalled)


def _processes() -> list[int]:
    if sys.platform == "linux":
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil

    return list(psutil.pids())


def _tokens(process: int) -> list[str]:
    if sys.platform == "linux":
        try:
            found = dict(line.partition(b"=")[::2] for line in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"))
        except OSError:  # it has ended, or is another user's
            return []
        return found.get(NAME.encode(), b"").decode(errors="replace").split(",")
    import psutil

    try:
        return psutil.Process(process).environ().get(NAME, "").split(",")
    except (psutil.Error, OSError):
        return []


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _watch(descriptor: int, parent: int, command: int) -> None:
    """Return when the parent has died. If the parent is a stage of a command that dies first, terminate it."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    try:
        of_command = os.pidfd_open(command) if command else -1
    except (AttributeError, OSError):  # not Linux, or the command is dead already
        of_command = -1
    if of_command >= 0:
        waiting.register(of_command, select.POLLIN)
    if {ready for ready, _ in waiting.poll()} == {of_command}:
        waiting.unregister(of_command)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if os.getppid() == parent:
                _signal(parent, number)
            if waiting.poll(1000 * SECONDS_TO_STOP):
                break
    while os.getppid() == parent:  # the pipe closes shortly before
        time.sleep(0.05)


def main(descriptor: int, parent: int, token: str, record: str, command: int) -> None:
    """Wait for the parent's death, end what it started, and remove its record of being alive."""
    _watch(descriptor, parent, command)
    end_all(token)
    if record and not descendants(token):
        Path(record).unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
