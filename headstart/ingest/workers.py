"""Examine many files in separate processes: a file that hangs or crashes a decoder costs that file, not the run."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from headstart.child_process import Child, how_it_ended
from headstart.core.parallel import chunks
from headstart.images.limits import Limits

COMMAND = (sys.executable, "-W", "ignore", "-m", "headstart.ingest.worker")
START_SECONDS = 120.0
CHUNK = 32  # files sent to a worker at once

Answer = dict[str, Any]


def examine_all(
    paths: Sequence[str], limits: Limits, timeout: float, workers: int, command: Sequence[str] = COMMAND
) -> Iterator[Answer]:
    """Examine files in worker processes.

    Args:
        paths: absolute paths.
        limits: passed to `examine`.
        timeout: seconds without an answer before a file is given up.
        workers: the number of processes.
        command: the command that starts a worker; the descriptor and the limits are appended.

    Yields:
        For each path, in order, the result of `worker.answer`, or {"failed": reason} if the worker hung, or died twice,
        on the file.

    Raises:
        InputError: a worker cannot be started. The message says why.
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
        finally:  # also if the run is stopped: a thread ends with its process
            for worker in started:
                worker.end()


class _Worker:
    """One child process. It is started when needed, and again after it hung or died."""

    def __init__(self, command: Sequence[str], limits: Limits, timeout: float) -> None:
        self.command, self.limits, self.timeout = command, limits, timeout
        self.child: Child | None = None
        self.ended = False

    def examine(self, paths: Sequence[str]) -> list[Answer]:
        """Examine all files at once. After a failure, examine the rest one by one, to identify the file at fault."""
        answers: list[Answer] = []
        at_once, died_on = len(paths), ""
        while len(answers) < len(paths) and not self.ended:
            part = paths[len(answers) :][:at_once]
            hung, died = self._serve(part, answers)
            if len(part) == 1 and (hung or (died and part[0] == died_on)):  # the machine may be at fault: try once more
                answers.append({"failed": hung or died})
            elif hung or died:
                at_once, died_on = 1, part[0] if len(part) == 1 else ""
        return answers

    def _serve(self, paths: Sequence[str], answers: list[Answer]) -> tuple[str, str]:
        """Append the answers as they come. Return two texts: how the worker hung, and how it died, if it did."""
        child = self.child = self.child or self._started()
        try:
            child.send(orjson.dumps(paths))
            for _ in paths:
                answers.append(orjson.loads(child.line(self.timeout)))
        except TimeoutError:
            self._give_up(child)
            return f"not decoded within {self.timeout:g} seconds (data.file_timeout)", ""
        except (EOFError, ConnectionError):
            return "", f"the decoder crashed ({self._give_up(child)})"
        return "", ""

    def _started(self) -> Child:
        child = Child("reads images", self.command, arguments=[json.dumps(self.limits.as_dict())])
        try:
            child.line(START_SECONDS)
        except (EOFError, OSError) as error:
            hung = f"not ready within {START_SECONDS:g} s, " if isinstance(error, TimeoutError) else ""
            raise child.not_started(hung + how_it_ended(child.end(1.0))) from None
        return child

    def _give_up(self, child: Child) -> str:
        """End the process if it still runs. Return how it ended, in words."""
        self.child = None
        return how_it_ended(child.end(seconds=1.0))  # the connection is closed first, so that it can end by itself

    def end(self) -> None:
        """Stop finally, from any thread."""
        self.ended = True
        child = self.child
        if child is not None:
            child.kill()
