"""Read tables of a source, and add to one table the columns of others and the days between events."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from headstart.columns.elapsed import add_elapsed
from headstart.columns.joins import Join, join
from headstart.core.errors import InputError
from headstart.core.params import Elapsed
from headstart.core.params import Join as JoinParams
from headstart.core.text import listing, printable
from headstart.ingest.spelling import clean
from headstart.ingest.table_files import as_text, delimiter_of, read_parquet
from headstart.ingest.tree import Tree
from headstart.targets.labels import NONE

AUTO = "auto"
CELLS = "as many cells in each row as in the header, quotes doubled"
Remarks = list[tuple[str, str, str]]


def read_table(path: Path) -> pd.DataFrame:
    """Read a .csv file, whose cells are text, or a .parquet file; the index has the rows' numbers, where a header is row 1.

    Raises:
        InputError: it is no such file, is damaged, or two columns have the same name.
    """
    frame = read_parquet(path) if path.suffix == ".parquet" else _from_csv(path)
    names = list(frame.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        what = f"column {printable(twice[0])} occurs twice" if twice else "a column without a name"
        raise InputError(f"{path} row 1: {what}", fix="rename it")
    return frame


def _from_csv(path: Path) -> pd.DataFrame:
    delimiter = delimiter_of(as_text(path, path.read_bytes()))
    header, numbers = _checked_rows(path, delimiter)
    try:
        frame = pd.read_csv(
            path, sep=delimiter, dtype="str", keep_default_na=False, encoding="utf-8-sig", header=0, index_col=False,
            skip_blank_lines=True,
        )  # fmt: skip
        return frame.set_axis(header, axis=1).set_axis(numbers, axis=0)
    except ValueError as error:  # ParserError is one
        raise InputError(f"{path}: {str(error).splitlines()[0]}", wanted=CELLS) from None


def _checked_rows(path: Path, delimiter: str) -> tuple[list[str], list[int]]:
    """Return the header and the other rows' numbers, blank rows apart; pandas drops and fills up cells without a word.

    Raises:
        InputError: there is no header, or a row has more or fewer cells; the message names up to ten rows.
    """
    numbers, wrong = [], []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            rows = ((number, cells) for number, cells in enumerate(reader, start=1) if cells[1:] or "".join(cells).strip())
            header = [clean(name) for name in next(rows, (1, []))[1]]
            for number, cells in rows:
                numbers.append(number)
                if len(cells) != len(header):
                    wrong.append(f"row {number}: {len(cells)} cells, but the header has {len(header)} columns")
        except csv.Error as error:
            raise InputError(f"{path} line {reader.line_num}: {error}", wanted=CELLS) from None
    if wrong or not header:
        raise InputError(f"{path}: {listing(wrong) or 'empty'}", wanted=CELLS)
    return header, numbers


def add_columns(
    frame: pd.DataFrame, tree: Tree, joins: Sequence[JoinParams], elapsed: Sequence[Elapsed], date: str
) -> tuple[pd.DataFrame, Remarks]:
    """Return a table with the columns that params.yaml, section data, adds to it, and remarks (file, kind, text).

    Args:
        date: the column of dates, for events whose own date is auto; "none" without one.

    Raises:
        InputError: a table or column does not exist, a join would multiply rows, or a value is no date or event.
    """
    remarks: Remarks = []
    for one in joins:
        if one.file not in tree.files:
            tables = [path for path in sorted(tree.files) if path.endswith((".csv", ".parquet"))]
            raise InputError(
                f"data.joins: {one.file!r}: no such file in {tree.root}",
                wanted=f"one of {', '.join(map(printable, tables[:10]))}" if tables else "the tables to join in this folder",
            )
        spec = Join(one.file, tuple(one.on), tuple(one.columns))
        frame, found = join(frame, read_table(tree.root / one.file), spec)
        remarks += [(one.file, *remark) for remark in found]
    for event in elapsed:
        if event.date == AUTO and date == NONE:
            raise InputError(
                f"data.elapsed, event {printable(event.event)}: its date is {AUTO}, but data.split_by is {NONE}",
                wanted="the column of dates",
                fix="add date: COLUMN to the event",
            )
        day = date if event.date == AUTO else event.date
        frame = add_elapsed(frame, day, event.event, event.by, event.values, event.window)
    return frame, remarks
