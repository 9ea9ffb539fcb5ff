"""The code MLflow stores beside a logged model and runs to load it (models-from-code: nothing is pickled)."""

from headstart.tracking import declare_model

declare_model()
