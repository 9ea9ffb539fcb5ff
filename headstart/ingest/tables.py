"""Read tables of a source, and add to one table the columns of others and the days between events."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.columns.elapsed import add_elapsed
from headstart.columns.joins import Join, join
from headstart.core.errors import InputError
from headstart.core.params import Elapsed
from headstart.core.params import Join as JoinParams
from headstart.core.text import printable
from headstart.ingest.labels import as_text, delimiter_of, plain_table
from headstart.ingest.spelling import clean
from headstart.ingest.tree import Tree

AUTO = "auto"
Remarks = list[tuple[str, str, str]]


def read_table(path: Path) -> pd.DataFrame:
    """Read a .csv file, whose cells are text, or a .parquet file; the index has the rows' numbers, where a header is row 1.

    Raises:
        InputError: it is no such file, is damaged, or two columns have the same name.
    """
    frame = _from_parquet(path) if path.suffix == ".parquet" else _from_csv(path)
    names = list(frame.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        what = f"column {printable(twice[0])} occurs twice" if twice else "a column without a name"
        raise InputError(f"{path} row 1: {what}", fix="rename it")
    first = 1 if path.suffix == ".parquet" else 2
    return frame.set_axis(range(first, first + len(frame)), axis=0)


def _from_csv(path: Path) -> pd.DataFrame:
    text = as_text(path, path.read_bytes())
    header = next(csv.reader([text.lstrip("\r\n").partition("\n")[0]], delimiter=(delimiter := delimiter_of(text))), [])
    del text
    try:
        frame = pd.read_csv(
            path, sep=delimiter, dtype="str", keep_default_na=False, encoding="utf-8-sig", header=None, skiprows=1,
            names=range(len(header)), index_col=False, skip_blank_lines=True, on_bad_lines="error",
        )  # fmt: skip
    except (ValueError, csv.Error) as error:  # ParserError is one
        raise InputError(f"{path}: {str(error).splitlines()[0]}", wanted="as many cells in each row as in the header") from None
    return frame.set_axis([clean(name) for name in header], axis=1)


def _from_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
        frame: pd.DataFrame = plain_table(table).to_pandas(integer_object_nulls=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one: {error}") from None
    return frame


def add_columns(
    frame: pd.DataFrame, tree: Tree, joins: Sequence[JoinParams], elapsed: Sequence[Elapsed], date: str
) -> tuple[pd.DataFrame, Remarks]:
    """Return a table with the columns that params.yaml, section data, adds to it, and remarks (file, kind, text).

    Args:
        date: the column of dates, for events whose own date is auto.

    Raises:
        InputError: a table or column does not exist, a join would multiply rows, or a value is no date or event.
    """
    remarks: Remarks = []
    for one in joins:
        if one.file not in tree.files:
            tables = [path for path in sorted(tree.files) if path.endswith((".csv", ".parquet"))]
            raise InputError(
                f"data.joins: {one.file!r}: no such file in {tree.root}",
                wanted=f"one of {', '.join(map(printable, tables[:10]))}",
            )
        spec = Join(one.file, tuple(one.on), tuple(one.columns))
        frame, found = join(frame, read_table(tree.root / one.file), spec)
        remarks += [(one.file, *remark) for remark in found]
    for event in elapsed:
        frame = add_elapsed(frame, date if event.date == AUTO else event.date, event.event, event.by)
    return frame, remarks
