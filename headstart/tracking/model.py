"""The model that MLflow serves: it maps a table of image bytes to classes. It is logged from code, so nothing is pickled."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from headstart.core.errors import InputError
from headstart.core.files import sha256_file

MOST_ROWS = 256  # most rows in a request
DIGEST = "headstart.sha256"  # the tag with the model file's SHA-256
MODEL_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "openvino",
    "pandas",
    "pillow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
)


def log_model(run_id: str, file: Path, example: bytes) -> None:
    """Log a model file, with the code that reads it, to a run of the store that `store` opened.

    Args:
        example: the bytes of an image, for MLflow's input example.
    """
    inputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.binary, "image")]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "predicted"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    package = Path(__file__).parent.parent
    with mlflow.start_run(run_id=run_id), tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(file, folder)  # the file may be a link into DVC's cache, which MLflow refuses
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "tracking" / "served.py"),
            artifacts={"model": copy},
            code_paths=[str(package)],
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=pd.DataFrame({"image": [example, example]}),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in MODEL_REQUIREMENTS],
            tags={DIGEST: sha256_file(file)},
        )


class ImageClassifier(PythonModel):
    """A fine-tuned model with MLflow's table interface: it takes a column `image` of file bytes, never paths or URLs."""

    def load_context(self, context: Any) -> None:
        from headstart.prediction.predictor import Predictor

        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row per image: predicted label, its probability, and the probabilities of all classes.

        Raises:
            MlflowException: there are too many rows, or some bytes are not an image; the message names the row.
        """
        if len(model_input) > MOST_ROWS:
            raise _refusal(f"the request has {len(model_input)} rows; at most {MOST_ROWS} are allowed")
        try:
            probabilities = self.predictor.probabilities(list(model_input["image"]))
        except InputError as error:
            raise _refusal(str(error)) from None
        best = probabilities.argmax(1).tolist() if len(probabilities) else []
        rows = probabilities.double().tolist()
        return pd.DataFrame(
            {
                "predicted": [self.predictor.card.classes[i] for i in best],
                "confidence": [row[i] for row, i in zip(rows, best, strict=True)],
                "probabilities": rows,
            }
        )


def _refusal(text: str) -> MlflowException:
    """Return the exception that MLflow's server answers with status 400."""
    return MlflowException(text, error_code=INVALID_PARAMETER_VALUE)


def declare_model() -> None:
    """Declare `ImageClassifier` to MLflow as the model of the running code; only headstart/tracking/served.py calls it."""
    mlflow.models.set_model(ImageClassifier())
