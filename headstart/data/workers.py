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
from typing import Any

import orjson

from headstart.core.parallel import chunks
from headstart.data.examine import Limits

COMMAND = (sys.executable, "-W", "ignore", "-m", "headstart.data.worker")
START_SECONDS = 120.0
CHUNK = 32  # files sent to a worker at once
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
            self.process = subprocess.Popen(
                [*self.command, str(theirs.fileno()), json.dumps(self.limits.as_dict())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
            )
            theirs.close()
            try:
                self._line()
            except (EOFError, OSError):
                how = self._kill()
                errors.seek(0)
                said = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"a worker could not be started ({how}): {said}") from None
        self.connection.settimeout(self.timeout)

    def _kill(self) -> str:
        """End the process if it has not ended; how it ended, in words."""
        assert self.process is not None
        self.stream.close()
        self.connection.close()
        try:
            code = self.process.wait(1.0)  # the connection is closed: whoever can ends by itself
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process = None
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    def end(self) -> None:
        """Stop for good, from any thread."""
        self.ended = True
        process = self.process
        if process is not None:
            process.kill()
            process.wait()


def child_environment() -> dict[str, str]:
    """Of a process that decodes: our own modules can be imported, and freed memory is kept."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
