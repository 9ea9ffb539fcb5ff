"""Have files classified in a process of its own: one that hangs or crashes a decoder costs that file, not the run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headstart.core.errors import InputError
from headstart.data.workers import child_environment
from headstart.prediction.board import Board, new_board

COMMAND = (sys.executable, "-W", "ignore", "-m", "headstart.prediction.scorer")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a scorer is told, beside the paths; see `scorer.py` and params.yaml, sections data and runtime.

    What images must keep to is in the model's own card.
    """

    model: Path
    digest: str  # SHA-256 of the model file: another file at its path is refused
    top: int
    timeout: float
    workers: int
    threads: int
    device: str


class Died(Exception):
    """A scorer ended before it had answered.

    Args:
        how: in words, such as "crashed (SIGSEGV)".
        at: indices of the files it was decoding, or the one it hung on.
    """

    def __init__(self, how: str, at: list[int]) -> None:
        super().__init__(how)
        self.at = at


def score_all(paths: Sequence[str], job: Job, command: Sequence[str] = COMMAND) -> Iterator[tuple[str, Answer]]:
    """Classify files.

    Args:
        paths: absolute paths.
        command: what a scorer is started by; two descriptors are appended.

    Yields:
        (path, answer) in any order: key, labels and p (of the likeliest classes) or error; `final` where
        a further look at the same bytes would say the same.

    Raises:
        InputError: the model will not do.
        RuntimeError: scorers die though every file can be decoded.
    """
    left = dict.fromkeys(paths)
    while left:
        batch = list(left)
        try:
            for index, answer in _Scorer(command, batch, job).answers():
                del left[batch[index]]
                yield batch[index], answer
        except Died as death:
            if not death.at and len(left) == len(batch):
                raise RuntimeError(f"the process that classifies ended before its first answer: {death}") from death
            for path in (batch[index] for index in death.at):
                del left[path]
                yield path, _alone(path, job, command)


def _alone(path: str, job: Job, command: Sequence[str]) -> Answer:
    """What a process says of a file that has nothing else to do; the file is at fault if that dies too."""
    try:
        ((_, answer),) = _Scorer(command, [path], job).answers()
    except Died as death:
        return {"error": f"the decoder {death}", "final": False}
    return answer


class _Scorer:
    """One child process and what it is at."""

    def __init__(self, command: Sequence[str], paths: Sequence[str], job: Job) -> None:
        self.timeout, self.left = job.timeout, len(paths)
        descriptor = new_board()
        self.board = Board(descriptor)
        self.seen: dict[int, tuple[int, float]] = {}  # slot of the board: what stood there last, since when
        self.connection, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(descriptor)],
                pass_fds=[theirs.fileno(), descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is for the run, which then ends it
            )
        os.close(descriptor)
        told = job.__dict__ | {"model": str(job.model), "paths": paths}
        self.connection.sendall(orjson.dumps(told) + b"\n")

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as they come.

        Raises:
            Died: it ended too early, or hung and was ended.
            InputError: it refused the job.
        """
        try:
            for line in self._lines():
                message = orjson.loads(line)
                if isinstance(message, dict):
                    raise InputError(message["refused"])
                for index, answer in message:
                    self.left -= 1
                    yield index, answer
            if self.left:
                raise Died(self._how(), [index for index in self.board if index >= 0])
        finally:
            self.connection.close()
            self.process.kill()  # it has said all it had to say; ending by itself takes it half a second
            self.process.wait()

    def _lines(self) -> Iterator[bytes]:
        """Until the connection is closed, or a thread has been at one file for longer than allowed."""
        pause = min(1.0, self.timeout / 4)
        self.connection.settimeout(pause)
        waiting, looked = b"", time.monotonic()
        while True:
            if time.monotonic() - looked > pause:
                looked = time.monotonic()
                self._refuse_hanging(looked)
            try:
                data = self.connection.recv(1 << 20)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            yield from lines

    def _refuse_hanging(self, now: float) -> None:
        for slot, index in enumerate(self.board):
            if self.seen.get(slot, (-1, now))[0] != index:
                self.seen[slot] = index, now
        hanging = [index for index, since in self.seen.values() if index >= 0 and since < now - self.timeout]
        if hanging:
            raise Died(f"hung for {self.timeout:g} s (data.file_timeout)", hanging)

    def _how(self) -> str:
        code = self.process.wait()
        return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit {code})"
