"""MLflow's scoring application for one model: POST /invocations, /ping, /health, /version."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.pyfunc import scoring_server

from headstart.tracking.registry import NAME, Registry, Version
from headstart.web import Application


def scoring_application(root: Path, alias: str) -> tuple[Application, Version]:
    """Return an ASGI application that answers with the version that has `alias` now, and that version.

    Source: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/

    Raises:
        InputError: no version has that alias, or its model file is damaged.
    """
    version = Registry(root).wanted(alias)
    return scoring_server.init(mlflow.pyfunc.load_model(f"models:/{NAME}/{version.number}")), version
