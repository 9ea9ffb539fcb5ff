"""Every command, and the Prefect flows over the stages. Importing it sets the environment that Prefect reads at import."""

import os
from pathlib import Path

import tasks as tasks  # hashes the code before the rest is imported, and checks that the packages are there

PROJECT = Path.cwd()
for name, value in {
    "PREFECT_HOME": str(PROJECT / ".headstart" / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default is too tight on a fresh database
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our command line reports each error once
    "PREFECT_LOGGING_EXTRA_LOGGERS": "headstart",  # Prefect's UI shows our log lines too
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
}.items():
    os.environ.setdefault(name, value)
if (PROJECT / "params.yaml").is_file():  # Prefect creates one level of folders only, and hangs if more are missing
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
