"""End all processes that a run started when it ends in any way: servers, workers, stages, and what libraries start.

A run puts a token into its environment, and every process that it starts inherits it. The guardian, a small separate process,
holds one end of a pipe: when the pipe closes, it ends every process that has the token. If both are killed, the next start
does so.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from headstart.core import guardian
from headstart.core.liveness import alive, dead, forget, record

KIND = "run"
TO_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that may be sent to all processes of a run at once
logger = logging.getLogger("headstart")
_guarded: list[int] = []  # this process's id, once it has a guardian


def guard(root: Path) -> None:
    """Make sure that all processes this one will start end with it, and end those that dead runs of this project left.

    A second call in a process does nothing. If no guardian can be started (too many processes, a full disk), the next
    start still ends what is left.

    Args:
        root: the project. Nothing is written to a folder that is no project.
    """
    if os.getpid() in _guarded:
        return
    _guarded[:] = [os.getpid()]
    is_project = (root / "params.yaml").is_file()
    if is_project:
        with contextlib.suppress(OSError):  # the project is another user's
            end_leftovers(root)
    token = f"{os.getpid()}-{secrets.token_hex(8)}"
    undo = contextlib.ExitStack()
    if is_project:
        with contextlib.suppress(OSError):
            undo.enter_context(alive(root, KIND, token))
    os.environ[guardian.NAME] = ",".join(filter(None, [os.environ.get(guardian.NAME), token]))
    with contextlib.suppress(OSError):
        _start(token, record(root, KIND, token) if is_project else None, undo)
    owner = os.getpid()

    def leave() -> None:
        if os.getpid() == owner:  # the end of a fork is not the end of this process
            guardian.end_all(token)
            undo.close()

    atexit.register(leave)


def end_leftovers(root: Path) -> None:
    """End the processes of this project's runs that died together with their guardians."""
    for token in dead(root, KIND):
        for process in guardian.end_all(token):
            logger.warning("ended process %s, which a run that died had left behind", process)
        forget(root, KIND, token)


def _start(token: str, kept: Path | None, undo: contextlib.ExitStack) -> None:
    """Start the guardian; `undo` ends it immediately."""
    theirs, ours = os.pipe()
    os.register_at_fork(after_in_child=lambda: _close(ours))  # a fork that survives must not keep the pipe open
    command = [sys.executable, "-I", *(["-S"] if sys.platform == "linux" else []), guardian.__file__]
    facts = [theirs, os.getpid(), token, kept.resolve() if kept else "", _command_above()]
    environment = {name: value for name, value in os.environ.items() if name != guardian.NAME}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)  # the guardian inherits this: it must end last
    try:
        process = subprocess.Popen(
            [*command, *map(str, facts)],
            pass_fds=[theirs],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(theirs)
    undo.callback(process.wait)
    undo.callback(process.kill)


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _command_above() -> int:
    """Return the `dvc` command that started this process as a stage, directly or through a shell; 0 if there is none."""
    if "DVC_STAGE" not in os.environ:
        return 0
    process = os.getppid()
    for _ in range(3):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return 0
        if any(Path(os.fsdecode(word)).name == "dvc" for word in words):
            return process
        process = int(state[1])
    return 0
