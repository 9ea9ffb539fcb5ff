"""The code MLflow stores beside a logged model and runs to load it (models-from-code: nothing is pickled)."""

from headstart.tracking.model import declare_model

declare_model()
