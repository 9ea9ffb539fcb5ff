"""Split by time: the newest rows are the test split, the next newest the validation split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from headstart.columns.date_texts import date_names
from headstart.columns.values import dates
from headstart.core.errors import InputError, require_columns
from headstart.core.text import listing


def by_time(own: pd.DataFrame, column: str, declared: pd.Series, valid_fraction: float, test_fraction: float) -> list[str]:
    """Return each row's split by its date; rows of one date stay together, so no row knows of a later one.

    Args:
        own: the table; its index has the rows' numbers, or the images' paths.
        column: the column of dates.
        declared: the source's own splits; if there are any they are kept, and must be in this order.
        valid_fraction, test_fraction: shares of the rows; a date's rows all go to the newer split.

    Raises:
        InputError: there is no such column, a date is missing, all rows have one date, or the source's own train split is
            newer than what it is judged by.
    """
    require_columns("data.split_by", [column], own.columns)
    date_n = dates(own[column])
    missing = own.index[np.isnat(date_n)]
    if len(missing):
        lines = [f"row {row}: no date" if isinstance(row, int) else f"{row}: no date" for row in missing]
        raise InputError(f"data.split_by {column}: {len(missing):,} rows without a date:\n    {listing(lines)}")
    if (declared != "").any():
        lacking = {"valid", "test"} - set(declared)
        if lacking:
            raise InputError(
                f"data.split_by {column}: the source has splits of its own, but no {' and no '.join(sorted(lacking))} rows",
                wanted="rows of all three splits, or none: otherwise chance, and not time, would choose them",
                fix="name them in the table's column split, or remove the column",
            )
        _refuse_future(column, date_n, declared)
        return list(declared)
    order = np.sort(date_n)
    starts = [order[int(len(order) * (1 - share))] for share in (test_fraction, test_fraction + valid_fraction)]
    found = np.where(date_n >= starts[0], "test", np.where(date_n >= starts[1], "valid", "train"))
    lacking = {"train", "valid", "test"} - set(found)
    if lacking:
        span = f"{' to '.join(date_names(order[[0, -1]]))}, {len(np.unique(order)):,} different"
        raise InputError(
            f"data.split_by {column}: no rows are left for {', '.join(sorted(lacking))} (dates {span})",
            wanted="dates that can be split",
            fix="change data.valid_fraction or data.test_fraction, or split by hash: --set data.split_by=none",
        )
    return found.tolist()


def _refuse_future(column: str, date_n: np.ndarray, declared: pd.Series) -> None:
    """Refuse a source's own splits if a training row is newer than a validation or test row."""
    judged = declared.isin(["valid", "test"]).to_numpy()
    oldest = date_n[judged].min()
    late = int((date_n[~judged] > oldest).sum())
    if late:
        (day,) = date_names(np.array([oldest]))
        raise InputError(
            f"data.split_by {column}: {late:,} training rows are newer than {day}, the oldest row to judge by",
            wanted="training rows that are older than all validation and test rows",
            fix="remove the table's column split, or set data.split_by: none",
        )
