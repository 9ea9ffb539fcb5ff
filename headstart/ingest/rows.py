"""Make a manifest of the rows of a table, which have no images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd

from headstart.columns.values import holds
from headstart.core.errors import InputError, require_columns
from headstart.core.params import Data, LeftOut
from headstart.core.text import listing
from headstart.ingest import splits
from headstart.ingest.labels import labels_file
from headstart.ingest.near_duplicates import NO_LEAKS
from headstart.ingest.scan import Scan, SplitRule
from headstart.ingest.spelling import clean
from headstart.ingest.tables import Remarks, add_columns, read_table
from headstart.ingest.time_order import by_time
from headstart.ingest.tree import Tree
from headstart.manifest import ROW_COLUMNS, SPLITS
from headstart.targets.labels import NONE, BadLabel, LabelFormat

ID = "id"
CHUNK = 65_536  # rows at a time: a text for each cell takes much memory


def scan_rows(tree: Tree, data: Data, rule: SplitRule) -> Scan:
    """Read a source's table, join what belongs to it, and give each row its label, key, split and fold.

    A row's key is a hash of its column `id`, or of all its cells but its split; so a row keeps its split whatever rows are
    added later, and rows that are equal in every cell count as copies of each other.

    Raises:
        InputError: the table is missing, a column or value cannot be used, or a split has no rows.
    """
    path = labels_file(tree, "", data.labels_file)
    if path is None:
        raise InputError(
            f"{tree.root}: no labels.csv or labels.parquet", fix="set data.labels_file to the table with the labels"
        )
    whole = read_table(path)
    if whole.empty:
        raise InputError(f"{path}: no rows", wanted="a row for each example, below the names of the columns")
    table, labels, bad_remarks = _labelled(str(path), _without(str(path), whole, data.leave_out), data)
    keys, names = _keys(str(path), table)
    declared = _declared(str(path), table)
    groups = _groups(str(path), table, data.group_column) if data.split_by == NONE else ""  # a date's rows stay together
    own = whole[[name for name in table if name not in ("label", "split", "group")]]
    own, remarks = add_columns(own, tree, data.joins, data.elapsed, data.split_by)
    own = own.loc[table.index].drop(columns=ID, errors="ignore")
    _refuse_reserved(str(path), own)
    frame = pd.DataFrame({"key": keys, "path": names, "label": table["label"], "group": groups, "declared": declared})
    frame = frame.reset_index(drop=True)
    if data.split_by != NONE:
        frame["declared"] = by_time(own, data.split_by, frame["declared"], data.valid_fraction, data.test_fraction)
    assigned, folds, rescued = splits.assign(frame, labels, **rule.__dict__)
    frame = frame.assign(split=assigned, fold=np.array(folds, np.int16))
    splits.check(tree.root, frame, labels, "row")
    manifest = pd.concat([frame[list(ROW_COLUMNS)], own.reset_index(drop=True)], axis=1)
    if len(whole) > len(table):
        remarks.append((path.name, "left out", f"{len(whole) - len(table):,} rows, by data.leave_out"))
    notes = pd.DataFrame([*bad_remarks, *remarks], columns=["path", "kind", "text"])
    none = pd.DataFrame(columns=["path", "reason"], dtype=str)
    return Scan(manifest, none, notes, NO_LEAKS, rescued, labels, len(frame), len(frame), 0)


def _without(path: str, table: pd.DataFrame, left_out: Sequence[LeftOut]) -> pd.DataFrame:
    """Return the rows that hold none of the values to leave out."""
    for one in left_out:
        require_columns(f"data.leave_out: {path} row 1", [one.column], table.columns)
        table = table[~holds(table[one.column], one.values)]
        if table.empty:
            raise InputError(
                f"data.leave_out: {path}: every row has {one.column} {' or '.join(one.values)}", wanted="rows to learn from"
            )
    return table


def _labelled(path: str, table: pd.DataFrame, data: Data) -> tuple[pd.DataFrame, LabelFormat, Remarks]:
    """Return the table with canonical labels, and how they are written; 0/1 columns that gave them are gone."""
    labels = LabelFormat(data.target, data.label_separator, tuple(data.label_columns))
    wanted = list(labels.columns) or [data.label_column]
    require_columns(f"{path} row 1", wanted, table.columns, rule="the column with the labels", fix="set data.label_column")
    if "label" in table and "label" not in wanted:
        text = f"{path} row 1: a column label, but the labels are in {', '.join(wanted)}"
        raise InputError(text, fix="rename or remove the column label")
    if labels.columns:
        cells = zip(*(table[name].tolist() for name in labels.columns), strict=True)
        read = _read_all(path, table, lambda row: labels.flagged(dict(zip(labels.columns, row, strict=True))), list(cells))
        labels = labels.settled("label", ())
    else:
        texts = table[data.label_column].map(lambda cell: "" if cell is None or cell != cell else clean(str(cell))).tolist()
        labels = labels.settled(data.label_column, texts)
        read = _read_all(path, table, labels.read, texts)
    if too_few := labels.too_few(read):
        raise InputError(f"{path}: {too_few}", wanted="labels that differ between rows")
    remark = labels.remark(read)
    remarks = [(path.rpartition("/")[2], "labels format", remark)] if remark else []
    return table.drop(columns=wanted).assign(label=read), labels, remarks


def _read_all(path: str, table: pd.DataFrame, read: Callable[[Any], str], cells: Sequence[Any]) -> list[str]:
    """Return each row's label; equal cells are read once.

    Raises:
        InputError: some labels cannot be used; the message names up to ten rows.
    """
    found: dict[Any, str | BadLabel] = {}
    for cell in cells:
        if cell not in found:
            try:
                found[cell] = read(cell)
            except BadLabel as error:
                found[cell] = error
    answers = [found[cell] for cell in cells]
    bad = [(row, one) for row, one in zip(table.index, answers, strict=True) if isinstance(one, BadLabel)]
    if bad:
        lines = [f"row {row}: the label is {one.found.replace(chr(0), ' = ')}" for row, one in bad]
        many = f": {len(bad):,} rows cannot be used:\n    " if len(bad) > 1 else " "
        wanted = "; ".join(dict.fromkeys(one.wanted for _, one in bad if one.wanted)) or "a label in every row"
        raise InputError(f"{path}{many}{listing(lines)}", wanted=wanted, fix="correct or remove them")
    return [one for one in answers if isinstance(one, str)]


def _keys(path: str, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return each row's key and its name: of its column `id`, or of its cells (but its split) and its number.

    Raises:
        InputError: an id is missing, or occurs twice.
    """
    if ID in table:
        missing = table.index[table[ID].isna() | (table[ID].astype("str") == "")]
        if len(missing):
            raise InputError(
                f"{path} row {missing[0]}, column {ID}: empty", fix="give each row its own id, or rename the column"
            )
        ids = table[ID].astype("str").tolist()
        twice = table.index[table[ID].duplicated()]
        if len(twice):
            found = f"{path} row {twice[0]}, column {ID}: {table[ID][twice[0]]!r} is already in another row"
            raise InputError(found, fix="give each row its own id, or rename the column")
        return [hashlib.sha256(orjson.dumps([ID, one])).hexdigest() for one in ids], ids
    keys: list[str] = []
    for start in range(0, len(table), CHUNK):
        part = table.iloc[start : start + CHUNK]
        columns = [part[name].astype("str").fillna("").tolist() for name in sorted(table.columns) if name != "split"]
        keys += [hashlib.sha256(orjson.dumps(cells)).hexdigest() for cells in zip(*columns, strict=True)]
    return keys, [f"row {row}" for row in table.index]


def _declared(path: str, table: pd.DataFrame) -> list[str]:
    if "split" not in table:
        return [""] * len(table)
    found = table["split"].astype("str").fillna("").str.strip()
    wrong = found.index[~found.isin(["", *SPLITS])]
    if len(wrong):
        text = f"{path} row {wrong[0]}, column split: {found[wrong[0]]!r}"
        raise InputError(text, wanted="train, valid, test or empty")
    return found.tolist()


def _groups(path: str, table: pd.DataFrame, column: str) -> list[str]:
    if column == NONE and "group" not in table:
        return [""] * len(table)
    name = "group" if column == NONE else column
    require_columns(f"{path} row 1", [name], table.columns)
    return table[name].astype("str").fillna("").str.strip().tolist()


def _refuse_reserved(path: str, own: pd.DataFrame) -> None:
    taken = [name for name in own.columns if name in ROW_COLUMNS]
    if taken:
        raise InputError(f"{path}: column {taken[0]} is reserved by the manifest", fix="rename it")
