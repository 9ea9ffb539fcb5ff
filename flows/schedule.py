"""`python -m flows.schedule --cron "0 3 * * *"`: serve the pipeline on a schedule, against a running Prefect server."""

from __future__ import annotations

import argparse
import os
import sys

from headstart.core.errors import InputError, guarded
from headstart.core.stages import command_line

from flows.pipeline import headstart


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.schedule", description="Run the pipeline on a schedule.")
    parser.add_argument("--cron", default="0 3 * * *", help='when, as cron says it (default "0 3 * * *")')
    arguments = parser.parse_args()
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "PREFECT_API_URL is not set, and an ephemeral server cannot schedule",
            fix="prefect server start --host 127.0.0.1 & export PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    headstart.serve(name="pipeline", cron=arguments.cron, limit=1)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
