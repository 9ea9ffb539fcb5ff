"""`make serve`: serve the champion over HTTP on loopback: MLflow's scoring application behind a check of Host, Origin, size."""

from __future__ import annotations

import argparse
import logging
import sys

from headstart.core.command_line import command_line, guarded
from headstart.core.text import printable
from headstart.models.classes import unknown_classes, warning
from headstart.tracking.scoring import scoring_application
from headstart.web import LOOPBACK, Gate

from flows import PROJECT
from flows.arguments import number, port
from flows.servers import free_port

logger = logging.getLogger("headstart")
MOST_AT_ONCE = 64  # requests; more get 503


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description="Serve the champion over HTTP.")
    parser.add_argument("--port", type=port, default=5001, help="port on 127.0.0.1 (default 5001)")
    parser.add_argument("--model", default="champion", metavar="ALIAS", help="which model to serve (default champion)")
    size = number(0, most=4096, above=True)
    parser.add_argument("--max-mb", type=size, default=32.0, help="largest body of a request, in MB (default 32)")
    options = parser.parse_args()
    import uvicorn

    application, version = scoring_application(PROJECT, options.model)
    unknown = unknown_classes(version.file, PROJECT / "data/target.json")
    if unknown:
        logger.warning("  %s", printable(warning(unknown)))
    free = free_port(options.port)
    logger.info("serving version %s (sha256 %s…) on http://127.0.0.1:%s/invocations", version.number, version.digest[:12], free)
    gate = Gate(application, LOOPBACK, int(options.max_mb * 1e6))
    uvicorn.run(gate, host="127.0.0.1", port=free, log_level="warning", limit_concurrency=MOST_AT_ONCE, timeout_keep_alive=30)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
