"""Add the columns of another table, by keys that both tables have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.columns.cells import cells_of, distinct, kind_of, shown, trimmed
from headstart.columns.date_texts import date_names, read_texts
from headstart.columns.roles import Remarks
from headstart.columns.values import dates, number_name, numbers, read_categories
from headstart.core.errors import InputError, require_columns
from headstart.core.text import printable

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Join:
    """A table to join.

    Args:
        file: its name, for messages.
        on: the columns that both tables have, whose values together name a row of it.
        columns: the columns to add; empty for all others.
    """

    file: str
    on: tuple[str, ...]
    columns: tuple[str, ...] = ()


def join(frame: pd.DataFrame, right: pd.DataFrame, spec: Join) -> tuple[pd.DataFrame, Remarks]:
    """Return a table with the columns of another one added, and (kind, text) remarks. Its rows [n] and their order stay.

    Keys are compared as numbers or dates if one side has these types, or if both have dates in different formats, else as
    text. A row without a partner, or without a key, gets missing values.

    Raises:
        InputError: a column does not exist or is there already, a key occurs twice in the other table, or no row has a partner.
    """
    columns = _columns(frame, right, spec)
    left_n, right_r = _keys(frame, right, spec)
    _check_unique(right, right_r, spec)
    place_of = np.full(max(left_n.max(initial=-1), right_r.max(initial=-1)) + 2, -1)  # the last one stands for no key
    place_of[right_r[right_r >= 0]] = np.flatnonzero(right_r >= 0)
    places_n = place_of[left_n]
    alone = int((places_n < 0).sum())
    if alone and alone == len(frame):
        raise _no_partner(frame, right, spec)
    added = {name: _taken(right[name], places_n).set_axis(frame.index) for name in columns}
    remarks = [("rows without a partner", f"{alone:,} of {len(frame):,} rows have no partner in {spec.file}")] if alone else []
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1), remarks


def _columns(frame: pd.DataFrame, right: pd.DataFrame, spec: Join) -> list[str]:
    if not spec.on:
        raise InputError(f"{spec.file}: joined on no column", wanted="`on`: the columns that both tables have")
    for place, table in ((f"the table, to join {spec.file}", frame), (spec.file, right)):
        wanted = [*spec.on, *(spec.columns if table is right else ())]
        require_columns(place, wanted, table.columns)
    columns = [*(spec.columns or (name for name in right.columns if name not in spec.on))]
    there = [name for name in columns if name in frame.columns]
    if there:
        raise InputError(
            f"{spec.file}, column {printable(', '.join(there))}: the table has a column of this name",
            fix="list other columns in the join's `columns`, or rename it",
        )
    return columns


def _keys(frame: pd.DataFrame, right: pd.DataFrame, spec: Join) -> tuple[Codes, Codes]:
    """Return numbers that are equal for equal keys, for n and r rows; -1 if a part of the key is missing."""
    codes, missing = np.zeros(len(frame) + len(right), np.int64), np.zeros(len(frame) + len(right), bool)
    for name in spec.on:
        column = np.concatenate(_column_codes(frame[name], right[name]))
        missing |= column < 0
        codes = pd.factorize(codes * (column.max(initial=0) + 1) + column)[0].astype(np.int64)  # small again
    codes[missing] = -1
    return codes[: len(frame)], codes[len(frame) :]


def _column_codes(left: pd.Series, right: pd.Series) -> tuple[Codes, Codes]:
    kinds = {kind_of(cells_of(side)) for side in (left, right)}
    forms = {_date_form(side) for side in (left, right)} if kinds == {"text"} else set()
    if "date" in kinds or (len(forms) > 1 and "" not in forms):
        sides = [_factorised(dates(side)) for side in (left, right)]
    elif kinds == {"text", "number"} and (values := _both_numbers(left, right)):
        sides = [_factorised(one) for one in values]
    else:
        sides = [read_categories(left), read_categories(right)]
    places = {name: place for place, name in enumerate(dict.fromkeys([*sides[0][1], *sides[1][1]]))}
    one, other = (np.array([*(places[name] for name in names), -1])[codes] for codes, names in sides)
    return one, other


def _date_form(series: pd.Series) -> str:
    """Return the format of a column of texts that all are dates in one way only, or an empty text."""
    texts, _ = distinct(trimmed(cells_of(series)))
    forms = [form for form, dates_d in read_texts(texts).items() if not np.isnat(dates_d).any()]
    return forms[0] if len(forms) == 1 else ""


def _both_numbers(left: pd.Series, right: pd.Series) -> tuple[NDArray, NDArray] | None:
    try:
        return numbers(left), numbers(right)
    except InputError:
        return None


def _factorised(values: NDArray) -> tuple[Codes, list[str]]:
    """Return the place of each value among the different ones, -1 if it is missing, and their names."""
    codes, different = pd.factorize(values)
    dated = np.issubdtype(values.dtype, np.datetime64)
    names = date_names(different) if dated else [str(number_name(value)) for value in different.tolist()]
    return codes.astype(np.int64), names


def _check_unique(right: pd.DataFrame, codes_r: Codes, spec: Join) -> None:
    counts = np.bincount(codes_r[codes_r >= 0], minlength=1)
    if counts.max() > 1:
        code = int(np.argmax(counts))
        places = np.flatnonzero(codes_r == code)
        key = ", ".join(f"{printable(name)} {shown(right[name].iloc[places[0]])}" for name in spec.on)
        rows = ", ".join(str(right.index[place]) for place in places[:3]) + (", …" if len(places) > 3 else "")
        raise InputError(
            f"{spec.file}: the key {key} occurs {counts[code]:,} times, in rows {rows}",
            wanted="one row for each key: otherwise a join multiplies rows",
            fix="add columns to the join's `on`, or keep one of the rows",
        )


def _no_partner(frame: pd.DataFrame, right: pd.DataFrame, spec: Join) -> InputError:
    here, there = (
        ", ".join(shown(table[name].iloc[0]) for name in spec.on) if len(table) else "no row" for table in (frame, right)
    )
    return InputError(
        f"{spec.file}: no row has a partner on {printable(', '.join(spec.on))}: the table has {here}, the file {there}",
        wanted="keys that are spelled alike on both sides",
    )


def _taken(series: pd.Series, places_n: Codes) -> pd.Series:
    """Return the values at n places, missing ones at -1. Integers and truth keep their type."""
    if (places_n < 0).any() and isinstance(series.dtype, np.dtype) and series.dtype.kind in "iub":
        name = series.dtype.name
        series = series.astype("boolean" if name == "bool" else name.replace("int", "Int").replace("u", "U"))  # type: ignore[call-overload]
    return series.reset_index(drop=True).reindex(places_n)
