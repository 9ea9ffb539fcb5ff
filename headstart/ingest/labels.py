"""Read labels.csv or labels.parquet, or another table of the source: path, label and other columns for each image."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from posixpath import normpath
from typing import Any

import pandas as pd
import pyarrow as pa

from headstart.core.errors import InputError, require_columns
from headstart.core.text import listing, printable
from headstart.ingest.label_paths import BadCell, Paths
from headstart.ingest.spelling import clean
from headstart.ingest.table_files import DELIMITERS, as_text, csv_rows, read_parquet
from headstart.ingest.tree import Tree
from headstart.manifest import SPLITS
from headstart.targets.labels import AS_SHOWN, NONE, BadLabel, LabelFormat

NAMES = ("labels.csv", "labels.parquet")
OWN = ("path", "label", "split", "group")
RESERVED = (
    "key", "fold", "width", "height", "format", "mode", "orientation", "bytes", "phash", "peak", "declared",
)  # fmt: skip
MANY = 1_000  # the search stops after so many bad rows


@dataclass(frozen=True)
class TableColumns:
    """Which table of a source has the labels, and what its columns are called; see params.yaml, section data."""

    file: str = "auto"
    path: str = "path"
    label: str = "label"
    group: str = NONE


USUAL_NAMES = TableColumns()


@dataclass(frozen=True)
class Row:
    """One image of a labels file. Split and group are empty if the file names none."""

    path: str
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class Labels:
    """A labels file.

    Args:
        name: its path relative to the source.
        rows: its images.
        format: how its labels are written.
        extra: other columns (text from CSV, any scalar type from Parquet) indexed by path.
        remarks: (name, kind, text) of what was accepted although its spelling differs.
    """

    name: str
    rows: list[Row]
    format: LabelFormat
    extra: pd.DataFrame
    remarks: list[tuple[str, str, str]]


def labels_file(tree: Tree, base: str = "", asked: str = "auto") -> Path | None:
    """Return the labels file in a source's folder `base` (with a slash, or empty), or None.

    Args:
        asked: its name relative to the source; "auto" looks for labels.csv and labels.parquet.

    Raises:
        InputError: the folder has two, or not the one that is asked for.
    """
    if asked != "auto":
        if asked not in tree.files or not asked.endswith((".csv", ".parquet")):
            tables = [path for path in sorted(tree.files) if path.endswith((".csv", ".parquet"))]
            raise InputError(
                f"data.labels_file {asked!r}: no such table in {tree.root}",
                wanted=f"one of its .csv or .parquet files: {', '.join(map(printable, tables[:10])) or 'it has none'}",
            )
        return tree.root / asked
    found = [name for name in NAMES if base + name in tree.files]
    if len(found) > 1:
        raise InputError(f"{tree.root / base}: both {' and '.join(found)}", fix="keep one of them")
    return tree.root / base / found[0] if found else None


def read_labels(
    path: Path, tree: Tree, base: str = "", labels: LabelFormat = AS_SHOWN, names: TableColumns = USUAL_NAMES
) -> Labels:
    """Read and check a labels file; its paths are relative to the source's folder `base`.

    Args:
        labels: how labels are written, as far as it is known.
        names: what its columns are called.

    Raises:
        InputError: the file has faults; the message names row and column of up to ten. They are a missing, reserved or
            repeated column, text that is not UTF-8, a path that is empty, unknown, ambiguous, repeated or outside the
            folder, a label that its kind of target cannot use, or an unknown split.
    """
    shape = _Shape(labels, names)
    frame, formats = (
        _read_csv(path, tree, base, shape)
        if path.suffix == ".csv"
        else (read_parquet(path, lambda table: _named(path, table, shape)), [])
    )
    frame, shown = _with_labels(path, frame, labels)
    labels = labels.settled(shown, map(_loose_text, frame["label"]))
    paths = Paths(tree, base)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    bad: list[tuple[int, BadCell]] = []
    for number, cells in zip(frame.index, _records(frame), strict=True):
        try:
            row = _row(paths, cells, labels)
            if row.path in seen:
                raise BadCell("path", f"{row.path!r} is already in row {seen[row.path]}")
        except BadCell as error:
            bad.append((number, error))
            if len(bad) == MANY:
                break
            continue
        seen[row.path] = number
        rows.append(row)
    _refuse(path, bad)
    extra = frame.drop(columns=[name for name in OWN if name in frame])
    remarks = [("labels format", text) for text in formats]
    for kind, (number, cell, file) in sorted(paths.spelled.items()):
        remarks.append(("labels path", f"{kind} in {number:,} paths: {cell!r} is read as {file!r}"))
    name = base + path.name
    index = pd.Index(seen, dtype=object)
    remarks += [("labels format", text)] if (text := labels.remark(row.label for row in rows)) else []
    return Labels(name, rows, labels, extra.set_axis(index, axis=0), [(name, *remark) for remark in remarks])


def _with_labels(path: Path, frame: pd.DataFrame, labels: LabelFormat) -> tuple[pd.DataFrame, str]:
    """Return the table with a column label, made from 0/1 columns if those give it, and what the column is called there."""
    if not labels.columns:
        shown = "label" if "label" in frame else "tags"
        return frame.rename(columns={"tags": "label"}) if shown == "tags" else frame, shown
    found: list[str] = []
    bad: list[tuple[int, BadCell]] = []
    for number, cells in zip(frame.index, zip(*(frame[name].tolist() for name in labels.columns), strict=True), strict=True):
        try:
            found.append(labels.flagged(dict(zip(labels.columns, cells, strict=True))))
        except BadLabel as error:
            column, _, value = error.found.partition("\0")
            bad.append((number, BadCell(column, value, error.wanted)))
            found.append("")
    _refuse(path, bad[:MANY])
    return frame.drop(columns=list(labels.columns)).assign(label=pd.Series(found, frame.index, dtype=object)), "label"


def _loose_text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _refuse(path: Path, bad: list[tuple[int, BadCell]]) -> None:
    if len(bad) == 1:
        ((number, error),) = bad
        raise InputError(f"{path} row {number}, column {error.column}: {error.found}", wanted=error.wanted)
    if bad:
        lines = [f"row {number}, column {error.column}: {error.found}" for number, error in bad]
        many = f"{len(bad):,} or more" if len(bad) == MANY else f"{len(bad):,}"
        wanted = "; ".join(dict.fromkeys(error.wanted for _, error in bad if error.wanted))
        raise InputError(f"{path}: {many} rows cannot be used:\n    {listing(lines)}", wanted=wanted)


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [name for name in OWN if name in frame]
    for values in zip(*(frame[name].tolist() for name in columns), strict=True):
        yield dict(zip(columns, values, strict=True))


def _row(paths: Paths, cells: Mapping[str, Any], labels: LabelFormat) -> Row:
    texts = {name: _text(value, name, name == "label" and not labels.has_classes) for name, value in cells.items()}
    path, split = paths.find(texts["path"]), clean(texts.get("split", ""))
    try:
        label = labels.read(texts["label"] if clean(texts["label"]) else "")
    except BadLabel as error:
        raise BadCell("label", error.found, error.wanted) from None
    if split not in ("", *SPLITS):
        raise BadCell("split", repr(split), "train, valid, test or empty")
    return Row(path, label, split, texts.get("group", ""))


def _text(value: Any, column: str, number: bool = False) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if number and isinstance(value, float | Decimal):
        return repr(float(value))
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadCell(column, f"{value!r} of type {type(value).__name__}", "text or a whole number")
    return str(value)


@dataclass(frozen=True)
class _Shape:
    """Which columns a labels file needs, and what they are called."""

    labels: LabelFormat
    names: TableColumns

    def required(self, columns: Collection[str]) -> tuple[str, ...]:
        """Return the names of the columns that must be there; tags may stand for label."""
        if self.labels.columns:
            return (self.names.path, *self.labels.columns)
        tags = self.names.label == "label" and "label" not in columns and "tags" in columns
        return (self.names.path, "tags" if tags and self.labels.several else self.names.label)

    def own(self, columns: Sequence[str]) -> list[str]:
        """Return the columns' names with those that have a role called path, label and group."""
        roles = {self.names.path: "path", self.names.label: "tags" if self.names.label == "tags" else "label"}
        roles |= {self.names.group: "group"} if self.names.group != NONE else {}
        return [roles.get(name, name) for name in columns]


def _check_columns(path: Path, columns: list[str], shape: _Shape) -> None:
    required = shape.required(columns)
    rule = f"{','.join(required)}[,split][,group][,more], separated by commas, semicolons or tabs"
    group = [shape.names.group] if shape.names.group != NONE else []
    require_columns(f"{path} row 1", [*required, *group], columns, rule=rule)
    for role, name in (("path", shape.names.path), ("label", shape.names.label), ("group", shape.names.group)):
        if role in columns and name not in (role, NONE):
            text = f"{path} row 1: a column {role}, but data.{role}_column is {name}"
            raise InputError(text, fix=f"rename the column {role}")
    if shape.labels.columns and shape.names.label in columns:
        text = f"{path} row 1: a column {shape.names.label}, but data.label_columns gives the labels too"
        raise InputError(text, fix="remove or rename one of them")
    for name in shape.labels.columns:
        if name in (shape.names.path, shape.names.group):
            text = f"{path} row 1: column {name} is in data.label_columns, but holds the paths or the groups"
            raise InputError(text, fix=f"take {name} out of data.label_columns")
    columns = shape.own(columns)
    for name in columns:
        if name in RESERVED or columns.count(name) > 1 or not name:
            what = "reserved by the manifest" if name in RESERVED else "this name occurs twice" if name else "without a name"
            raise InputError(f"{path} row 1, column {name or columns.index(name) + 1}: {what}", fix="rename it")


def _read_csv(path: Path, tree: Tree, base: str, shape: _Shape) -> tuple[pd.DataFrame, list[str]]:
    """Return the table, by row number, and notes about the file's format."""
    data = path.read_bytes()
    formats = ["it begins with a byte order mark (BOM)"] if data.startswith(codecs.BOM_UTF8) else []
    text = as_text(path, data)
    delimiter = _delimiter(text, shape)
    formats += [f"its columns are separated by {DELIMITERS[delimiter]}"] if delimiter != "," else []
    rows, exact = _csv_tables(path, text, delimiter)
    trimmed = sum(one != other for one, other in zip(rows, exact, strict=False))
    formats += [f"blank space after {DELIMITERS[delimiter]} in {trimmed:,} rows"] if trimmed else []
    numbered = ((number, cells) for number, cells in enumerate(rows, start=1) if cells)  # a row may be blank
    header = _header([clean(name) for name in next(numbered, (1, []))[1]], formats, shape)
    if trimmed:
        _keep_blanks(shape.own(header), rows, exact, lambda cell: normpath(base + cell) in tree.files)
    _check_columns(path, header, shape)
    header = shape.own(header)
    body = dict(numbered)
    bad = []
    for number, cells in body.items():
        if len(cells) != len(header):
            column = header[min(len(cells), len(header) - 1)]
            bad.append((number, BadCell(column, f"{len(cells)} cells, but the header has {len(header)} columns")))
    _refuse(path, bad)
    return pd.DataFrame([*body.values()], index=[*body], columns=header, dtype=object), formats


def _header(names: list[str], formats: list[str], shape: _Shape) -> list[str]:
    """Return the columns' names. Ours may have capital letters if path or label has."""
    in_capitals = not set(shape.required(names)) <= set(names)
    for name in OWN:
        same = [index for index, other in enumerate(names) if other.lower() == name]
        if name not in names and len(same) == 1:
            how = "is read as" if in_capitals else "is a further column, not"
            formats.append(f"its column {names[same[0]]!r} {how} {name}")
            names[same[0]] = name if in_capitals else names[same[0]]
    return names


def _delimiter(text: str, shape: _Shape) -> str:
    """Return the delimiter: a comma, unless the header has the columns that must be there only with another one."""
    first = text.lstrip("\r\n").partition("\n")[0]
    for delimiter in DELIMITERS:
        names = [clean(name).strip('"').lower() for name in first.split(delimiter)]
        if {name.lower() for name in shape.required(names)} <= set(names):
            return delimiter
    return ","


def _csv_tables(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the rows without and with blank space after delimiters; with it, quotes that follow it may be an error."""
    rows = [*csv_rows(path, text, delimiter, trim=True)]
    if not re.search(f"(^|[{delimiter}\n]) ", text):
        return rows, rows
    try:
        return rows, [*csv_rows(path, text, delimiter, trim=False)]
    except InputError:
        return rows, [[f" {cell}" for cell in row] for row in rows]


def _keep_blanks(header: list[str], rows: list[list[str]], exact: list[list[str]], is_file: Callable[[str], bool]) -> None:
    """Restore blank space that belongs to a cell: a file's name has it, or only some cells of another column have it."""
    pairs = [(row, one) for row, one in zip(rows[1:], exact[1:], strict=False) if len(row) == len(one) == len(header)]
    for index, name in enumerate(header):
        own = name not in OWN and not all(one[index].startswith(" ") for _, one in pairs if one[index])
        for row, one in pairs:
            if own or (name == "path" and one[index] != row[index] and is_file(one[index])):
                row[index] = one[index]


def _named(path: Path, table: pa.Table, shape: _Shape) -> pa.Table:
    """Return a table whose columns have the names of their roles, once they are checked."""
    _check_columns(path, table.column_names, shape)
    return table.rename_columns(shape.own(table.column_names))
