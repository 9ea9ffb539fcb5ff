"""predictions.parquet: the best model's prediction for each file of the test split. Shape legend: n files, c classes."""

from __future__ import annotations

import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.targets.reports.judged import Judged

TYPES = {"string": pa.string(), "double": pa.float64(), "double[]": pa.list_(pa.float64())}


def predictions_file(files: pd.DataFrame, judged: Judged) -> bytes:
    """Return Parquet with a row per file of the test split: path, label, what is predicted, and the answers.

    Args:
        files: the manifest's rows of the test split; each copy of an image has its own row.
    """
    row_of = dict(zip(judged.table["key"], range(len(judged.table)), strict=True))
    answers = judged.answers[[row_of[key] for key in files["key"]]]
    served, types = judged.target.served(answers), judged.target.served_types()
    columns = {"path": pa.array(files["path"], pa.string()), "label": pa.array(files["label"], pa.string())}
    columns |= {name: pa.array(served[name], TYPES[kind]) for name, kind in types.items() if name != "confidence"}
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(list(judged.classes))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
