"""predictions.parquet: the best model's prediction for each file of the test split. Shape legend: n files, c classes."""

from __future__ import annotations

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.evaluation.galleries import TestPredictions


def predictions_file(files: pd.DataFrame, found: TestPredictions) -> bytes:
    """Return Parquet with a row per file of the test split: path, label, predicted, probabilities in class order.

    Args:
        files: the manifest's rows of the test split; each copy of an image has its own row.
    """
    row_of = dict(zip(found.table["key"], range(len(found.table)), strict=True))
    p_nc, classes = found.p_nc[[row_of[key] for key in files["key"]]], found.classes
    columns = {
        "path": pa.array(files["path"], pa.string()),
        "label": pa.array(files["label"], pa.string()),
        "predicted": pa.array([classes[i] for i in p_nc.argmax(1).tolist()], pa.string()),
        "probabilities": pa.array(p_nc.tolist(), pa.list_(pa.float64())),
    }
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(list(classes))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
