"""Every command, and the Prefect flows over the stages. This sets the environment that Prefect reads when it is imported."""

import os
from pathlib import Path

import tasks as tasks  # hashes the code before the rest of it is imported, and checks for the packages

PROJECT = Path.cwd()
for name, value in {
    "PREFECT_HOME": str(PROJECT / ".headstart" / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default is too tight on a fresh database
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our own command line reports errors, once
    "PREFECT_LOGGING_EXTRA_LOGGERS": "headstart",  # our lines show in Prefect's UI too
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
}.items():
    os.environ.setdefault(name, value)
if (PROJECT / "params.yaml").is_file():
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes one level only, and hangs without
