"""`make ui`: MLflow's and Prefect's UIs for this project, on loopback, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time

from headstart.core.errors import InputError, guarded
from headstart.core.stages import command_line
from headstart.tracking.store import store, ui_command

from flows import PROJECT

SECONDS_TO_START = 90


def free_port(wanted: int) -> int:
    """`wanted`, or the next of the following nine ports that nobody listens on.

    Raises:
        InputError: all ten are taken.
    """
    for port in range(wanted, wanted + 10):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise InputError(f"ports {wanted} to {wanted + 9} of 127.0.0.1 are all taken", fix="name another with --mlflow-port")


def start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a server quietly; it ends with this process."""
    log = (PROJECT / ".headstart" / f"{command[0]}.log").open("wb")
    return subprocess.Popen(
        [f"{sys.exec_prefix}/bin/{command[0]}", *command[1:]], env=os.environ | environment, stdout=log, stderr=log
    )


def wait_for(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    """Wait until `port` answers.

    Raises:
        InputError: the server ended or does not answer.
    """
    for _ in range(SECONDS_TO_START * 5):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise InputError(f"{name} did not start", fix=f"see .headstart/{name}.log")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description="Serve MLflow's and Prefect's UIs.")
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    arguments = parser.parse_args()
    (PROJECT / ".headstart").mkdir(exist_ok=True)
    _, experiment = store(PROJECT)  # the database must be there before two processes ask for it
    mlflow_port, prefect_port = free_port(arguments.mlflow_port), free_port(arguments.prefect_port)
    prefect_address = f"http://127.0.0.1:{prefect_port}"
    servers = {
        "mlflow": (mlflow_port, start(ui_command(PROJECT, mlflow_port), MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")),
        "prefect": (
            prefect_port,
            start(
                ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
                PREFECT_SERVER_CORS_ALLOWED_ORIGINS=prefect_address,
                PREFECT_UI_API_URL=f"{prefect_address}/api",
            ),
        ),
    }
    try:
        for name, (port, process) in servers.items():
            wait_for(port, process, name)
        runs = f"#/experiments/{experiment}/runs?workflowType=machine_learning"  # MLflow opens on its GenAI page without
        print(f"MLflow   http://127.0.0.1:{mlflow_port}/{runs}", flush=True)  # noqa: T201
        print(f"Prefect  {prefect_address}", flush=True)  # noqa: T201
        print("Ctrl-C ends both.", flush=True)  # noqa: T201
        while all(process.poll() is None for _, process in servers.values()):
            time.sleep(0.5)
        return 1
    except (KeyboardInterrupt, SystemExit):
        return 0
    finally:
        for _, process in servers.values():
            process.terminate()
        for _, process in servers.values():
            process.wait(timeout=20)


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
