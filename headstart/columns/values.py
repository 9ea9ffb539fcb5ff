"""Read a column as numbers, dates or categories. Text and typed cells that mean the same give the same. n rows, d distinct."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headstart.columns.cells import cells_of, distinct, kind_of, nulls, refuse, shown, trimmed
from headstart.columns.date_texts import (
    ACCEPTED,
    CLEAR,
    DAY_FIRST,
    FORMATS,
    MONTH_FIRST,
    Seconds,
    date_names,
    read_texts,
    written,
)
from headstart.core.errors import InputError
from headstart.core.text import printable

Numbers = NDArray[np.float64]
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
PROBED = 100  # cells that tell at once whether a column is all text
FINITE = "a number such as 3.5 or 1e-4; an empty cell, NA, NaN, null or None where it is missing"
ISO = "write the dates as YYYY-MM-DD, or use the column as categorical"
# How a typed value may stand in a CSV file: 3.0, 1e-05, True, 2013-01-31 00:00:00. These texts get the typed value's name.
WRITTEN = re.compile(
    r"(?P<whole>-?(?:0|[1-9]\d*))\.0|(?P<power>-?\d(?:\.\d+)?e[+-]\d\d+)|(?i:true|false)|(?P<date>\d{4}-\d\d-\d\d[ T].+)",
    re.ASCII,
)
BIG = 2.0**63  # whole numbers below it are named as integers


def numbers(series: pd.Series) -> Numbers:
    """Return a column's n values as float64, NaN where they are missing.

    A float32 becomes the float64 of its shortest decimal text, so that 0.1 is the same number in Parquet and in CSV.

    Raises:
        InputError: a value is not a finite number; the message names row, column and value.
    """
    cells = cells_of(series)
    values_n, bad_n = read_numbers(cells)
    if bad_n.any():
        infinite = np.isinf(values_n[bad_n]).all()
        raise refuse(series, bad_n, "is not finite" if infinite else "is not a number", wanted=FINITE)
    return values_n


def read_numbers(cells: pa.Array) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return n cells as float64, and which of them are neither missing nor finite numbers."""
    if kind_of(cells) in ("flag", "date"):
        return np.full(len(cells), np.nan), ~nulls(cells)
    bad_n = np.zeros(len(cells), bool)
    if kind_of(cells) == "text":
        if (plain_n := plain_numbers(cells)) is not None:
            return plain_n, bad_n
        cells = trimmed(cells)
        fits = pc.match_substring_regex(cells, NUMBER).fill_null(True)
        bad_n = ~fits.to_numpy(zero_copy_only=False)
        cells = _without_plus(pc.if_else(fits, cells, pa.scalar(None, cells.type)))
    elif pa.types.is_float32(cells.type):
        cells = cells.cast(pa.large_string())
    values_n = _floats(cells)
    return values_n, bad_n | np.isinf(values_n)


def plain_numbers(cells: pa.Array) -> Numbers | None:
    """Return n texts as float64, NaN for null, or None if some may need a closer look: white space, +, NA, no number at all.

    This is several times as fast as the pattern `NUMBER`, and Arrow's parser accepts no finite number that is not one.
    """
    try:
        _floats(cells[:PROBED])  # Arrow goes on after an error, with a message for each text
        values_n = _floats(cells)
    except pa.ArrowInvalid:
        return None
    return values_n if np.isfinite(values_n).sum() + cells.null_count == len(cells) else None


def _floats(cells: pa.Array) -> Numbers:
    if kind_of(cells) == "text":
        cells = cells.cast(pa.float64())
    found: Numbers = cells.to_numpy(zero_copy_only=False).astype(np.float64)  # numpy rounds large integers to nearest
    return found


def _without_plus(texts: pa.Array) -> pa.Array:
    signed = pc.any(pc.starts_with(texts, "+")).as_py()
    return pc.replace_substring_regex(texts, r"^\+", "") if signed else texts


def dates(series: pd.Series) -> Seconds:
    """Return a column's n dates as datetime64[s] in UTC, NaT where they are missing.

    Raises:
        InputError: a value is not a date, the column has two formats, or its days and months cannot be told apart; the
            message names rows, column and values.
    """
    return read_dates(series)[0]


def read_dates(series: pd.Series, form: str | None = None) -> tuple[Seconds, str]:
    """Return a column's n dates as datetime64[s], and their format in `FORMATS` (empty for typed dates).

    Args:
        form: None to find the one format that fits the whole column. With the format of other rows, each value is read by
            itself: in that format, or in one that cannot be misread.

    Raises:
        InputError: as `dates`.
    """
    cells = cells_of(series)
    kind = kind_of(cells)
    if kind == "date":
        return typed_dates(cells), form or ""
    if kind != "text":
        raise refuse(series, ~nulls(cells), "is not a date", wanted=ACCEPTED)
    texts, places_n = distinct(trimmed(cells))
    read = read_texts(texts)
    if form is None:
        form = _format(series, read, places_n) if len(texts) else ""
        chosen = [form] if form else []
    else:
        chosen = [one for one in read if one in (*CLEAR, form)]
    found = np.full(len(texts) + 1, np.datetime64("NaT", "s"))  # the last one stands for null
    for one in chosen:
        found[:-1] = np.where(np.isnat(found[:-1]), read[one], found[:-1])
    dates_n = found[places_n]
    bad_n = np.isnat(dates_n) & (places_n >= 0)
    if bad_n.any():
        raise refuse(series, bad_n, "is not a date", wanted=ACCEPTED if form is None else _wanted(form))
    return dates_n, form


def _wanted(form: str) -> str:
    return f"one of {', '.join(dict.fromkeys([*CLEAR, *([form] if form else [])]))}, as in the training rows"


def typed_dates(cells: pa.Array) -> Seconds:
    """Return n cells of a date type as datetime64[s] in UTC; a fraction of a second is cut off."""
    if pa.types.is_timestamp(cells.type):
        cells = cells.cast(pa.timestamp(cells.type.unit))  # without a zone: UTC
    found: Seconds = cells.to_numpy(zero_copy_only=False).astype("datetime64[s]")
    return found


def _format(series: pd.Series, read: dict[str, Seconds], places_n: NDArray[np.int32]) -> str:
    """Return the one format that reads all distinct texts."""
    fits_fd = {form: ~np.isnat(dates_d) for form, dates_d in read.items()}
    whole = [form for form, fits_d in fits_fd.items() if fits_d.all()]
    if len(whole) == 1:
        return whole[0]
    unread_d = np.append(~np.any([*fits_fd.values()], axis=0), False)
    if unread_d.any():
        raise refuse(series, unread_d[places_n], "is not a date", wanted=ACCEPTED)
    raise _ambiguous(series, read, places_n) if whole else _two_formats(series, fits_fd, places_n)


def _ambiguous(series: pd.Series, read: dict[str, Seconds], places_n: NDArray[np.int32]) -> InputError:
    differ_d = read[MONTH_FIRST] != read[DAY_FIRST]
    place = int(np.flatnonzero(places_n == (np.argmax(differ_d) if differ_d.any() else 0))[0])
    month_first, day_first = (written(read[form][places_n[place]]) for form in (MONTH_FIRST, DAY_FIRST))
    return InputError(
        f"row {series.index[place]}, column {printable(str(series.name))}: {shown(series.iloc[place])} is {month_first}"
        f" as {MONTH_FIRST} and {day_first} as {DAY_FIRST}; all rows fit both",
        wanted="a row that only one of the two fits",
        fix=ISO,
    )


def _two_formats(series: pd.Series, fits_fd: dict[str, NDArray[np.bool_]], places_n: NDArray[np.int32]) -> InputError:
    forms = [*fits_fd]
    masks_d = sum((fits_d.astype(int) << bit for bit, fits_d in enumerate(fits_fd.values())), np.zeros(1, int))
    pairs = combinations(dict.fromkeys(masks_d[places_n[places_n >= 0]].tolist()), 2)
    one, other = next((a, b) for a, b in pairs if not a & b)  # there is such a pair: see FORMATS
    cells = []
    for mask in (one, other):
        place = int(np.flatnonzero((places_n >= 0) & (masks_d[places_n] == mask))[0])
        form = " or ".join(form for bit, form in enumerate(forms) if mask >> bit & 1)
        cells.append(f"row {series.index[place]} has {shown(series.iloc[place])} ({form})")
    return InputError(
        f"column {printable(str(series.name))}: dates in two formats: {', '.join(cells)}", wanted=ACCEPTED, fix=ISO
    )


def categories(series: pd.Series) -> pd.Series:
    """Return a column's n categories as text, NA where they are missing: empty text, None, NaN or NaT.

    White space around a text goes. A number is named without a trailing .0, truth as true or false, a date as YYYY-MM-DD.
    """
    codes_n, names = read_categories(series)
    texts = pa.array([*names, None], pa.large_string()).take(pa.array(codes_n % (len(names) + 1)))
    return pd.Series(texts.to_pandas().to_numpy(), index=series.index, name=series.name, dtype="str")


def read_categories(series: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Return for each of n cells its category's place in a list of different names, or -1 if it is missing."""
    values, places_n = distinct(cells_of(series))
    places: dict[str, int] = {}
    codes = [-1 if name is None else places.setdefault(name, len(places)) for name in _names(values)]
    return np.array([*codes, -1])[places_n], [*places]


def holds(series: pd.Series, wanted: Collection[str]) -> NDArray[np.bool_]:
    """Return for each of n cells whether its category is one of the wanted; a missing one is not."""
    places_n, names = read_categories(series)
    return np.array([*(name in wanted for name in names), False])[places_n]


def _names(values: pa.Array) -> Sequence[str | None]:
    """Return the names of d different values; None for one that means missing."""
    kind = kind_of(values)
    if kind == "text":
        texts = [text.strip() for text in values.to_pylist()]
        return [_canonical(text, match) if (match := WRITTEN.fullmatch(text)) else text or None for text in texts]
    if kind == "flag":
        return ["true" if value else "false" for value in values.to_pylist()]
    if kind == "date":
        return date_names(typed_dates(values))
    if pa.types.is_integer(values.type):
        return [str(value) for value in values.to_pylist()]
    return [number_name(value) for value in read_numbers(values)[0].tolist()]


def _canonical(text: str, match: re.Match[str]) -> str:
    """Return the name of the typed value that a text stands for."""
    if match["whole"]:
        return "0" if text == "-0.0" else match["whole"]
    if match["power"]:
        return number_name(float(text)) or text
    if match["date"]:
        read = read_texts(pa.array([text], pa.large_string()))[[*FORMATS][0]]
        return text if np.isnat(read[0]) else date_names(read)[0]
    return text.lower()


def number_name(value: float) -> str | None:
    """Return a number as the shortest text that means it, whole numbers without a point; None for NaN."""
    if math.isnan(value):
        return None
    return str(int(value)) if abs(value) < BIG and value.is_integer() else repr(value)
