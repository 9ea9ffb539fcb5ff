"""A child process that answers line by line over a socket: start it, read with a deadline, end it, report how it ended.

It replaces multiprocessing and library pools, which import the caller's main module into every child (Prefect's, for a flow)
or fork a process that has threads.
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

SECONDS_TO_DIE = 5.0  # after SIGKILL; a process that waits for a dead file system never ends
ENOUGH = "make sure that memory and processes are left for it (`free -h`, `ulimit -v`, `ulimit -u`), then run again"
# glibc keeps freed memory (see runtime.keep_freed_memory); each process has one thread
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "OPENBLAS_NUM_THREADS": "1"}


class Child:
    """A child process and our end of its socket.

    Args:
        does: what the child does, for messages: "the process that {does} …".
        command: the command that starts it. The descriptors of its socket and of `shared`, then `arguments`, are appended.
        arguments: further arguments.
        shared: descriptors that the child inherits.
        stdin: the child's standard input. A file holds it, so that a child that hangs before it reads cannot block us.

    Raises:
        Unavailable: the child cannot be started.
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
            ConnectionError: the child has ended.
        """
        self._socket.settimeout(None)
        self._socket.sendall(line + b"\n")

    def line(self, seconds: float) -> bytes:
        """Return the child's next line, without the line break.

        Raises:
            TimeoutError: nothing came within `seconds`.
            EOFError: the child has closed the connection.
        """
        while not self._lines:
            self._socket.settimeout(seconds)
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            *complete, self._rest = (self._rest + data).split(b"\n")
            self._lines += complete
        return self._lines.popleft()

    def end(self, seconds: float = 0.0) -> int:
        """Close the connection, kill the child unless it ends in time, and return its exit code (below 0 for a signal)."""
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
        """Kill the child from any thread and return its exit code: that of SIGKILL if the kernel cannot end it yet."""
        self.process.kill()
        try:
            return self.process.wait(SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL

    def not_started(self, how: str) -> InputError:
        """Return the error for a child that ended (see `end`) before its first answer.

        Its stderr becomes a note of the error. The message shows the last line of a traceback, or else the last five lines.

        Args:
            how: how the child ended, in words.
        """
        lines = [line for line in self._said.splitlines() if line.strip()]
        shown = lines[-1:] if "Traceback (most recent call last)" in self._said else lines[-5:]
        found = f"the process that {self.does} could not be started ({how}): {' / '.join(shown)[-1000:] or 'no error output'}"
        error = OfTheMachine(found, wanted=_wanted_memory(), fix=ENOUGH)
        error.add_note(self._said)
        return error


def how_it_ended(code: int) -> str:
    """Return an exit code in words, such as "SIGSEGV" or "exit 1"."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _wanted_memory() -> str:
    """Return what a child wants of the address space, or an empty string if there is no limit."""
    limit = address_space_limit()
    return f"no limit on the address space, or a higher one: it is {limit} here (`ulimit -v`)" if limit else ""


def child_environment() -> dict[str, str]:
    """Return the environment of a process that decodes: it can import our modules, and it keeps freed memory."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
