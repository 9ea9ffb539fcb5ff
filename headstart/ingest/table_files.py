"""Read the files of tables: text in UTF-8, delimiters, rows of CSV, Parquet. `labels.py` and `tables.py` use it."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.core.errors import InputError

UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
LONGEST_HEADER = 1 << 20  # characters
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def as_text(path: Path, data: bytes) -> str:
    if data.startswith(UTF_16) or b"\0\0\0\0" in (data[:8:2], data[1:8:2]):
        raise InputError(
            f"{path} row 1: UTF-16 text",
            wanted="UTF-8, which spreadsheets call CSV UTF-8",
            fix=f"iconv -f UTF-16 -t UTF-8 {shlex.quote(path.name)} > new.csv, then replace the file with new.csv",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path} row {row}: not UTF-8 text", fix="save the file as UTF-8") from None


def delimiter_of(text: str) -> str:
    """Return the delimiter of a table: the one that its first row has most often outside quotes."""
    first = re.sub('"[^"]*"', "", text.lstrip("\r\n")[:LONGEST_HEADER]).partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def csv_rows(path: Path, text: str, delimiter: str, trim: bool) -> Iterator[list[str]]:
    """Yield the rows of CSV text, empty ones too; `trim` takes blank space after delimiters away.

    Raises:
        InputError: the text is no CSV.
    """
    stream = io.StringIO(text, newline="")  # not splitlines, which ends lines at U+2028 and others
    reader = csv.reader(stream, strict=True, delimiter=delimiter, skipinitialspace=trim)
    try:
        yield from reader
    except csv.Error as error:
        wanted = f"values separated by {DELIMITERS[delimiter]}, quotes doubled"
        raise InputError(f"{path} row {reader.line_num}: {error}", wanted=wanted) from None


def read_parquet(path: Path, prepared: Callable[[pa.Table], pa.Table] = lambda table: table) -> pd.DataFrame:
    """Read a Parquet file; the index has the rows' numbers, from 1.

    Args:
        prepared: checks and renames the columns.

    Raises:
        InputError: the file is damaged, or a column has lists or structures as cells.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)  # it finds text that is not UTF-8, and other damage
        table = prepared(table)
        _refuse_nested(path, table)
        frame: pd.DataFrame = _plain(table).to_pandas(integer_object_nulls=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a Parquet file, or a damaged one: {error}") from None
    return frame.set_axis(range(1, len(frame) + 1), axis=0)


def _refuse_nested(path: Path, table: pa.Table) -> None:
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    if nested:
        raise InputError(f"{path}, column {nested[0]}: nested values", wanted="text, numbers, dates, true or false")


def _plain(table: pa.Table) -> pa.Table:
    """Return the table without pandas's metadata and with categories as values, as the manifest holds it."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(index)
            table = table.set_column(index, field.name, column.cast(field.type.value_type))
    return table.replace_schema_metadata(None)
