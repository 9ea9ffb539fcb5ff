"""`make ui`: serve MLflow's and Prefect's UIs for this project on loopback, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys

from headstart.core.command_line import command_line, guarded
from headstart.tracking.store import store, ui_command

from flows import PROJECT
from flows.arguments import port
from flows.servers import Servers, free_port, prefect_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description="Serve MLflow's and Prefect's UIs.")
    parser.add_argument("--mlflow-port", type=port, default=5000, help="port of MLflow's UI (default 5000)")
    parser.add_argument("--prefect-port", type=port, default=4200, help="port of Prefect's UI (default 4200)")
    arguments = parser.parse_args()
    _, experiment = store(PROJECT)  # the database must exist before two processes open it
    mlflow_port, prefect_port = free_port(arguments.mlflow_port), free_port(arguments.prefect_port)
    with Servers() as servers:
        servers.start("mlflow", ui_command(PROJECT, mlflow_port), mlflow_port, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        servers.start("prefect", prefect_command(prefect_port), prefect_port)
        runs = f"#/experiments/{experiment}/runs?workflowType=machine_learning"  # without it, MLflow opens its GenAI page
        print(f"MLflow   http://127.0.0.1:{mlflow_port}/{runs}", flush=True)  # noqa: T201
        print(f"Prefect  http://127.0.0.1:{prefect_port}", flush=True)  # noqa: T201
        print("Ctrl-C ends both.", flush=True)  # noqa: T201
        return servers.wait()


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
