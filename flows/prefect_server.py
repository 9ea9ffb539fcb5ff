"""`python -m flows.prefect_server`: run Prefect's own server and pages on loopback, behind a check of Host and Origin.

Without the check, any web page that makes a browser call 127.0.0.1 would get an answer. With
PREFECT_SERVER_API_AUTH_STRING it also asks for a password.
"""

from __future__ import annotations

import argparse
import os
import sys

from headstart.core.command_line import command_line, guarded
from headstart.web import LOOPBACK, Gate

from flows import PROJECT as PROJECT  # sets Prefect up
from flows.arguments import whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.prefect_server", description="Prefect's server on loopback.")
    parser.add_argument("--port", type=whole(1, 65535), default=4200, help="port on 127.0.0.1 (default 4200)")
    port = parser.parse_args().port
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", f"http://127.0.0.1:{port}")
    os.environ.setdefault("PREFECT_UI_API_URL", "/api")  # on the page's own origin, whichever name it was opened by
    # in memory, the default, the slot of a run that died together with the server would never be free again
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem")
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(Gate(create_app(final=True), LOOPBACK), host="127.0.0.1", port=port, log_level="error")
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
