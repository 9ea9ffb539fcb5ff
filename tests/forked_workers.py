"""Processes that examine files, forked in milliseconds from one that has the decoders imported.

A scan starts `python -m headstart.ingest.worker`, which takes a quarter of a second; hundreds of tests scan a small folder, and
what they test is what the process does and not how it starts (tests/test_workers.py starts real ones, and so does every stage).
A fork runs the same `main`, in a process and a session of its own, with the same bounds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import socket
import subprocess
import types
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from unittest import mock

from headstart import child_process
from headstart.images.limits import Limits
from headstart.ingest import workers


def _main(connection: socket.socket, limits: str) -> None:
    from headstart.ingest import worker

    os.setsid()
    worker.main(connection.detach(), Limits(**json.loads(limits)))


@functools.cache
def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "tests.decoders_ready", __name__])
    return context


class Forked:
    """What `headstart.child_process` uses of a `subprocess.Popen`."""

    def __init__(self, descriptor: int, limits: str) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            self.process = _forks().Process(target=_main, args=(connection, limits))
            self.process.start()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(workers.COMMAND, timeout or 0.0)
        return self.process.exitcode


def _start(command: Sequence[str], **options: object) -> subprocess.Popen[bytes] | Forked:
    if tuple(command[:-2]) != workers.COMMAND:
        return subprocess.Popen(command, **options)
    return Forked(int(command[-2]), command[-1])


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Within this, the processes of a scan are forks; those that a test starts by a command of its own are not."""
    with mock.patch.object(child_process, "subprocess", types.SimpleNamespace(**(vars(subprocess) | {"Popen": _start}))):
        yield
