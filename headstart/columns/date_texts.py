"""Read texts as dates. Each format is tried by itself; `values.py` decides which one a column has. d distinct texts."""

from __future__ import annotations

from calendar import month_name

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Seconds = NDArray[np.datetime64]
MONTH_FIRST, DAY_FIRST = "MM/DD/YYYY", "DD/MM/YYYY"
_SLASHES = "/".join([r"(?P<{}>\d{{1,2}})", r"(?P<{}>\d{{1,2}})", r"(?P<y>\d{{4}})"])
FORMATS = {
    "YYYY-MM-DD": r"(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})",
    "YYYY/MM/DD": r"(?P<y>\d{4})/(?P<m>\d{1,2})/(?P<d>\d{1,2})",
    "DD.MM.YYYY": r"(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})",
    MONTH_FIRST: _SLASHES.format("m", "d"),
    DAY_FIRST: _SLASHES.format("d", "m"),
}
ACCEPTED = f"dates such as 2013-01-31 or 2013-01-31 12:30, or all as one of {', '.join([*FORMATS][1:])}; empty where missing"
CLEAR = tuple(form for form in FORMATS if form not in (MONTH_FIRST, DAY_FIRST))  # a text fits one of these at most
ZONE = r"(?:Z|(?P<sign>[+-])(?P<zh>\d{2}):?(?P<zm>\d{2}))"
TIME = rf"(?:[ T](?P<h>\d{{1,2}}):(?P<i>\d{{2}})(?::(?P<s>\d{{2}})(?:\.\d+)?)?{ZONE}?)?"
DAY = 86_400


def read_texts(texts: pa.Array) -> dict[str, Seconds]:
    """Return for each format what d texts mean in it, as datetime64[s] in UTC; NaT for a text that is no date of that format.

    A format is left out if the formats before it read all texts. A fraction of a second is cut off.
    """
    found: dict[str, Seconds] = {}
    unread = texts.is_valid().to_numpy(zero_copy_only=False)
    for form, pattern in FORMATS.items():
        if not unread.any():
            break
        found[form] = _read(texts, f"^{pattern}{TIME}$")
        if form != MONTH_FIRST:  # both readings of slashes are wanted
            unread &= np.isnat(found[form])
    return found


def _read(texts: pa.Array, pattern: str) -> Seconds:
    fields = pc.extract_regex(texts, pattern)
    matched = fields.is_valid().to_numpy(zero_copy_only=False)
    numbers = {field.name: _integers(fields, field.name) for field in fields.type if field.name != "sign"}
    zone = numbers["zh"] * 3600 + numbers["zm"] * 60
    zone *= np.where(pc.equal(fields.field("sign"), "-").fill_null(False).to_numpy(zero_copy_only=False), -1, 1)
    times = numbers["h"] * 3600 + numbers["i"] * 60 + numbers["s"] - zone
    days, valid = _days(numbers["y"], numbers["m"], numbers["d"])
    valid &= matched & (numbers["h"] < 24) & (numbers["i"] < 60) & (numbers["s"] < 60)
    valid &= (numbers["zh"] < 24) & (numbers["zm"] < 60)
    return np.where(valid, days.astype("datetime64[s]") + times, np.datetime64("NaT", "s"))


def _integers(fields: pa.StructArray, name: str) -> NDArray[np.int64]:
    texts = fields.field(name).fill_null("")
    filled = pc.if_else(pc.equal(texts, ""), pa.scalar("0", texts.type), texts)
    found: NDArray[np.int64] = filled.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _days(
    years: NDArray[np.int64], months: NDArray[np.int64], days: NDArray[np.int64]
) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    """Return the days as datetime64[D], and whether the calendar has them."""
    first = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
    found: NDArray[np.datetime64] = first.astype("datetime64[D]") + (days - 1).astype("timedelta64[D]")
    return found, (years >= 1) & (months >= 1) & (months <= 12) & (found.astype("datetime64[M]") == first)


def date_names(dates: Seconds) -> list[str]:
    """Return dates as ISO texts, without the time at midnight."""
    texts = np.datetime_as_string(dates, unit="s").tolist()
    return [text.replace("T", " ").removesuffix(" 00:00:00") for text in texts]


def written(seconds: np.datetime64) -> str:
    """Return a date in words that cannot be misread, such as "3 April 2013"."""
    year, month, day = str(seconds.astype("datetime64[D]")).split("-")
    return f"{int(day)} {month_name[int(month)]} {year}"
