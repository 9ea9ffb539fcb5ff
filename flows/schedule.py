"""`make schedule`: run Prefect's server, a worker and the deployments of prefect.yaml on loopback, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError

from flows import PROJECT, arguments
from flows.prefect_client import close_dead_flow_runs
from flows.servers import Servers, free_port, prefect_command

POOL = "local"
SECONDS = 180  # that one command of Prefect's may take


def prefect(*arguments: str) -> None:
    """Run one of Prefect's commands and keep its output out of ours.

    Raises:
        InputError: it failed (the message has its output), or it did not end in time.
    """
    command = [f"{sys.exec_prefix}/bin/prefect", "--no-prompt", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        found = f"prefect {' '.join(arguments)} did not end within {SECONDS} s"
        raise InputError(found, fix=f"see {PROJECT / '.headstart/logs/prefect.log'}, then start again") from None
    if done.returncode:
        raise InputError(f"prefect {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.schedule", description="Run Prefect's server, a worker and the deployments of prefect.yaml."
    )
    parser.add_argument("--port", type=arguments.port, default=4200, help="port of Prefect's server and pages (default 4200)")
    port = free_port(parser.parse_args().port)
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["PWD"] = str(PROJECT)  # prefect.yaml reads it; a shell sets it, other parents may not
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if password:
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password)
    with Servers() as servers:
        servers.start("prefect", prefect_command(port), port)
        prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        prefect("deploy", "--all")
        close_dead_flow_runs(PROJECT)  # a run that died with the server still holds the deployment's only slot
        servers.start("worker", ["prefect", "worker", "start", "--pool", POOL])
        print(f"Prefect  http://127.0.0.1:{port}/deployments", flush=True)  # noqa: T201
        print("  run it now:  prefect deployment run headstart/pipeline   (see docs/operations.md)", flush=True)  # noqa: T201
        print(f"Ctrl-C ends server and worker; logs are in {PROJECT / '.headstart/logs'}.", flush=True)  # noqa: T201
        return servers.wait()


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
