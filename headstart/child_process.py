"""A child process that answers over a socket, line by line: start it, read with a deadline, end it, say how it ended.

Plain child processes, and not multiprocessing's or a library's pool: those import the caller's main module into every child
(Prefect's, for a flow) or fork a process that has threads.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from headstart.core.errors import InputError, OfTheMachine, Unavailable, address_space_limit

SECONDS_TO_DIE = 5.0  # after SIGKILL; a process that a dead file system holds takes for ever
ENOUGH = "see that there is memory and a process left for it (`free -h`, `ulimit -v`, `ulimit -u`), then run again"
# glibc keeps freed memory, see runtime.keep_freed_memory; one thread a process
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "OPENBLAS_NUM_THREADS": "1"}


class Child:
    """A child process and our end of its socket.

    Args:
        does: what it does, for messages: "the process that {does} …".
        command: what it is started by; the descriptors of its socket and of `shared`, then `arguments`, are appended.
        arguments: further ones.
        shared: descriptors to hand on.
        stdin: what it can read there. A file holds it: a child that hangs before it reads must not block us.

    Raises:
        Unavailable: it cannot be started.
    """

    def __init__(
        self,
        does: str,
        command: Sequence[str],
        *,
        arguments: Sequence[str] = (),
        shared: Sequence[int] = (),
        stdin: bytes = b"",
    ) -> None:
        self.does = does
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._socket, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._said = ""
        descriptors = [theirs.fileno(), *shared]
        with theirs, tempfile.TemporaryFile() as wanted:
            wanted.write(stdin)
            wanted.seek(0)
            try:
                self.process = subprocess.Popen(
                    [*command, *map(str, descriptors), *arguments],
                    pass_fds=descriptors,
                    stdin=wanted,
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    env=child_environment(),
                    start_new_session=True,  # Ctrl-C is for the run, which then ends its children
                )
            except OSError as error:
                raise Unavailable(f"the process that {does} could not be started: {error.strerror}", fix=ENOUGH) from error

    def send(self, line: bytes) -> None:
        """Send a line.

        Raises:
            ConnectionError: it has ended.
        """
        self._socket.settimeout(None)
        self._socket.sendall(line + b"\n")

    def line(self, seconds: float) -> bytes:
        """Its next line, without the end of line.

        Raises:
            TimeoutError: nothing came for so many seconds.
            EOFError: it has closed the connection.
        """
        while not self._lines:
            self._socket.settimeout(seconds)
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            *whole, self._rest = (self._rest + data).split(b"\n")
            self._lines += whole
        return self._lines.popleft()

    def end(self, seconds: float = 0.0) -> int:
        """Close the connection, give it some seconds to end by itself, and kill it; its exit code, below 0 for a signal."""
        self._socket.close()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = self.kill()
        if not self._stderr.closed:
            self._stderr.seek(0)
            self._said = self._stderr.read()[-4000:].decode(errors="replace").strip()
            self._stderr.close()
        return code

    def kill(self) -> int:
        """End it, from any thread; its exit code, that of SIGKILL also where the kernel cannot end it yet."""
        self.process.kill()
        try:
            return self.process.wait(SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL

    def not_started(self, how: str) -> InputError:
        """The error for one that has ended (see `end`) before its first answer.

        Args:
            how: how it ended. Of what it wrote to stderr, the last line of a Python traceback is shown, and all of it is a
                note of the error.
        """
        lines = [line for line in self._said.splitlines() if line.strip()]
        shown = lines[-1:] if "Traceback (most recent call last)" in self._said else lines[-5:]
        found = f"the process that {self.does} could not be started ({how}): {' / '.join(shown)[-1000:] or 'it said nothing'}"
        error = OfTheMachine(found, wanted=_wanted_memory(), fix=ENOUGH)
        error.add_note(self._said)
        return error


def how_it_ended(code: int) -> str:
    """An exit code in words, such as "SIGSEGV" or "exit 1"."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _wanted_memory() -> str:
    """What address space a child wants, where there is a limit to it."""
    limit = address_space_limit()
    return f"no limit of address space, or a wider one: it is {limit} here (`ulimit -v`)" if limit else ""


def child_environment() -> dict[str, str]:
    """The environment of a process that decodes: it can import our modules, and it keeps freed memory."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
