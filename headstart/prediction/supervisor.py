"""Classify files in a child process: a file that makes the decoder hang or crash fails alone, and the run continues."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from headstart.child_process import ENOUGH, Child, how_it_ended
from headstart.core.errors import InputError, Unavailable
from headstart.prediction.thread_status import ThreadStatus, new_thread_status

COMMAND = (sys.executable, "-W", "ignore", "-m", "headstart.prediction.scorer")
Answer = dict[str, Any]
logger = logging.getLogger("headstart")
# A scorer that neither answers nor starts another file is given up after this many seconds: IDLE_SECONDS if it uses no
# processor time, as in a deadlock, and BUSY_SECONDS if it does, as when it compiles a large network.
IDLE_SECONDS, BUSY_SECONDS = 120.0, 3600.0
SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class ScoringJob:
    """The settings of a scorer; see `scorer.py` and params.yaml, sections data and runtime.

    The limits for images are in the model's card.
    """

    model: Path
    digest: str  # SHA-256 of the model file; the scorer refuses another file
    top: int
    timeout: float
    workers: int
    threads: int
    device: str
    table: str = ""  # the table with the images' columns, whose paths are relative to `root`; empty without columns
    root: str = ""


class Died(Exception):
    """A scorer ended before it had answered for every file.

    Args:
        how: how it ended, such as "crashed (SIGSEGV)".
        at: indices of the files it was decoding, or of those it hung on.
        lost: the error to report if no file is to blame and the scorer had answered nothing.
    """

    def __init__(self, how: str, at: list[int], lost: InputError) -> None:
        super().__init__(how)
        self.at, self.lost = at, lost


def score_all(paths: Sequence[str], job: ScoringJob, command: Sequence[str] = COMMAND) -> Iterator[tuple[str, Answer]]:
    """Classify files.

    Args:
        paths: absolute paths.
        command: the command that starts a scorer; two descriptors are appended.

    Yields:
        (path, answer) in any order. An answer has key and row (see `Target.rows`), or error; `final` means that the same
        bytes would always give the same answer.

    Raises:
        InputError: the model cannot be used, or a scorer dies or hangs although no file is to blame.
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
                raise death.lost from death
            if not death.at:
                logger.warning("  the process that classifies %s; another one continues with %s files", death, f"{len(left):,}")
            for path in (batch[index] for index in death.at):
                del left[path]
                yield path, _alone(path, job, command)


def _alone(path: str, job: ScoringJob, command: Sequence[str]) -> Answer:
    """Classify one file in a process of its own; if that dies too, the file is to blame."""
    try:
        ((_, answer),) = _Scorer(command, [path], job).answers()
    except Died as death:
        return {"error": f"the decoder {death}", "final": False}
    return answer


class _Scorer:
    """One child process and its progress."""

    def __init__(self, command: Sequence[str], paths: Sequence[str], job: ScoringJob) -> None:
        self.timeout, self.left = job.timeout, len(paths)
        self.limits = [max(seconds, 4 * job.timeout) for seconds in (IDLE_SECONDS, BUSY_SECONDS)]
        # Seconds without a sign of life; seconds without processor time; processor seconds used so far.
        self.still = self.unused = self.used = 0.0
        descriptor = new_thread_status()
        self.status = ThreadStatus(descriptor)
        self.seen: dict[int, tuple[int, float]] = {}  # by thread: the file it was decoding at the last check, and since when
        wanted = job.__dict__ | {"model": str(job.model), "paths": paths}
        try:
            self.child = Child("classifies", command, shared=[descriptor], stdin=orjson.dumps(wanted) + b"\n")
        finally:
            os.close(descriptor)

    def answers(self) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as they come.

        Raises:
            Died: the process ended too early, or hung and was ended.
            InputError: the process refused the job.
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
                raise self._death()
        finally:
            self.child.end()  # it has sent all its answers; waiting for it to exit would take half a second

    def _lines(self) -> Iterator[bytes]:
        """Yield lines until the connection closes; raise `Died` if a thread hangs on a file or the process stalls."""
        pause, looked = min(1.0, self.timeout / 4), time.monotonic()
        while True:
            if time.monotonic() - looked > pause:
                looked = time.monotonic()
                self._refuse_hanging(looked)
            try:
                line = self.child.line(pause)
            except TimeoutError:
                self._refuse_stall(pause)
                continue
            except EOFError:
                return
            self.still = self.unused = 0.0
            yield line

    def _refuse_hanging(self, now: float) -> None:
        for thread, index in enumerate(self.status):
            if self.seen.get(thread, (-1, now))[0] != index:
                self.seen[thread] = index, now
                self.still = self.unused = 0.0
        hanging = [index for index, since in self.seen.values() if index >= 0 and since < now - self.timeout]
        if hanging:
            how = f"hung for {self.timeout:g} s (data.file_timeout)"
            raise Died(how, hanging, Unavailable(f"the process that classifies {how}", fix=ENOUGH))

    def _refuse_stall(self, waited: float) -> None:
        """Detect a hang that no file is to blame for: during imports, compilation or computation."""
        used = _processor_seconds(self.child.process.pid)
        self.still, self.unused = self.still + waited, self.unused + waited
        if used > self.used + 1:
            self.used, self.unused = used, 0.0
        idle, busy = self.limits
        if self.unused >= idle or self.still >= busy:
            how = f"gave no sign of life for {self.still:.0f} s"
            fix = "run again (the answers so far are kept); if it happens again: --set runtime.workers=1 runtime.threads=1"
            raise Died(how, [], Unavailable(f"the process that classifies {how}, and was not decoding any file", fix=fix))

    def _death(self) -> Died:
        code = self.child.end(SECONDS_TO_END)  # it may have closed the connection and hang while it exits
        ended = how_it_ended(code)
        at = [index for index in self.status if index >= 0]
        return Died(f"{'crashed' if code < 0 else 'ended'} ({ended})", at, self.child.not_started(ended))


def _processor_seconds(process: int) -> float:
    """Return the processor time that a process has used so far; 0 if the process is gone."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
