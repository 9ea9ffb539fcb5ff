"""Start servers on loopback, wait until they answer, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from headstart.core.errors import InputError

from flows import PROJECT

SECONDS_TO_START = 90
SECONDS_TO_END = 30


def free_port(wanted: int) -> int:
    """Return `wanted`, or the first of the next nine ports that no process listens on.

    Raises:
        InputError: all ten are in use.
    """
    for port in range(wanted, min(wanted + 10, 65536)):
        if not answers(port):
            return port
    raise InputError(f"ports {wanted} to {wanted + 9} of 127.0.0.1 are all in use", fix="choose another port")


def answers(port: int) -> bool:
    """Return whether a process listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


class Servers:
    """Server processes that end with the block (`with Servers() as servers`). Each logs to .headstart/logs/NAME.log."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        return self

    def start(self, name: str, command: Sequence[str], port: int | None = None, **environment: str) -> None:
        """Start a program of this environment; with a port, wait until it answers there.

        Raises:
            InputError: the program ended, or does not answer.
        """
        log = PROJECT / ".headstart" / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            self.processes[name] = subprocess.Popen(
                [f"{sys.exec_prefix}/bin/{command[0]}", *command[1:]],
                env=os.environ | environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end them in order
            )
        if port is None:
            return
        for _ in range(SECONDS_TO_START * 5):
            if self.processes[name].poll() is not None:
                break
            if answers(port):
                return
            time.sleep(0.2)
        raise InputError(f"{name} did not start", fix=f"see {log}")

    def wait(self) -> int:
        """Wait until one of them ends (return 1), or until this process is asked to stop (return 0)."""
        try:
            while all(process.poll() is None for process in self.processes.values()):
                time.sleep(0.5)
        except (KeyboardInterrupt, SystemExit):
            return 0
        return 1

    def __exit__(self, *_: object) -> None:
        for name, process in reversed(self.processes.items()):  # a server that depends on another ends first
            process.terminate()
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                sys.stderr.write(f"{name} did not end within {SECONDS_TO_END} s and was killed\n")


def prefect_command(port: int) -> list[str]:
    """Return the command line of Prefect's server on loopback, behind `headstart.web.Gate`."""
    return ["python", "-m", "flows.prefect_server", "--port", str(port)]
