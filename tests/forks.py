"""Python processes that start in milliseconds, for tests that start many: `run("-m", "tests.resuming", …)`.

A server process imports torch and what the tests' children import, once, and forks for each request. The fork becomes what
`python WORDS` would be: it has the folder, the environment, the open files and the signal handlers of a fresh interpreter,
runs the module or the code as `__main__`, and then its exit handlers; its exit code is the same. It does differ in three ways.
Its code is this repository's, whatever folder it runs in. What is imported already is not imported again, so a test of what an
import does needs a real interpreter. It leaves its memory to the kernel at the end, which saves 2 seconds. Prefect and `flows`
read the environment when they are imported: the server leaves them out.

`start` and `run` are like `subprocess.Popen` and `subprocess.run`. `command` is for code that starts a command line itself: a
small process that has a fork do its work, hands it its open files, and ends as that ends. Whoever dies takes its fork along.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PRELOADED = (
    "torch", "torchvision", "timm", "mlflow", "sklearn.metrics", "tests.conftest", "tests.test_activations",
    "tests.test_training", "tasks.link_data", "tasks.precompute", "tasks.find_lr", "tasks.train_head", "tasks.fine_tune",
    "tasks.evaluate", "headstart.prediction.scorer", "headstart.tracking.promotion",
)  # fmt: skip
# The server has one thread of ours when it forks. A thread of OpenMP's that waits sleeps: where more processes than cores
# compute, as in tests that run side by side, one that spins holds up the thread that it waits for (17 s instead of 1).
SERVER = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MOST_FILES = 32
PAUSE = 0.01


def start(*words: str, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None) -> Forked:
    """Start what `python WORDS` would start: `-m MODULE ARGUMENT…` or `-c CODE ARGUMENT…`."""
    return Forked(words, cwd, os.environ if env is None else env)


def run(*words: str, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Start it and wait for its end."""
    process = start(*words, cwd=cwd, env=env)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.wait(), out, errors)


def command(*words: str) -> list[str]:
    """A command line that does what `python WORDS` would do."""
    return [sys.executable, "-I", "-S", __file__, "ask", _server(), *words]


class Forked:
    """A process that the server forked; it can be used like a `subprocess.Popen` in text mode."""

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.args = words
        self.files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - they live as long as this object
        with open(os.devnull, "rb") as nothing:
            files = {0: nothing.fileno(), 1: self.files[0].fileno(), 2: self.files[1].fileno()}
            self.request = Request(_server(), words, cwd, env, files)
        self.pid, self.returncode = self.request.pid, None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            try:
                self.returncode = self.request.code(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        self.wait(timeout)
        return self.said(0), self.said(1)

    def said(self, which: int) -> str:
        """What it has written so far to stdout (0) or stderr (1)."""
        return os.pread(self.files[which].fileno(), 1 << 24, 0).decode()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Request:
    """A fork that was asked for: its process id, and its exit code once it has one. Its end is that of the fork too.

    Args:
        files: from the descriptor there to the descriptor here.
    """

    def __init__(self, address: str, words: Sequence[str], cwd: Path, env: Mapping[str, str], files: Mapping[int, int]) -> None:
        assert words[0] in ("-m", "-c"), words
        self.answers, self.unread = socket.socket(socket.AF_UNIX), b""
        self.answers.connect(address)
        asked = {"words": list(words), "cwd": str(cwd), "env": dict(env)}
        text = json.dumps([list(files), asked]).encode()
        socket.send_fds(self.answers, [len(text).to_bytes(8, "big")], list(files.values()))
        self.answers.sendall(text)
        self.pid = self._number()

    def code(self, timeout: float | None = None) -> int:
        self.answers.settimeout(timeout)
        code = self._number()
        self.answers.close()
        return code

    def _number(self) -> int:
        while b"\n" not in self.unread:
            part = self.answers.recv(64)
            assert part, "the process that forks has died"
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        return int(line)


@functools.cache
def _server() -> str:
    """The address of this process's server, which ends when this process has ended."""
    address = f"{tempfile.mkdtemp()}/forks"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.forks", "serve", address],
        cwd=REPOSITORY,
        env=os.environ | SERVER,
        stdin=subprocess.PIPE,  # closed by this process's end, however it comes
        stdout=subprocess.PIPE,
    )
    _kept.append(process)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return address


_kept: list[subprocess.Popen[bytes]] = []


# what `command` starts


def ask(address: str, words: list[str]) -> None:
    """Have a fork do what this process was started for, and end as it ends."""
    files = {number: number for number in sorted(map(int, os.listdir("/dev/fd"))) if _is_open(number)}
    request = Request(address, words, Path.cwd(), os.environ, files)
    code = request.code()
    if code >= 0:
        os._exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def _is_open(descriptor: int) -> bool:
    try:
        return os.fstat(descriptor) is not None
    except OSError:
        return False


# the server


def serve(address: str) -> dict[str, Any]:
    """Fork for every request until stdin is closed. Returns in the forks only, with what they are to become."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert not {"flows", "prefect"} & sys.modules.keys(), "the server's folder and environment would be every fork's"
    gc.collect()
    gc.freeze()  # so that no fork's collector walks, and thereby copies, what all have in common
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, and for what was forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready, _, _ = select.select([0, listening], [], [])
            if 0 in ready:
                os.unlink(address)
                os.rmdir(os.path.dirname(address))
                os._exit(0)
            connection = listening.accept()[0]
            with connection:
                if not os.fork():
                    listening.close()
                    return _fork(connection)


def _fork(connection: socket.socket) -> dict[str, Any]:
    """Fork once more: one process becomes what was asked for, the other waits for it and reports its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(connection, 8, MOST_FILES)
    left, text = int.from_bytes(size, "big"), b""
    while len(text) < left:
        text += connection.recv(left - len(text))
    numbers, asked = json.loads(text)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what comes early waits
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        _report(connection, child)
    connection.close()
    above = max(2 * MOST_FILES, *numbers) + 1  # where no file has its place
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]
    os.closerange(0, above)
    for number, file in zip(numbers, aside, strict=True):
        os.dup2(file, number)
        os.close(file)
    return dict(asked)


def _report(connection: socket.socket, child: int) -> None:
    """Say who the child is and, in the end, its exit code; end it where nobody wants to know any more."""
    connection.sendall(b"%d\n" % child)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], PAUSE)[0]:
            os.kill(child, signal.SIGKILL)
            os._exit(0)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
    os._exit(0)


def become(words: list[str], cwd: str, env: dict[str, str]) -> None:
    """Run the module or the code of a command line of Python's as `__main__`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind, what, *arguments = words
    if kind == "-m":
        sys.modules.pop(what, None)
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), main.__dict__)


def exit_code(error: BaseException | None) -> int:
    """What an interpreter exits with that ends with this exception; what it says of it goes to stderr."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


def main(address: str) -> None:
    """Be the server, and each of its forks."""
    request, error = serve(address), None
    try:
        become(**request)
    except BaseException as raised:  # noqa: BLE001 - as the interpreter does
        error = raised
    code = exit_code(error)
    threading._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main(sys.argv[2]) if sys.argv[1] == "serve" else ask(sys.argv[2], sys.argv[3:])
