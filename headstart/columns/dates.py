"""Split dates into the parts that a network learns from: seasons, weekdays, the ends of months. n dates.

Source: `add_datepart` of fast.ai's lesson on tabular data.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Parts = dict[str, NDArray[np.float64]]
CODED = ("year", "month", "week", "day", "day_of_week", "day_of_year")
MEASURED = (
    "is_month_start", "is_month_end", "is_quarter_start", "is_quarter_end", "is_year_start", "is_year_end", "elapsed",
)  # fmt: skip
DAY = 86_400


def has_times(dates: NDArray[np.datetime64]) -> bool:
    """Return whether some date has a time of day other than midnight."""
    present = dates[~np.isnat(dates)].astype("datetime64[s]").astype(np.int64)
    return bool((present % DAY).any())


def date_parts(dates: NDArray[np.datetime64], times: bool | None = None) -> Parts:
    """Return the parts of n dates as float64, NaN where a date is missing.

    Args:
        times: whether to add hour and minute; None does so if some date has a time of day.

    Returns:
        year, month, week (ISO 8601), day, day_of_week (Monday is 0), day_of_year, is_month_start and the other flags (0 or 1),
        elapsed (seconds since 1970), then hour and minute.
    """
    missing = np.isnat(dates)
    seconds = np.where(missing, np.datetime64(0, "s"), dates.astype("datetime64[s]"))
    parts = _calendar(seconds.astype("datetime64[D]"))
    parts["elapsed"] = seconds.astype(np.int64)
    if has_times(dates) if times is None else times:
        of_day = seconds.astype(np.int64) % DAY
        parts |= {"hour": of_day // 3600, "minute": of_day // 60 % 60}
    return {name: np.where(missing, np.nan, values.astype(np.float64)) for name, values in parts.items()}


def _calendar(days: NDArray[np.datetime64]) -> dict[str, NDArray]:
    months, years = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
    day, month = _since(days, months) + 1, months.astype(np.int64) % 12 + 1
    weekday = (days.astype(np.int64) + 3) % 7  # 1 January 1970 was a Thursday
    thursday = days + (3 - weekday)  # a week belongs to the year of its Thursday
    ends_month = (days + 1).astype("datetime64[M]") != months
    return {
        "year": years.astype(np.int64) + 1970,
        "month": month,
        "week": _since(thursday, thursday.astype("datetime64[Y]")) // 7 + 1,
        "day": day,
        "day_of_week": weekday,
        "day_of_year": _since(days, years) + 1,
        "is_month_start": day == 1,
        "is_month_end": ends_month,
        "is_quarter_start": (day == 1) & (month % 3 == 1),
        "is_quarter_end": ends_month & (month % 3 == 0),
        "is_year_start": (day == 1) & (month == 1),
        "is_year_end": ends_month & (month == 12),
    }


def _since(days: NDArray[np.datetime64], start: NDArray[np.datetime64]) -> NDArray[np.int64]:
    return (days - start.astype("datetime64[D]")).astype(np.int64)
