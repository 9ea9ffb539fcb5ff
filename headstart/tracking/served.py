"""The code that MLflow stores with a logged model and runs to load it, instead of a pickle."""

from headstart.tracking.model import declare_model

declare_model()
