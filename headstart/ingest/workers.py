"""Examine many files in processes of their own: a file that hangs or crashes a decoder costs that file, not the run.

Plain child processes with a socket each, and not multiprocessing's or a library's pool: those import the caller's
main module into every child (Prefect's, for a flow) or fork a process that has threads.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import orjson

from headstart.core.errors import InputError, OfTheMachine, Unavailable, address_space_limit
from headstart.core.parallel import chunks
from headstart.images.limits import Limits

COMMAND = (sys.executable, "-W", "ignore", "-m", "headstart.ingest.worker")
START_SECONDS = 120.0
SECONDS_TO_DIE = 5.0  # after SIGKILL; a process that a dead file system holds takes for ever
CHUNK = 32  # files sent to a worker at once
ENOUGH = "see that there is memory and a process left for it (`free -h`, `ulimit -v`, `ulimit -u`), then run again"
# glibc keeps freed memory, see runtime.keep_freed_memory; one thread a process
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "OPENBLAS_NUM_THREADS": "1"}

Answer = dict[str, Any]


def examine_all(
    paths: Sequence[str], limits: Limits, timeout: float, workers: int, command: Sequence[str] = COMMAND
) -> Iterator[Answer]:
    """Examine files in worker processes.

    Args:
        paths: absolute paths.
        limits: passed to `examine`.
        timeout: seconds without an answer after which a file is given up.
        workers: processes.
        command: what a worker is started by; the descriptor and the limits are appended.

    Yields:
        For each path, in order, what `worker.answer` says; {"failed": reason} for a file on which the worker
        hung or died twice.

    Raises:
        InputError: a worker cannot be started; it says why.
    """
    parts = list(chunks(paths, CHUNK))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    started = [_Worker(command, limits, timeout) for _ in range(min(workers, len(parts)))]
    for worker in started:
        idle.put(worker)

    def examine_part(part: list[str]) -> list[Answer]:
        worker = idle.get()
        try:
            return worker.examine(part)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(started) or 1) as pool:
        try:
            for answers in pool.map(examine_part, parts):
                yield from answers
        finally:  # also when told to stop: the threads end with their processes
            for worker in started:
                worker.end()


class _Worker:
    """One child process, started when it is needed and again when it hung or died."""

    def __init__(self, command: Sequence[str], limits: Limits, timeout: float) -> None:
        self.command, self.limits, self.timeout = command, limits, timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False

    def examine(self, paths: Sequence[str]) -> list[Answer]:
        """All at once; after a failure the rest one by one, so that the file at fault is known and others are not lost."""
        answers: list[Answer] = []
        at_once, died_on = len(paths), ""
        while len(answers) < len(paths) and not self.ended:
            part = paths[len(answers) :][:at_once]
            hung, died = self._serve(part, answers)
            if len(part) == 1 and (hung or (died and part[0] == died_on)):  # a death may be the machine's fault: once more
                answers.append({"failed": hung or died})
            elif hung or died:
                at_once, died_on = 1, part[0] if len(part) == 1 else ""
        return answers

    def _serve(self, paths: Sequence[str], answers: list[Answer]) -> tuple[str, str]:
        """Append an answer for each path as far as they come; then why no more come: it hung, or it died."""
        if self.process is None:
            self._start()
        try:
            self.connection.sendall(orjson.dumps(paths) + b"\n")
            for _ in paths:
                answers.append(orjson.loads(self._line()))
        except TimeoutError:
            self._kill()
            return f"not decoded within {self.timeout:g} seconds (data.file_timeout)", ""
        except (EOFError, ConnectionError):
            return "", f"the decoder crashed ({self._kill()})"
        return "", ""

    def _line(self) -> bytes:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _start(self) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(START_SECONDS)
        self.stream = self.connection.makefile("rb")
        with tempfile.TemporaryFile() as errors, theirs:
            try:
                self.process = subprocess.Popen(
                    [*self.command, str(theirs.fileno()), json.dumps(self.limits.as_dict())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=child_environment(),
                    start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
                )
            except OSError as error:
                raise Unavailable(f"a process that reads images could not be started: {error.strerror}", fix=ENOUGH) from error
            theirs.close()
            try:
                self._line()
            except (EOFError, OSError) as error:
                hung = f"not ready within {START_SECONDS:g} s, " if isinstance(error, TimeoutError) else ""
                raise not_started("reads images", hung + self._kill(), errors) from None
        self.connection.settimeout(self.timeout)

    def _kill(self) -> str:
        """End the process if it has not ended; how it ended, in words."""
        assert self.process is not None
        self.stream.close()
        self.connection.close()
        try:
            code = self.process.wait(1.0)  # the connection is closed: whoever can ends by itself
        except subprocess.TimeoutExpired:
            code = kill(self.process)
        self.process = None
        return ended(code)

    def end(self) -> None:
        """Stop for good, from any thread."""
        self.ended = True
        process = self.process
        if process is not None:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """End a child process; its exit code, that of SIGKILL also where the kernel cannot end it yet."""
    process.kill()
    try:
        return process.wait(SECONDS_TO_DIE)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def ended(code: int) -> str:
    """How a child process ended, in words."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def not_started(what: str, how: str, errors: IO[bytes]) -> InputError:
    """The error for a child process that ended before its first answer.

    Args:
        what: what it does.
        how: how it ended.
        errors: what it wrote to stderr. Of a Python traceback the last line is told, and all of it is a note of the error.
    """
    errors.seek(0)
    said = errors.read()[-4000:].decode(errors="replace").strip()
    lines = [line for line in said.splitlines() if line.strip()]
    shown = lines[-1:] if "Traceback (most recent call last)" in said else lines[-5:]
    found = f"the process that {what} could not be started ({how}): {' / '.join(shown)[-1000:] or 'it said nothing'}"
    error = OfTheMachine(found, wanted=_wanted_memory(), fix=ENOUGH)
    error.add_note(said)
    return error


def _wanted_memory() -> str:
    """What address space a child wants, where there is a limit to it."""
    limit = address_space_limit()
    return f"no limit of address space, or a wider one: it is {limit} here (`ulimit -v`)" if limit else ""


def child_environment() -> dict[str, str]:
    """Of a process that decodes: our own modules can be imported, and freed memory is kept."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
