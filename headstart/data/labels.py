"""labels.csv and labels.parquet: path, label, and what else is known of each image."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.core.errors import InputError
from headstart.data.tree import Tree

NAMES = ("labels.csv", "labels.parquet")
SPLITS = ("train", "valid", "test")
OWN = ("path", "label", "split", "group")
RESERVED = (
    "key", "class_index", "fold", "width", "height", "format", "mode", "orientation", "bytes", "phash", "declared",
)  # fmt: skip
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One image of a labels file; split and group are empty where it names none."""

    path: str
    label: str
    split: str
    group: str


def labels_file(tree: Tree) -> Path | None:
    """The source's labels file, if it has one.

    Raises:
        InputError: it has two.
    """
    found = [name for name in NAMES if name in tree.files]
    if len(found) > 1:
        raise InputError(f"{tree.root}: both {' and '.join(found)}", fix="keep one of them")
    return tree.root / found[0] if found else None


def read_labels(path: Path, tree: Tree) -> tuple[list[Row], pd.DataFrame]:
    """Read and check a labels file.

    Returns:
        Its rows, and the further columns (text from CSV, any scalar type from Parquet) indexed by path.

    Raises:
        InputError: naming file, row and column: a missing, reserved or doubled column, another delimiter, a
            byte order mark, text that is not UTF-8, an empty or unknown or doubled path or one that leads
            out of the folder, an empty label, an unknown split.
    """
    frame = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, cells in zip(frame.index, _records(frame), strict=True):
        row = _row(tree, f"{path} row {number}", cells)
        if row.path in seen:
            raise InputError(f"{path} row {number}, column path: {row.path!r} is in row {seen[row.path]} already")
        seen[row.path] = number
        rows.append(row)
    extra = frame.drop(columns=[name for name in OWN if name in frame])
    return rows, extra.set_axis(pd.Index(seen, dtype=object), axis=0)


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [name for name in OWN if name in frame]
    for values in zip(*(frame[name].tolist() for name in columns), strict=True):
        yield dict(zip(columns, values, strict=True))


def _row(tree: Tree, place: str, cells: Mapping[str, Any]) -> Row:
    texts = {name: _text(value, f"{place}, column {name}") for name, value in cells.items()}
    name, label, split = texts["path"], texts["label"], texts.get("split", "")
    relative = os.path.normpath(name)
    if os.path.isabs(name) or relative.split("/")[0] == ".." or "\0" in name:
        raise InputError(f"{place}, column path: {name!r} leads out of the folder", wanted=f"a path below {tree.root}")
    if not name or relative not in tree.files:
        raise InputError(f"{place}, column path: no file {name!r} in {tree.root}{_twin(relative, tree)}")
    if not label:
        raise InputError(f"{place}, column label: empty")
    if split not in ("", *SPLITS):
        raise InputError(f"{place}, column split: {split!r}", wanted="train, valid, test or empty")
    return Row(relative, label, split, texts.get("group", ""))


def _text(value: Any, place: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"{place}: {value!r} of type {type(value).__name__}", wanted="text or a whole number")
    return str(value)


def _twin(path: str, tree: Tree) -> str:
    wanted = unicodedata.normalize("NFC", path)
    same = [name for name in tree.files if not name.isascii() and unicodedata.normalize("NFC", name) == wanted]
    return "; its name is there in another Unicode normal form (NFC, NFD)" if same else ""


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise InputError(
            f"{path} row 1: no column {', '.join(missing)}; columns found: {', '.join(columns) or 'none'}",
            wanted="path,label[,split][,group][,more], comma-separated",
        )
    for name in columns:
        if name in RESERVED or columns.count(name) > 1 or not name:
            what = "reserved by the manifest" if name in RESERVED else "there twice" if name else "without a name"
            raise InputError(f"{path} row 1, column {name or columns.index(name) + 1}: {what}", fix="rename it")


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    if data.startswith(BOM):
        raise InputError(
            f"{path} row 1, column path: the file begins with a byte order mark (BOM)",
            wanted="UTF-8 without it",
            fix=f"sed -i '1s/^\\xEF\\xBB\\xBF//' {path}   (or save it as plain CSV UTF-8)",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path} row {row}: not UTF-8 text", fix="save the file as UTF-8") from None
    rows = ((number, cells) for number, cells in enumerate(_csv_rows(path, text), start=1) if cells)  # a row may be blank
    _, header = next(rows, (1, []))
    _check_columns(path, header)
    body = dict(rows)
    for number, cells in body.items():
        if len(cells) != len(header):
            column = header[min(len(cells), len(header) - 1)]
            raise InputError(f"{path} row {number}, column {column}: {len(cells)} cells, the header has {len(header)} columns")
    return pd.DataFrame([*body.values()], index=[*body], columns=header, dtype=object)


def _csv_rows(path: Path, text: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # not splitlines, which ends lines at U+2028 and others
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(f"{path} row {reader.line_num}: {error}", wanted="comma-separated values, quotes doubled") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)  # text that is not UTF-8, and the like
        _check_columns(path, table.column_names)
        nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
        if nested:
            raise InputError(f"{path}, column {nested[0]}: nested values", wanted="text, numbers, dates, true or false")
        frame: pd.DataFrame = _plain(table).to_pandas(integer_object_nulls=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a Parquet file, or a damaged one: {error}") from None
    return frame.set_axis(range(1, len(frame) + 1), axis=0)


def _plain(table: pa.Table) -> pa.Table:
    """Without pandas's metadata, categories as their values: what the manifest is to hold."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(place)
            table = table.set_column(place, field.name, column.cast(field.type.value_type))
    return table.replace_schema_metadata(None)
