"""What each column of a table means to a network: a category, a number or a date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from headstart.columns.cells import cells_of, distinct, kind_of, shown, trimmed
from headstart.columns.date_texts import read_texts
from headstart.columns.values import dates, numbers, plain_numbers, read_categories, read_numbers
from headstart.core.errors import InputError, require_columns
from headstart.core.text import printable

Role = Literal["categorical", "continuous", "date"]
Remarks = list[tuple[str, str]]
ROLES: tuple[Role, ...] = ("categorical", "continuous", "date")
AUTO = "auto"
FEW = 12  # whole numbers with at most so many values are codes for something
IDENTIFIER = 30  # in more rows, a category for each row says nothing about other rows
NEARLY = 0.9  # a text column with such a share of numbers is reported with its first other value


@dataclass(frozen=True)
class Roles:
    """The columns of each role, by name."""

    categorical: tuple[str, ...]
    continuous: tuple[str, ...]
    date: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of all roles."""
        return self.categorical + self.continuous + self.date

    def as_dict(self) -> dict[str, Any]:
        """Return the roles as JSON has them."""
        return {role: [*names] for role, names in asdict(self).items()}

    @classmethod
    def from_dict(cls, roles: dict[str, Any]) -> Roles:
        """Return the roles that `as_dict` wrote."""
        return cls(**{role: tuple(roles[role]) for role in ROLES})


def choose_roles(
    frame: pd.DataFrame,
    categorical: Sequence[str] | str = AUTO,
    continuous: Sequence[str] | str = AUTO,
    date: Sequence[str] | str = AUTO,
) -> tuple[Roles, Remarks]:
    """Return which columns are categories, numbers and dates, and (kind, text) remarks about those that are not used.

    Args:
        frame: the rows [n]; its index has the rows' numbers as the user counts them.
        categorical, continuous, date: names of columns, or "auto" for all columns of that type that are named nowhere.

    Raises:
        InputError: a named column does not exist, has two roles, holds other values than its role needs, or has a category
            for each row; a column's dates have two formats or can be read in two ways.
    """
    named = _named({"categorical": categorical, "continuous": continuous, "date": date})
    _check(frame, named)
    of_named = {name: role for role, names in named.items() for name in names or ()}
    found: dict[Role, list[str]] = {role: [] for role in ROLES}
    remarks: Remarks = []
    for name in [*of_named, *(column for column in frame.columns if column not in of_named)]:
        role = of_named.get(name) or _role(frame[name], remarks)
        if name not in of_named and role and named[role] is not None:
            remarks.append(
                ("unused column", f"{printable(name)} is not used: it is {role}, and the list of those names others")
            )
        elif role and _useful(frame[name], role, name in of_named, remarks):
            found[role].append(name)
    return Roles(*(tuple(found[role]) for role in ROLES)), remarks


def _named(given: dict[Role, Sequence[str] | str]) -> dict[Role, list[str] | None]:
    """Return the names for each role, None for "auto"."""
    for role, names in given.items():
        if isinstance(names, str) and names != AUTO:
            raise InputError(f"{role}: {names!r}", wanted="a list of names of columns, or auto")
    return {role: None if isinstance(names, str) else [*names] for role, names in given.items()}


def _check(frame: pd.DataFrame, named: dict[Role, list[str] | None]) -> None:
    roles: dict[str, Role] = {}
    columns = [str(column) for column in frame.columns]
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"column {printable(column)}: this name occurs twice", fix="rename one of them")
    for role, names in named.items():
        require_columns(role, names or (), columns, fix="correct the name")
        for name in names or ():
            if name in roles:
                where = f"both {roles[name]} and {role}" if roles[name] != role else f"{role} twice"
                raise InputError(f"column {printable(name)} is named as {where}", fix="name it once")
            roles[name] = role


def _role(series: pd.Series, remarks: Remarks) -> Role | None:
    """Return a column's role by its type and values, or None for one without any value."""
    cells = cells_of(series)
    kind = kind_of(cells)
    if cells.null_count == len(cells):
        _left_out(series, "it is empty", remarks)
        return None
    if kind == "flag":
        return "categorical"
    if kind == "number":
        return _role_of_numbers(numbers(series))
    return "date" if kind == "date" else _role_of_text(series, cells, remarks)


def _role_of_text(series: pd.Series, cells: pa.Array, remarks: Remarks) -> Role | None:
    if (plain_n := plain_numbers(cells)) is not None:
        return _role_of_numbers(plain_n)
    texts, places_n = distinct(trimmed(cells))
    if not len(texts):
        _left_out(series, "it is empty", remarks)
        return None
    values_d, bad_d = read_numbers(texts)
    if not bad_d.any():
        return _role_of_numbers(values_d)
    if not np.isnat([*read_texts(texts).values()]).all(0).any():
        return "date"
    bad_n = np.append(bad_d, False)[places_n]
    if bad_n.sum() <= (1 - NEARLY) * (places_n >= 0).sum():
        place = int(np.argmax(bad_n))
        cell = f"{shown(series.iloc[place])} in row {series.index[place]}"
        text = (
            f"{printable(str(series.name))} is categorical, since {bad_n.sum():,} of its values are not numbers, such as {cell}"
        )
        remarks.append(("nearly a number", text))
    return "categorical"


def _role_of_numbers(values: np.ndarray) -> Role:
    present = values[~np.isnan(values)]
    whole = bool((present == np.floor(present)).all())
    return "categorical" if whole and len(pd.unique(present)) <= FEW else "continuous"


def _left_out(series: pd.Series, why: str, remarks: Remarks, named: bool = False) -> None:
    though = ", although it is named" if named else ""
    remarks.append(("column left out", f"{printable(str(series.name))} is left out{though}: {why}"))


def _useful(series: pd.Series, role: Role, named: bool, remarks: Remarks) -> bool:
    """Return whether a column can say something about a row.

    Raises:
        InputError: the column is named, and has a category for each row.
    """
    values, missing = _different(series, role)
    if values == 0 and len(series):
        _left_out(series, "it is empty", remarks, named)
        return False
    if values == 1 and not missing:
        _left_out(series, f"all rows have the value {shown(series.iloc[0])}", remarks, named)
        return False
    if role != "categorical" or not values == len(series) > IDENTIFIER:
        return True
    if named:
        name = printable(str(series.name))
        raise InputError(
            f"column {name}: as categorical, each of its {values:,} rows has a category of its own",
            wanted="categories that several rows share",
            fix=f"take {name} out of the list, or name it as continuous or date if it is one",
        )
    _left_out(series, "each row has a category of its own, as an identifier has", remarks)
    return False


def _different(series: pd.Series, role: Role) -> tuple[int, bool]:
    """Return how many different values a column has (2 for two or more numbers or dates), and whether a cell is missing."""
    if role == "categorical":
        codes_n, names = read_categories(series)
        return len(names), bool((codes_n < 0).any())
    values_n = numbers(series) if role == "continuous" else dates(series)
    present = values_n[~np.isnan(values_n)]
    values = 1 + int(present.min() != present.max()) if len(present) else 0
    return values, len(present) < len(values_n)
