"""The manifest: one row per readable file, or per row of a table, with its content's hash, label and split."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.core.errors import InputError
from headstart.core.files import write_bytes

ROW_COLUMNS = ("key", "path", "label", "split", "group", "fold")
IMAGE_COLUMNS = ("width", "height", "format", "mode", "orientation", "bytes", "phash", "peak")
COLUMNS = (*ROW_COLUMNS, *IMAGE_COLUMNS)
SPLITS = ("train", "valid", "test")
CHECKSUM = b"headstart.checksum"
RELINK = "python -m flows.pipeline --force link_data"


def without_copies(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the images of a split that metrics use: one file for each content, so that copies count once."""
    return manifest[manifest["split"] == split].drop_duplicates("key").reset_index(drop=True)


def rows_of(manifest: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return all rows of a split, copies included, numbered from 0."""
    return manifest[manifest["split"] == split].reset_index(drop=True)


def class_order(labels: pd.Series) -> list[str]:
    """Return the classes in the order that every file uses: by name, as text."""
    return sorted(set(labels))


def write_manifest(path: Path, frame: pd.DataFrame) -> None:
    """Write the manifest as Parquet: equal frames give equal bytes, whatever the order of their rows."""
    table = pa.Table.from_pandas(frame.sort_values("path"), preserve_index=False).replace_schema_metadata(None)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({CHECKSUM: _checksum(table)}), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def has_images(manifest: pd.DataFrame) -> bool:
    """Return whether a manifest's rows are images; else they are the rows of a table."""
    return set(IMAGE_COLUMNS) <= set(manifest.columns)


def own_columns(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the source's own columns: everything but the label, and what the manifest adds."""
    return manifest.drop(columns=[name for name in COLUMNS if name in manifest] if has_images(manifest) else [*ROW_COLUMNS])


def read_manifest(path: Path, wanted: Sequence[str] = ROW_COLUMNS) -> pd.DataFrame:
    """Read a manifest written by `write_manifest` and check that it is complete.

    Args:
        wanted: required columns; fewer for a manifest that an earlier version may have written.

    Returns:
        Columns `COLUMNS` (`ROW_COLUMNS` for rows without images), then the source's own: key is the SHA-256 of the file's
        bytes or of the row, path is relative to the source or names the row, split is train, valid, test or excluded, fold
        is -1 for test images, width and height are those of the upright image, mode is the file's, peak is its largest raw
        value if it has more than 8 bits (else 0).

    Raises:
        InputError: the file is missing, damaged or not a manifest.
    """
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        intact = (table.schema.metadata or {}).get(CHECKSUM) == _checksum(table)
        frame = _frame(table)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run link_data first, or the whole pipeline") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise InputError(f"{path}: damaged: {str(error).splitlines()[:1]}", fix=RELINK) from None
    if not intact:
        raise InputError(f"{path}: damaged, or not written by link_data: its checksum does not fit", fix=RELINK)
    missing = set(wanted) - set(frame.columns)
    if "width" in frame:  # an image's row
        missing |= {name for name in IMAGE_COLUMNS if name not in frame} if wanted is ROW_COLUMNS else set()
    if missing:
        raise InputError(f"{path}: columns {', '.join(sorted(missing))} are missing", fix=RELINK)
    return frame


def _checksum(table: pa.Table) -> bytes:
    """Return the checksum of names, types and values, whatever the file's layout."""
    frame = _frame(table)
    digest = hashlib.sha256(str([(field.name, str(field.type)) for field in table.schema]).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest().encode()


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    return frame


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a list of files as CSV. All text is quoted, and no cell can start a spreadsheet formula."""

    def safe(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell

    text = frame.map(safe).to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # for a lone \r
    write_bytes(path, text.encode())
