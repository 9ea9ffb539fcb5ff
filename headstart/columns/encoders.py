"""Turn a table's columns into codes and numbers for a network, fitted on the training rows alone.

Shape legend: n rows, k categorical columns, m continuous columns. The parts of dates are among both, as in fast.ai's lesson.
Each row is encoded by itself: its bytes are the same whatever the other rows are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.columns.cells import refuse
from headstart.columns.dates import CODED, MEASURED, date_parts, has_times
from headstart.columns.roles import Roles
from headstart.columns.values import number_name, numbers, read_categories, read_dates
from headstart.core.errors import InputError, require_columns
from headstart.core.text import printable

UNKNOWN, MISSING, FIRST = 0, 1, 2  # the codes of a category that training has not seen, of none, and of the first known one
CHUNK = 65_536  # rows at a time, which bounds the memory
TRAINED_ON = "all columns that the model is trained on"
Columns = Iterator[tuple[str, NDArray]]


@dataclass(frozen=True)
class Scale:
    """How a continuous column is standardised.

    Args:
        median: what a missing value becomes.
        mean, std: of the training rows, once missing values are filled; std is 1 if all are equal.
    """

    median: float
    mean: float
    std: float


@dataclass(frozen=True)
class DateForm:
    """What the training rows say about a date column.

    Args:
        form: the format of its texts, one of `date_texts.FORMATS`; empty for typed dates.
        times: whether some date has a time of day.
        missing: whether some date is missing.
    """

    form: str
    times: bool
    missing: bool


@dataclass(frozen=True)
class Encoded:
    """Encoded rows: codes [n, k] int32, numbers [n, m] float32."""

    codes: NDArray[np.int32]
    numbers: NDArray[np.float32]


@dataclass(frozen=True)
class Encoders:
    """What the training rows say about each column.

    Args:
        roles: the columns.
        categories: for each categorical column, its training categories in order: texts, or the numbers of a date's part.
        scales: for each continuous column, how it is standardised.
        flagged: continuous columns that lack values in training rows: each has a column "NAME missing" of 0 and 1.
        dates: what is known about each date column.
    """

    roles: Roles
    categories: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, Scale]
    flagged: tuple[str, ...]
    dates: Mapping[str, DateForm]

    @property
    def categorical_names(self) -> tuple[str, ...]:
        """The names of the codes' k columns."""
        return self.roles.categorical + tuple(f"{name} {part}" for name in self.roles.date for part in self._parts(name)[0])

    @property
    def continuous_names(self) -> tuple[str, ...]:
        """The names of the numbers' m columns."""
        parts = tuple(f"{name} {part}" for name in self.roles.date for part in self._parts(name)[1])
        return self.roles.continuous + parts + tuple(f"{name} missing" for name in self._flags())

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """The number of codes of each categorical column, with the two for unknown and missing."""
        return tuple(len(self.categories[name]) + FIRST for name in self.categorical_names)

    def encode(self, frame: pd.DataFrame) -> Encoded:
        """Encode n rows of a table.

        Raises:
            InputError: a column is missing, or a value is not what its column holds, or too far from the training values.
        """
        require_columns("the table", self.roles.names, frame.columns, rule=TRAINED_ON)
        texts, values = self.categorical_names, self.continuous_names
        codes_nk = np.empty((len(frame), len(texts)), np.int32)
        numbers_nm = np.empty((len(frame), len(values)), np.float32)
        places: dict[str, tuple[NDArray, int]] = {name: (codes_nk, index) for index, name in enumerate(texts)}
        places |= {name: (numbers_nm, index) for index, name in enumerate(values)}
        known = {
            name: {text: code for code, text in enumerate(self.categories[name], FIRST)} for name in self.roles.categorical
        }
        for start in range(0, len(frame), CHUNK):
            rows = slice(start, start + CHUNK)
            for name, column_n in self._columns(frame, rows, known):
                array, index = places[name]
                array[rows, index] = column_n
        return Encoded(codes_nk, numbers_nm)

    def as_dict(self) -> dict[str, Any]:
        """Return the encoders as JSON has them; numbers survive it exactly."""
        return {
            "roles": self.roles.as_dict(),
            "categories": {name: [*names] for name, names in self.categories.items()},
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
            "flagged": [*self.flagged],
            "dates": {name: asdict(form) for name, form in self.dates.items()},
        }

    @classmethod
    def from_dict(cls, encoders: dict[str, Any]) -> Encoders:
        """Return the encoders that `as_dict` wrote."""
        return cls(
            Roles.from_dict(encoders["roles"]),
            {name: tuple(names) for name, names in encoders["categories"].items()},
            {name: Scale(**scale) for name, scale in encoders["scales"].items()},
            tuple(encoders["flagged"]),
            {name: DateForm(**form) for name, form in encoders["dates"].items()},
        )

    def _parts(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return part_names(self.dates[name].times)

    def _flags(self) -> tuple[str, ...]:
        return self.flagged + tuple(name for name in self.roles.date if self.dates[name].missing)

    def _columns(self, frame: pd.DataFrame, rows: slice, known: Mapping[str, Mapping[str, int]]) -> Columns:
        """Yield all columns of some rows, by name."""
        for name in self.roles.categorical:
            yield name, _category_codes(frame[name].iloc[rows], known[name])
        for name in self.roles.continuous:
            series = frame[name].iloc[rows]
            values_n = numbers(series)
            yield name, _standardised(series, values_n, self.scales[name])
            if name in self.flagged:
                yield f"{name} missing", np.isnan(values_n)
        for name in self.roles.date:
            yield from self._date_columns(name, frame[name].iloc[rows])

    def _date_columns(self, name: str, series: pd.Series) -> Columns:
        dates_n, _ = read_dates(series, self.dates[name].form)
        parts = date_parts(dates_n, self.dates[name].times)
        coded, measured = self._parts(name)
        for part in coded:
            yield f"{name} {part}", _part_codes(parts[part], self.categories[f"{name} {part}"])
        for part in measured:
            yield f"{name} {part}", _standardised(series, parts[part], self.scales[f"{name} {part}"])
        if self.dates[name].missing:
            yield f"{name} missing", np.isnat(dates_n)


def part_names(times: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which parts of a date are categorical and which are continuous."""
    return (*CODED, *(("hour",) if times else ())), (*MEASURED, *(("minute",) if times else ()))


def fit_encoders(frame: pd.DataFrame, roles: Roles) -> Encoders:
    """Learn from the training rows, and from nothing else, how to encode rows.

    Raises:
        InputError: there are no rows, a column is missing or holds other values than its role needs, or a column's name is
            that of one made from another column.
    """
    require_columns("the table", roles.names, frame.columns, rule=TRAINED_ON)
    if not len(frame):
        raise InputError("no training rows", wanted="rows to learn categories, means and spreads from")
    categories = {name: tuple(sorted(read_categories(frame[name])[1])) for name in roles.categorical}
    scales: dict[str, Scale] = {}
    flagged: list[str] = []
    dates: dict[str, DateForm] = {}
    for name in roles.continuous:
        values_n = numbers(frame[name])
        scales[name] = _scale(values_n)
        flagged += [name] if np.isnan(values_n).any() else []
    for name in roles.date:
        dates_n, form = read_dates(frame[name])
        dates[name] = DateForm(form, has_times(dates_n), bool(np.isnat(dates_n).any()))
        _fit_parts(name, dates_n, categories, scales)
    encoders = Encoders(roles, categories, scales, tuple(flagged), dates)
    _check_names(encoders)
    return encoders


def _fit_parts(
    name: str, dates_n: NDArray[np.datetime64], categories: dict[str, tuple[str, ...]], scales: dict[str, Scale]
) -> None:
    parts = date_parts(dates_n)
    coded, measured = part_names("hour" in parts)
    for part in coded:
        known = np.sort(pd.unique(parts[part][~np.isnan(parts[part])]))
        categories[f"{name} {part}"] = tuple(str(int(value)) for value in known)
    for part in measured:
        scales[f"{name} {part}"] = _scale(parts[part])


def _check_names(encoders: Encoders) -> None:
    names = encoders.categorical_names + encoders.continuous_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"column {printable(twice[0])}: a column made from another one has this name",
            wanted="no column whose name is another one's with a part of a date, or with `missing`, after it",
            fix="rename it",
        )


def _scale(values_n: NDArray[np.float64]) -> Scale:
    """Return the median of the values that are there, then mean and standard deviation with it in place of the others."""
    present = values_n[~np.isnan(values_n)]
    if not len(present):
        return Scale(0.0, 0.0, 1.0)
    middle = np.partition(present, ((len(present) - 1) // 2, len(present) // 2))
    median = float(middle[(len(present) - 1) // 2] / 2 + middle[len(present) // 2] / 2)  # a sum could overflow
    filled_n = np.where(np.isnan(values_n), median, values_n)
    if filled_n.min() == filled_n.max():
        return Scale(median, float(filled_n[0]), 1.0)
    unit = math.ldexp(1.0, math.frexp(float(np.abs(filled_n).max()))[1] - 1)  # no sum and no square overflows
    scaled_n = filled_n / unit
    return Scale(median, float(scaled_n.mean()) * unit, float(scaled_n.std()) * unit or 1.0)


def _standardised(series: pd.Series, values_n: NDArray[np.float64], scale: Scale) -> NDArray[np.float32]:
    filled_n = np.where(np.isnan(values_n), scale.median, values_n)
    with np.errstate(over="ignore"):
        found: NDArray[np.float32] = ((filled_n - scale.mean) / scale.std).astype(np.float32)
    if not np.isfinite(found).all():
        wanted = f"values near those of the training rows: {number_name(scale.mean)} ± {number_name(scale.std)}"
        raise refuse(series, ~np.isfinite(found), "is too large", wanted=wanted)
    return found


def _category_codes(series: pd.Series, known: Mapping[str, int]) -> NDArray[np.int32]:
    places_n, names = read_categories(series)
    return np.array([*(known.get(name, UNKNOWN) for name in names), MISSING], np.int32)[places_n]


def _part_codes(values_n: NDArray[np.float64], categories: tuple[str, ...]) -> NDArray[np.int32]:
    known = np.array([*map(float, categories), np.inf])  # in order
    places_n = np.searchsorted(known[:-1], values_n)
    codes_n = np.where(known[places_n] == values_n, places_n + FIRST, UNKNOWN)
    return np.where(np.isnan(values_n), MISSING, codes_n).astype(np.int32)
