"""Read a column as an Arrow array of one plain type, and name the cells that cannot be used.

Arrow holds a million texts in a few MB, and reads and compares them without a Python object for each.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headstart.core.errors import InputError
from headstart.core.text import SHOWN, listing, printable

Kind = Literal["text", "number", "flag", "date"]
MISSING = ("", "NA", "NaN", "nan", "null", "None")  # texts that mean "no number" and "no date"
WIDTH = 60  # characters of a value that an error shows


def cells_of(series: pd.Series) -> pa.Array:
    """Return a column's n cells as one Arrow array of texts (large_string), integers, floats, booleans, dates or timestamps.

    None, NaN, NaT and pandas's NA become null. Objects of several types become the texts that a CSV file would have.

    Raises:
        InputError: the column holds other values, such as lists, bytes or durations, or text that is not UTF-8.
    """
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert(None)  # UTC
    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):  # several types, huge integers, half a character
        array = _texts(series)
    if series.dtype == object and _narrowed(series, array):
        array = _texts(series)
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return _plain(array, series.name)


def _plain(array: pa.Array, name: object) -> pa.Array:
    types, kind = pa.types, array.type
    if types.is_string(kind) or types.is_null(kind) or types.is_string_view(kind):
        return array.cast(pa.large_string())
    if types.is_decimal(kind):
        return array.cast(pa.large_string()).cast(pa.float64())  # Arrow's own cast does not round to nearest
    if types.is_float16(kind):
        return array.cast(pa.float32())
    plain = (types.is_large_string, types.is_integer, types.is_floating, types.is_boolean, types.is_date, types.is_timestamp)
    if any(fits(kind) for fits in plain):
        return array
    wanted = "text, numbers, dates, true or false"
    raise InputError(f"column {printable(str(name))}: values of type {kind}", wanted=wanted, fix="leave the column out")


def kind_of(cells: pa.Array) -> Kind:
    """Return what an array of `cells_of` holds."""
    if pa.types.is_large_string(cells.type):
        return "text"
    if pa.types.is_boolean(cells.type):
        return "flag"
    return "date" if pa.types.is_temporal(cells.type) else "number"


def distinct(cells: pa.Array) -> tuple[pa.Array, NDArray[np.int32]]:
    """Return the d distinct cells, and for each of n cells its place among them, or -1 if it is null."""
    encoded = cells.dictionary_encode()
    return encoded.dictionary, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def trimmed(texts: pa.Array) -> pa.Array:
    """Return texts without white space around them; those that mean a missing number or date become null."""
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.is_in(texts, pa.array(MISSING, texts.type)), pa.scalar(None, texts.type), texts)


def nulls(cells: pa.Array) -> NDArray[np.bool_]:
    """Return for each of n cells whether it is null."""
    found: NDArray[np.bool_] = cells.is_null().to_numpy(zero_copy_only=False)
    return found


class UnusableCells(InputError):
    """Cells of a column that cannot be used, with the numbers of their rows as index, and what is wrong with them."""

    cells: pd.Series
    fault: str

    def reasons(self) -> dict[Any, str]:
        """Return what is wrong with each cell, by the number of its row."""
        return {row: _reason(row, self.cells, value, self.fault) for row, value in self.cells.items()}


def refuse(series: pd.Series, bad_n: NDArray[np.bool_], fault: str, *, wanted: str, fix: str = "") -> UnusableCells:
    """Return an error that names row, column and value of up to ten cells that cannot be used.

    Args:
        fault: what is wrong with a value, such as "is not a number".
    """
    cells = series[bad_n]
    lines = [_reason(row, cells, value, fault) for row, value in cells.iloc[:SHOWN].items()]
    lines += [""] * (len(cells) - SHOWN)  # these are only counted
    many = f"{len(cells):,} rows cannot be used:\n    {listing(lines)}"
    error = UnusableCells(lines[0] if len(cells) == 1 else many, wanted=wanted, fix=fix)
    error.cells, error.fault = cells, fault
    return error


def _reason(row: Any, cells: pd.Series, value: Any, fault: str) -> str:
    return f"row {row}, column {printable(str(cells.name))}: {shown(value)} {fault}"


def shown(value: Any) -> str:
    """Return a cell's value as an error shows it: texts in quotes, and cut if they are long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return printable(text if len(text) <= WIDTH else text[:WIDTH] + "…")


def _narrowed(series: pd.Series, array: pa.Array) -> bool:
    """Return whether Arrow has cut off the time of some objects among dates, or widened float32 among others inexactly."""
    lossy = (
        {datetime, pd.Timestamp} if pa.types.is_date(array.type) else {np.float32} if pa.types.is_float64(array.type) else set()
    )
    return bool(lossy) and not lossy.isdisjoint(map(type, series))


def _texts(series: pd.Series) -> pa.Array:
    """Return each cell's text, for columns whose cells have several types."""
    return pa.array([_text(series, place, value) for place, value in enumerate(series)], pa.large_string())


def _text(series: pd.Series, place: int, value: Any) -> str | None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise refuse(series, np.arange(len(series)) == place, "is not UTF-8 text", wanted="text in UTF-8")
        return value
    if isinstance(value, bool | int | float | Decimal | date | np.bool_ | np.integer | np.floating):
        return None if value != value else str(value)  # NaN and NaT differ from themselves
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    fault = f"of type {type(value).__name__} cannot be used"
    raise refuse(series, np.arange(len(series)) == place, fault, wanted="text, numbers, dates, true or false")
