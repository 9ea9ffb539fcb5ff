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
from headstart.models.trained import load_card

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
    "scipy",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
)


TYPES: dict[str, Any] = {"string": DataType.string, "double": DataType.double, "double[]": Array(DataType.double)}


def log_model(run_id: str, file: Path, example: pd.DataFrame) -> None:
    """Log a model file, with the code that reads it, to a run of the store that `store` opened.

    Args:
        example: images or rows as the model takes them, for MLflow's input example and for the signature.
    """
    inputs: list[ColSpec | TensorSpec] = [_input(example[name]) for name in example]
    served = load_card(file).target.served_types()
    outputs: list[ColSpec | TensorSpec] = [ColSpec(TYPES[kind], name) for name, kind in served.items()]
    package = Path(__file__).parent.parent
    with mlflow.start_run(run_id=run_id), tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(file, folder)  # the file may be a link into DVC's cache, which MLflow refuses
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "tracking" / "served.py"),
            artifacts={"model": copy},
            code_paths=[str(package)],
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=example,
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in MODEL_REQUIREMENTS],
            tags={DIGEST: sha256_file(file)},
        )


def _input(values: pd.Series) -> ColSpec:
    """Return how MLflow takes a column: bytes, numbers, flags, or text; a table's columns may be missing a value."""
    name = str(values.name)
    if name == "image":
        return ColSpec(DataType.binary, name)
    if pd.api.types.is_bool_dtype(values):
        return ColSpec(DataType.boolean, name, required=False)
    kind = DataType.double if pd.api.types.is_numeric_dtype(values) else DataType.string
    return ColSpec(kind, name, required=False)


class Served(PythonModel):
    """A model with MLflow's table interface: it takes a column `image` of file bytes, never paths or URLs, and columns."""

    def load_context(self, context: Any) -> None:
        from headstart.prediction.predictor import Predictor

        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row per image; see the target's `served_types`.

        Raises:
            MlflowException: there are too many rows, or some bytes are not an image; the message names the row.
        """
        if len(model_input) > MOST_ROWS:
            raise _refusal(f"the request has {len(model_input)} rows; at most {MOST_ROWS} are allowed")
        try:
            columns = self.predictor.encode(model_input)
            if self.predictor.card.preprocessing is None:
                answers = self.predictor.answers(columns=columns)
            else:
                answers = self.predictor.answers_of_bytes(list(model_input["image"]), columns)
        except InputError as error:
            raise _refusal(str(error)) from None
        return pd.DataFrame(self.predictor.card.target.served(answers))


def _refusal(text: str) -> MlflowException:
    """Return the exception that MLflow's server answers with status 400."""
    return MlflowException(text, error_code=INVALID_PARAMETER_VALUE)


def declare_model() -> None:
    """Declare `Served` to MLflow as the model of the running code; only headstart/tracking/served.py calls it."""
    mlflow.models.set_model(Served())
