"""Structured data: columns as categories, numbers and dates, and tables that are joined."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.columns.checks import disguised_target
from headstart.columns.dates import date_parts
from headstart.columns.elapsed import add_elapsed
from headstart.columns.encoders import CHUNK, Encoders, Scale, fit_encoders
from headstart.columns.joins import Join, join
from headstart.columns.roles import Roles, choose_roles
from headstart.columns.values import categories, dates, numbers, read_dates, read_numbers
from headstart.core.errors import InputError

QUICK = settings(max_examples=60, deadline=None)
ROLES = Roles(("shop", "floor", "open"), ("price", "stock"), ("sold", "seen"))


def column(*cells: object, name: str = "x", dtype: object = object) -> pd.Series:
    """A column whose first row is row 2, below the header."""
    return pd.Series(list(cells), name=name, dtype=dtype, index=range(2, len(cells) + 2))


def table(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({name: column(*cells) for name, cells in columns.items()})


def through_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table as it comes from a CSV file: all text."""
    text = frame.to_csv(index=False)
    return pd.read_csv(io.StringIO(text), dtype=object, keep_default_na=False).set_axis(frame.index, axis=0)


def typed(rows: int, seed: int = 0) -> pd.DataFrame:
    """A table of typed columns, a few cells of which are missing."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "shop": pd.array([f"shop {i}" for i in rng.integers(0, 5, rows)], dtype="str"),
            "floor": pd.array(rng.integers(-1, 3, rows), dtype="Int64"),
            "open": rng.random(rows) < 0.5,
            "price": rng.normal(100, 20, rows),
            "stock": rng.integers(0, 10**6, rows),
            "sold": np.datetime64("2013-01-01", "s") + rng.integers(0, 900, rows) * 86_400,
            "seen": np.datetime64("2013-01-01", "s") + rng.integers(0, 10**8, rows),
        },
        index=range(2, rows + 2),
    )
    for name in ("shop", "floor", "price", "sold", "seen"):
        frame[name] = frame[name].mask(rng.random(rows) < 0.1)
    return frame


def refusal(work, *arguments) -> str:
    with pytest.raises(InputError) as error:
        work(*arguments)
    return str(error.value)


# Values


def test_a_number_is_the_same_in_every_type():
    wanted = [3.5, -2.0, 1e-5, math.nan]
    texts = column(" 3.5", "-2", "1e-5", "")
    objects = column(Decimal("3.5"), -2, 1e-5, None)
    for series in (texts, objects, column(*wanted, dtype=float), column(*wanted, dtype="Float64")):
        np.testing.assert_array_equal(numbers(series), wanted)
    np.testing.assert_array_equal(numbers(column("+3.5", "1E+2", ".5", "5.")), [3.5, 100, 0.5, 5])
    np.testing.assert_array_equal(numbers(column(0.1, 3.3, dtype="float32")), [0.1, 3.3])
    np.testing.assert_array_equal(numbers(column(2**60 + 1, 2**53 + 1, dtype="int64")), [float(2**60 + 1), float(2**53 + 1)])
    np.testing.assert_array_equal(numbers(column("9007199254740993")), numbers(column(9007199254740993, dtype="int64")))


@pytest.mark.parametrize("missing", ["", "  ", "NA", "NaN", "nan", "null", "None", None, math.nan, pd.NA, pd.NaT])
def test_what_means_missing(missing):
    assert np.isnan(numbers(column("1", missing))).tolist() == [False, True]
    assert np.isnat(dates(column("2013-01-05", missing))).tolist() == [False, True]
    expected = not isinstance(missing, str) or not missing.strip()  # NA may be a category: Namibia
    assert categories(column("a", missing)).isna().tolist() == [False, expected]


@pytest.mark.parametrize(
    "cells, shown",
    [
        (["1", "12a"], "'12a' is not a number"),
        (["1", "1,5"], "'1,5' is not a number"),
        (["1", "0x10"], "'0x10' is not a number"),
        (["1", "1_0"], "'1_0' is not a number"),
        (["1", "\u0661"], "'\u0661' is not a number"),
        (["1", "inf"], "'inf' is not a number"),
        (["1", "NAN"], "'NAN' is not a number"),
        (["1", "1e999"], "'1e999' is not finite"),
        ([1.0, math.inf], "inf is not finite"),
        ([1, "x\ny"], r"'x\ny' is not a number"),
        (["1", "true"], "'true' is not a number"),
        (["1", "a" * 500], f"'{'a' * 59}… is not a number"),
        (["1", "\ud800"], r"'\ud800' is not UTF-8 text"),
        ([1, [2]], "[2] of type list cannot be used"),
    ],
)
def test_what_is_no_number_is_refused(cells, shown):
    assert refusal(numbers, column(*cells, name="price")).splitlines()[0] == f"row 3, column price: {shown}"


def test_typed_columns_of_another_kind_are_refused():
    assert "row 2, column x: True is not a number" in refusal(numbers, column(True, dtype=bool))
    assert "row 2, column x: 2013-01-05 00:00:00 is not a number" in refusal(
        numbers, column("2013-01-05", dtype="datetime64[s]")
    )
    assert "row 2, column x: 20130105 is not a date" in refusal(dates, column(20130105, dtype="int64"))
    for work in (numbers, dates, categories):
        assert refusal(work, column(dt.timedelta(1), name="a\nb")).startswith(r"column a\nb: values of type duration")
        assert refusal(work, column(b"a")).startswith("column x: values of type binary")


def test_many_bad_cells_are_counted_and_ten_are_shown():
    lines = refusal(numbers, column(*("x" for _ in range(25)))).splitlines()
    assert lines[0] == "25 rows cannot be used:"
    assert lines[1].strip() == "row 2, column x: 'x' is not a number" and lines[10].strip().startswith("row 11,")
    assert lines[11].strip() == "… and 15 more" and lines[12].strip().startswith("wanted: a number such as 3.5")


def test_rows_that_share_a_number_are_counted_each():
    """As in a table that a caller of the model in MLflow has put together."""
    with pytest.raises(InputError, match="2 rows cannot be used:\n    row 0, .*'x' is not a number\n    row 0, .*'y' is not"):
        numbers(pd.Series(["x", "y", "3"], index=[0, 0, 1], name="a"))


@given(st.text(alphabet="+-.0123456789eE_ infaN,", max_size=8))
@QUICK
def test_numbers_are_those_of_python_in_plain_notation(text):
    plain = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip(" "), re.ASCII)
    missing = text.strip(" ") in ("", "NaN", "nan")
    if missing or (plain and math.isfinite(float(text))):
        np.testing.assert_array_equal(numbers(column(text)), [math.nan if missing else float(text)])
    else:
        assert "row 2, column x: " in refusal(numbers, column(text))


@given(st.lists(st.one_of(st.none(), st.floats().map(str), st.text("+-.0123456789eE_ infaNA", max_size=6)), max_size=5))
@QUICK
def test_a_number_is_read_alike_beside_any_other_cell(texts):
    """A column of plain numbers takes a faster way than one with white space or words in it."""
    values_n, bad_n = read_numbers(pa.array(texts, pa.large_string()))
    for beside in ("word", " 1", "NA"):
        values_m, bad_m = read_numbers(pa.array([*texts, beside], pa.large_string()))
        assert bad_m[:-1].tolist() == bad_n.tolist() and bad_m[-1] == (beside == "word")
        np.testing.assert_array_equal(values_m[:-1], values_n)


@given(st.floats(allow_nan=False, allow_infinity=False))
@QUICK
def test_a_number_survives_its_text(value):
    assert numbers(column(repr(value)))[0] == value
    assert categories(column(repr(value)))[2] == categories(column(value, dtype=float))[2]


def test_categories_have_one_name_in_every_type():
    assert categories(column("3", "3.0", 3, 3.0, " 3 ")).tolist() == ["3"] * 5
    assert categories(column(3, 4, dtype="int64")).tolist() == categories(column(3.0, 4.0, dtype=float)).tolist() == ["3", "4"]
    assert categories(column("True", "FALSE", "true")).tolist() == ["true", "false", "true"]
    assert categories(column(True, False, dtype=bool)).tolist() == ["true", "false"]
    assert categories(column("2013-01-05", "2013-01-05 00:00:00", "2013-01-05T10:30:00")).tolist() == [
        "2013-01-05", "2013-01-05", "2013-01-05 10:30:00",
    ]  # fmt: skip
    assert categories(column("2013-01-05", dtype="datetime64[s]")).tolist() == ["2013-01-05"]
    assert categories(column(0.1, 16777217.0, dtype="float32")).tolist() == ["0.1", "16777216"]
    assert categories(column("a", "a", "b", dtype="category")).tolist() == ["a", "a", "b"]


def test_codes_keep_their_zeros():
    texts = ["007", "1.10", "1.1", "7", "1e5", "00.0", "2013-01-05 or so", "e", "-"]
    assert categories(column(*texts)).tolist() == texts


READINGS = [
    ("2013-01-31", "2013-01-31"),
    ("2013-01-31 12:30", "2013-01-31T12:30"),
    (" 2013-01-31T12:30:15 ", "2013-01-31T12:30:15"),
    ("2013-01-31T12:30:15.999", "2013-01-31T12:30:15"),
    ("2013-01-31T12:30:15Z", "2013-01-31T12:30:15"),
    ("2013-01-31T00:30:15+02:00", "2013-01-30T22:30:15"),
    ("2013-01-31 12:30-0530", "2013-01-31T18:00"),
    ("2013/01/31", "2013-01-31"),
    ("31.01.2013", "2013-01-31"),
    ("1.2.2013", "2013-02-01"),
    ("01/31/2013", "2013-01-31"),
    ("31/01/2013", "2013-01-31"),
    ("11/16/2006 0:00", "2006-11-16"),
    ("2012-02-29", "2012-02-29"),
    ("0001-01-01", "0001-01-01"),
    ("9999-12-31", "9999-12-31"),
]


@pytest.mark.parametrize("text, wanted", READINGS)
def test_formats_of_dates(text, wanted):
    assert dates(column(text))[0] == np.datetime64(wanted, "s")


NO_DATES = [
    "2013-02-29", "2013-13-01", "2013-00-10", "2013-01-00", "0000-01-01", "2013-1-5", "20130105", "05-01-2013", "31/31/2013",
    "2013-01-05 24:00", "2013-01-05 10:60", "2013-01-05 10", "2013-01-05Z", "2013-01-05 10:00+25:00", "yesterday", "13.13.2013",
    "2013-01-05\n", "1357344000", "\u0662013-01-05",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_DATES)
def test_what_is_no_date_is_refused(text):
    if text.strip() != text:  # white space around a date is none of it
        assert not np.isnat(dates(column(text)))[0]
        return
    assert f"row 3, column sold: {text!r} is not a date" in refusal(dates, column("2013-01-05", text, name="sold"))


def test_a_typed_date_is_the_same_as_its_text():
    wanted = dates(column("2013-01-05T10:30:00+01:00", None))
    stamps = pd.Series(pd.to_datetime(["2013-01-05 09:30:00", None]))
    for series in (stamps, stamps.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"), stamps.astype("datetime64[ns]")):
        np.testing.assert_array_equal(dates(series), wanted)
    days = column(dt.date(2013, 1, 5), None)
    np.testing.assert_array_equal(dates(days), dates(column("2013-01-05", "")))
    before = pd.Series(np.array(["1969-12-31T23:59:59.500"], "datetime64[ms]"))
    np.testing.assert_array_equal(dates(before), dates(column("1969-12-31T23:59:59.500")))


def test_objects_of_several_types_keep_their_values():
    mixed = column(dt.date(2013, 1, 5), dt.datetime(2013, 1, 5, 10), "2013-01-06", pd.Timestamp("2013-01-05T10:00+02:00"))
    wanted = np.array(["2013-01-05", "2013-01-05T10:00", "2013-01-06", "2013-01-05T08:00"], "datetime64[s]")
    np.testing.assert_array_equal(dates(mixed), wanted)
    np.testing.assert_array_equal(dates(mixed.head(2)), wanted[:2])
    np.testing.assert_array_equal(numbers(column(np.float32(0.1), 0.2, 3, "4", np.int8(5), 2**70)), [0.1, 0.2, 3, 4, 5, 2**70])
    np.testing.assert_array_equal(numbers(column(np.float32(0.1), 0.2)), [0.1, 0.2])


def test_one_row_decides_between_days_and_months():
    assert dates(column("03/04/2013", "25/12/2013"))[0] == np.datetime64("2013-04-03")
    assert dates(column("03/04/2013", "12/25/2013"))[0] == np.datetime64("2013-03-04")


def test_days_and_months_that_cannot_be_told_apart_are_refused():
    text = refusal(dates, column("", "01/01/2013", "03/04/2013", name="sold"))
    assert "row 4, column sold: '03/04/2013' is 4 March 2013 as MM/DD/YYYY and 3 April 2013 as DD/MM/YYYY" in text
    assert "write the dates as YYYY-MM-DD" in text


@pytest.mark.parametrize(
    "cells, wanted",
    [
        (["2013-01-05", "06.01.2013"], "row 2 has '2013-01-05' (YYYY-MM-DD), row 3 has '06.01.2013' (DD.MM.YYYY)"),
        (
            ["12/25/2013", "01/02/2013", "25/12/2013"],
            "row 2 has '12/25/2013' (MM/DD/YYYY), row 4 has '25/12/2013' (DD/MM/YYYY)",
        ),
        (
            ["01/02/2013", "2013/01/02"],
            "row 2 has '01/02/2013' (MM/DD/YYYY or DD/MM/YYYY), row 3 has '2013/01/02' (YYYY/MM/DD)",
        ),
    ],
)
def test_two_formats_in_a_column_are_refused(cells, wanted):
    assert f"column sold: dates in two formats: {wanted}" in refusal(dates, column(*cells, name="sold"))


def test_dates_are_read_as_in_the_training_rows():
    form = read_dates(column("25/12/2013"))[1]
    alone = read_dates(column("03/04/2013"), form)[0]
    assert alone[0] == np.datetime64("2013-04-03")
    beside = read_dates(column("03/04/2013", "2013-04-03", "3.4.2013"), form)[0]
    assert (beside == alone[0]).all()
    text = refusal(read_dates, column("12/25/2013"), form)
    assert "row 2, column x: '12/25/2013' is not a date" in text and "DD/MM/YYYY, as in the training rows" in text
    assert "is not a date" in refusal(read_dates, column("25/12/2013"), "YYYY-MM-DD")


# Parts of dates


@given(st.lists(st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2200, 1, 1)), min_size=1, max_size=20))
@QUICK
def test_parts_are_those_of_pandas(moments):
    given_ = np.array(moments, "datetime64[s]")
    peer, parts = pd.DatetimeIndex(given_), date_parts(given_)
    for name in ("year", "month", "day", "day_of_week", "day_of_year", "is_month_start", "is_month_end", "is_quarter_start",
                 "is_quarter_end", "is_year_start", "is_year_end"):  # fmt: skip
        np.testing.assert_array_equal(parts[name], getattr(peer, name).astype(float), err_msg=name)
    np.testing.assert_array_equal(parts["week"], peer.isocalendar()["week"].to_numpy(float))
    np.testing.assert_array_equal(
        parts["elapsed"], [(moment - dt.datetime(1970, 1, 1)) // dt.timedelta(seconds=1) for moment in moments]
    )
    if any(given_ != given_.astype("datetime64[D]")):
        np.testing.assert_array_equal(parts["hour"], peer.hour.to_numpy(float))
        np.testing.assert_array_equal(parts["minute"], peer.minute.to_numpy(float))


def test_ends_of_months_and_years():
    days = np.arange("1999-12-25", "2001-03-05", dtype="datetime64[D]").astype("datetime64[s]")
    peer, parts = pd.DatetimeIndex(days), date_parts(days)
    assert "hour" not in parts and "minute" not in parts
    for name in ("is_month_end", "is_quarter_end", "is_quarter_start", "is_year_end", "is_year_start"):
        np.testing.assert_array_equal(parts[name], getattr(peer, name).astype(float), err_msg=name)


def test_parts_of_a_missing_date_are_missing():
    parts = date_parts(np.array(["2013-01-05T10:30", "NaT"], "datetime64[s]"))
    assert all(np.isnan(values).tolist() == [False, True] for values in parts.values())
    assert parts["hour"][0] == 10 and parts["minute"][0] == 30 and [*parts][-2:] == ["hour", "minute"]


# Encoders


def test_encoded_rows_are_what_they_should_be():
    train = table(shop=["b", "a", "", "b"], price=["1", "", "3", "8"], size=[5, 5, 5, 5])
    encoders = fit_encoders(train, Roles(("shop",), ("price", "size"), ()))
    assert encoders.categories == {"shop": ("a", "b")} and encoders.cardinalities == (4,)
    filled = np.array([1, 3, 3, 8])
    assert encoders.scales["price"] == Scale(3, filled.mean(), pytest.approx(filled.std())) and encoders.scales["size"].std == 1
    assert encoders.continuous_names == ("price", "size", "price missing")
    encoded = encoders.encode(table(shop=["a", "b", "c", None], price=[1, None, "3", 8.0], size=["5", "", 7, 5]))
    assert encoded.codes.dtype == np.int32 and encoded.numbers.dtype == np.float32
    np.testing.assert_array_equal(encoded.codes, [[2], [3], [0], [1]])
    np.testing.assert_allclose(encoded.numbers[:, 0], (filled - filled.mean()) / filled.std(), rtol=1e-6)
    np.testing.assert_array_equal(encoded.numbers[:, 1:], [[0, 0], [0, 1], [2, 0], [0, 0]])  # size 5 stands for a missing one


def test_dates_are_encoded_by_their_parts():
    frame = table(sold=["2013-01-31", "2013-02-01", "", "2014-02-01"])
    encoders = fit_encoders(frame, Roles((), (), ("sold",)))
    assert encoders.categorical_names == tuple(
        f"sold {part}" for part in ("year", "month", "week", "day", "day_of_week", "day_of_year")
    )
    assert encoders.continuous_names[-2:] == ("sold elapsed", "sold missing") and len(encoders.continuous_names) == 8
    codes = pd.DataFrame(encoders.encode(frame).codes, columns=encoders.categorical_names)
    assert codes["sold year"].tolist() == [2, 2, 1, 3] and codes["sold day"].tolist() == [3, 2, 1, 2]
    later = encoders.encode(table(sold=["2020-01-31 10:30"]))
    assert later.codes[0, 0] == 0 and later.codes[0, 1] == 2
    timed = fit_encoders(table(sold=["2013-01-31 10:30", "2013-01-31"]), Roles((), (), ("sold",)))
    assert timed.categories["sold hour"] == ("0", "10") and timed.continuous_names[-1] == "sold minute"


def test_a_part_is_sorted_as_a_number():
    encoders = fit_encoders(table(sold=["2013-02-01", "2013-10-01", "2013-09-01"]), Roles((), (), ("sold",)))
    assert encoders.categories["sold month"] == ("2", "9", "10")


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 59), min_size=1, max_size=60))
@QUICK
def test_a_row_is_encoded_by_itself(seed, chosen):
    frame = typed(60, seed % 7)
    encoders = fit_encoders(frame, ROLES)
    whole, some = encoders.encode(frame), encoders.encode(frame.iloc[chosen])
    assert whole.codes[chosen].tobytes() == some.codes.tobytes()
    assert whole.numbers[chosen].tobytes() == some.numbers.tobytes()


def test_a_row_is_the_same_in_any_chunk():
    frame = typed(CHUNK + 500)
    encoders = fit_encoders(frame.head(1000), ROLES)
    whole, end = encoders.encode(frame), encoders.encode(frame.tail(700))
    assert whole.codes[-700:].tobytes() == end.codes.tobytes() and whole.numbers[-700:].tobytes() == end.numbers.tobytes()
    assert np.isfinite(whole.numbers).all()


@pytest.mark.parametrize("seed", range(5))
def test_text_gives_the_same_bytes_as_typed_columns(seed):
    frame, other = typed(200, seed), typed(100, seed + 100)
    text = through_csv(frame)
    assert {str(dtype) for dtype in text.dtypes} <= {"object", "str"}
    assert choose_roles(frame) == choose_roles(text)
    one, two = fit_encoders(frame, ROLES), fit_encoders(text, ROLES)
    assert (one.categories, one.scales, one.flagged) == (two.categories, two.scales, two.flagged)
    for encoders in (one, two):
        for rows in (other, through_csv(other), other.astype({"price": "Float64", "shop": "category"})):
            assert encoders.encode(rows).codes.tobytes() == one.encode(other).codes.tobytes()
            assert encoders.encode(rows).numbers.tobytes() == one.encode(other).numbers.tobytes()


def test_encoders_survive_json():
    frame = typed(300)
    encoders = fit_encoders(frame, ROLES)
    again = Encoders.from_dict(json.loads(json.dumps(encoders.as_dict(), sort_keys=True)))
    assert again == encoders
    assert again.categorical_names == encoders.categorical_names and again.cardinalities == encoders.cardinalities
    assert again.encode(frame).numbers.tobytes() == encoders.encode(frame).numbers.tobytes()


def test_encoders_know_the_training_rows_alone():
    frame = typed(100)
    before = fit_encoders(frame.head(60), ROLES)
    encoded = before.encode(frame.head(60))
    frame.iloc[60:, frame.columns.get_loc("shop")] = "new"
    frame.iloc[60:, frame.columns.get_loc("price")] = 1e9
    frame.iloc[60:, frame.columns.get_loc("stock")] = -5
    assert fit_encoders(frame.head(60), ROLES) == before
    assert before.encode(frame).codes[:60].tobytes() == encoded.codes.tobytes()
    assert before.encode(frame).codes[60:, 0].tolist() == [0] * 40  # unknown, though it is frequent
    assert fit_encoders(frame, ROLES) != before


def test_a_lone_missing_value_becomes_the_median_without_a_flag():
    encoders = fit_encoders(table(price=[1, 2, 9]), Roles((), ("price",), ()))
    assert encoders.continuous_names == ("price",)
    np.testing.assert_array_equal(encoders.encode(table(price=["NA"])).numbers, encoders.encode(table(price=[2])).numbers)


def test_no_rows_and_no_values():
    encoders = fit_encoders(table(a=["", ""], b=["NA", ""], c=[None, None]), Roles(("a",), ("b",), ("c",)))
    encoded = encoders.encode(table(a=["", "x"], b=["", "7"], c=["", "2013-01-05"]))
    assert encoded.codes[:, 0].tolist() == [1, 0] and encoded.numbers[:, 0].tolist() == [0, 7]
    assert encoders.encode(table(a=[], b=[], c=[])).codes.shape == (0, 7)
    assert refusal(fit_encoders, table(a=[]), Roles(("a",), (), ())).startswith("no training rows")


def test_large_numbers_stay_finite():
    encoders = fit_encoders(table(a=[1e308, -1e308, 1e308], b=[5e-324, 0, 0], c=[1, 1, "1.0"]), Roles((), ("a", "b", "c"), ()))
    assert encoders.scales["a"].median == 1e308 and encoders.scales["b"].std == 1  # it is too small for a float
    assert np.isfinite(encoders.encode(table(a=[1e307, 0], b=[0, 5e-324], c=[1, 2])).numbers).all()
    text = refusal(encoders.encode, table(a=[0, 0], b=[0, 0], c=["1", "1e300"]))
    assert text.startswith("row 3, column c: '1e300' is too large") and "values near those of the training rows: 1 ± 1" in text


def test_a_missing_column_is_named():
    frame = typed(10)
    encoders = fit_encoders(frame, ROLES)
    for work in (encoders.encode, lambda rows: fit_encoders(rows, ROLES)):
        text = refusal(work, frame.drop(columns=["price", "shop"]))
        assert text.startswith("the table: no column shop, price; columns found: floor, open, stock, sold, seen")


def test_a_bad_value_is_named_when_it_is_encoded():
    frame = typed(10)
    encoders = fit_encoders(frame, ROLES)
    assert "row 7, column price: 'cheap'" in refusal(encoders.encode, with_cell(frame, 7, "price", "cheap"))
    assert "row 4, column sold: 'soon' is not a date" in refusal(encoders.encode, with_cell(frame, 4, "sold", "soon"))
    assert encoders.encode(with_cell(frame, 4, "shop", "soon")).codes[2, 0] == 0


def with_cell(frame: pd.DataFrame, row: int, name: str, value: object) -> pd.DataFrame:
    changed = through_csv(frame).astype(object)
    changed.loc[row, name] = value
    return changed


def test_names_that_meet_are_refused():
    frame = pd.DataFrame({"price": column("1", ""), "price missing": column("1", "2")})
    text = refusal(fit_encoders, frame, Roles((), ("price", "price missing"), ()))
    assert text.startswith("column price missing: a column made from another one has this name")


KINDS = [
    st.text(alphabet="0123456789-+./:TZ eaN\u00e9", max_size=12),
    st.floats(allow_infinity=False).map(str),
    st.integers(-9, 9).map(str),
    st.dates().map(str),
    st.datetimes().map(str),
    st.dates(dt.date(1000, 1, 1)).map("{0.day}/{0.month}/{0.year}".format),
    st.dates(dt.date(1000, 1, 1)).map("{0:%d.%m.%Y}".format),
    st.sampled_from([*NO_DATES, *(text for text, _ in READINGS)]),
]


@st.composite
def text_tables(draw: st.DrawFn) -> pd.DataFrame:
    """A table as from CSV. Most columns hold values of one kind, and a few cells are missing."""
    rows = draw(st.integers(1, 8))
    columns = {}
    for name in "abc":
        cells = st.one_of(draw(st.sampled_from(KINDS)), st.sampled_from(["", "NA", " null "]))
        columns[name] = draw(st.lists(cells, min_size=rows, max_size=rows))
    return table(**columns)


@given(text_tables())
@settings(max_examples=150, deadline=None)
def test_any_text_is_refused_or_becomes_finite_numbers(frame):
    try:
        roles, _ = choose_roles(frame)
        encoders = fit_encoders(frame, roles)
        encoded = encoders.encode(frame)
    except InputError as error:
        assert re.search(r"row \d+", str(error))
        return
    assert np.isfinite(encoded.numbers).all() and (encoded.codes >= 1).all()
    last = encoders.encode(frame.tail(1))
    assert last.codes.tobytes() == encoded.codes[-1:].tobytes() and last.numbers.tobytes() == encoded.numbers[-1:].tobytes()


@given(
    st.lists(
        st.one_of(st.text(max_size=9), st.floats(), st.integers(-(10**20), 10**20), st.none(), st.booleans(), st.dates()),
        min_size=1,
    )
)
@QUICK
def test_any_cells_are_refused_or_become_finite_numbers(cells):
    frame = table(x=cells)
    for roles in (Roles(("x",), (), ()), Roles((), ("x",), ()), Roles((), (), ("x",))):
        try:
            encoded = fit_encoders(frame, roles).encode(frame)
        except InputError as error:
            assert re.search(r"row \d+", str(error))
        else:
            assert np.isfinite(encoded.numbers).all() and (encoded.codes >= 1).all()


# Roles


def test_auto_goes_by_type_and_values():
    rows = 40
    frame = table(
        price=[str(i / 8) for i in range(rows)],
        count=[str(i % 12) for i in range(rows)],
        more=[str(i % 13) for i in range(rows)],
        half=[str(i % 2 / 2) for i in range(rows)],
        shop=["ab"[i % 2] for i in range(rows)],
        flag=[bool(i % 2) for i in range(rows)],
        sold=[f"2013-01-{i % 28 + 1:02}" for i in range(rows)],
        gaps=["NA", *(str(i * i) for i in range(1, rows))],
    )
    roles, remarks = choose_roles(frame)
    assert roles == Roles(("count", "shop", "flag"), ("price", "more", "half", "gaps"), ("sold",)) and not remarks
    assert choose_roles(through_csv(frame))[0] == roles
    assert Roles.from_dict(json.loads(json.dumps(roles.as_dict()))) == roles


def test_named_columns_have_the_role_they_are_named_for():
    frame = table(a=list("1234"), b=list("1234"), c=["2013-01-05", "2013-01-06"] * 2, d=list("xyxy"))
    roles, remarks = choose_roles(frame, continuous=["b"], date=[])
    assert roles == Roles(("a", "d"), ("b",), ())
    assert remarks == [("unused column", "c is not used: it is date, and the list of those names others")]
    assert choose_roles(frame, categorical=["c"], continuous=["a", "b"])[0] == Roles(("c",), ("a", "b"), ())


def test_useless_columns_are_left_out_and_reported():
    frame = table(a=["x"] * 40, b=[f"id{i}" for i in range(40)], c=[None] * 40, d=["x", *[""] * 39], e=[7] * 40)
    roles, remarks = choose_roles(frame)
    assert roles == Roles(("d",), (), ())  # x or nothing says something
    assert remarks == [
        ("column left out", "a is left out: all rows have the value 'x'"),
        ("column left out", "b is left out: each row has a category of its own, as an identifier has"),
        ("column left out", "c is left out: it is empty"),
        ("column left out", "e is left out: all rows have the value 7"),
    ]
    roles, remarks = choose_roles(frame, categorical=["a", "d"], continuous=["e"], date=[])
    assert roles == Roles(("d",), (), ()) and "a is left out, although it is named: all rows" in remarks[0][1]
    text = refusal(choose_roles, frame, ["b"])
    assert text.startswith("column b: as categorical, each of its 40 rows has a category of its own") and "take b out" in text
    assert choose_roles(frame.head(30), ["b"])[0].categorical == ("b",)


def test_a_slip_in_a_column_of_numbers_is_reported():
    roles, remarks = choose_roles(table(price=[*(str(i % 25 + 0.5) for i in range(99)), "12a"]))
    assert roles.categorical == ("price",)
    assert remarks == [
        ("nearly a number", "price is categorical, since 1 of its values are not numbers, such as '12a' in row 101")
    ]


@pytest.mark.parametrize(
    "roles, wanted",
    [
        ({"categorical": ["a", "z"]}, "categorical: no column z; columns found: a, b"),
        ({"categorical": ["a"], "continuous": ["a"]}, "column a is named as both categorical and continuous"),
        ({"date": ["a", "a"]}, "column a is named as date twice"),
        ({"continuous": "a"}, "continuous: 'a'\n  wanted: a list of names of columns, or auto"),
        ({"continuous": ["b"]}, "row 3, column b: 'x' is not a number"),
        ({"date": ["b"]}, "row 3, column b: 'x' is not a date"),
    ],
)
def test_wrong_roles_are_refused(roles, wanted):
    assert wanted in refusal(lambda: choose_roles(table(a=["1", "2", "3"], b=["2013-01-05", "x", "2013-01-07"]), **roles))


def test_a_column_that_occurs_twice_is_refused():
    assert "column a: this name occurs twice" in refusal(choose_roles, pd.DataFrame([[1, 2]], columns=["a", "a"]))


# Joins


def left() -> pd.DataFrame:
    return table(shop=["3", "1", "2", "1", ""], date=["2013-01-05", "2013-01-06", "2013-01-05", "2013-01-05", "2013-01-05"])


def test_a_join_keeps_rows_and_order():
    right = pd.DataFrame({"shop": [1, 2, 9], "size": [10, 20, 90], "open": [True, False, True], "kind": ["a", "b", "c"]})
    found, remarks = join(left(), right, Join("stores.csv", ("shop",)))
    assert found.index.tolist() == [2, 3, 4, 5, 6] and found.columns.tolist() == ["shop", "date", "size", "open", "kind"]
    assert found["shop"].tolist() == left()["shop"].tolist()
    assert found["size"].fillna(-1).tolist() == [-1, 10, 20, 10, -1] and str(found["size"].dtype) == "Int64"
    assert found["kind"].fillna("").tolist() == ["", "a", "b", "a", ""] and str(found["open"].dtype) == "boolean"
    assert remarks == [("rows without a partner", "2 of 5 rows have no partner in stores.csv")]
    assert join(left(), right, Join("stores.csv", ("shop",), ("kind",)))[0].columns.tolist() == ["shop", "date", "kind"]


def test_keys_of_several_columns_and_types():
    right = pd.DataFrame(
        {"shop": [1.0, 1.0, 3.0], "date": pd.to_datetime(["2013-01-05", "2013-01-06", "2013-01-05"]), "rain": [0.5, 1.5, 2.5]}
    )
    spec = Join("weather.parquet", ("shop", "date"))
    wanted = [2.5, 1.5, math.nan, 0.5, math.nan]
    np.testing.assert_array_equal(join(left(), right, spec)[0]["rain"].to_numpy(float), wanted)
    np.testing.assert_array_equal(numbers(join(left(), through_csv(right), spec)[0]["rain"]), wanted)
    other = right.assign(date=right["date"].dt.strftime("%d.%m.%Y"))
    np.testing.assert_array_equal(join(left(), other, spec)[0]["rain"].to_numpy(float), wanted)


def test_texts_are_compared_as_texts_and_numbers_as_numbers():
    spec = Join("codes.csv", ("zip",))
    frame = table(zip=["007", "7"])
    assert join(frame, table(zip=["7"], town=["b"]), spec)[0]["town"].fillna("").tolist() == ["", "b"]
    assert join(frame, pd.DataFrame({"zip": [7], "town": ["b"]}), spec)[0]["town"].tolist() == ["b", "b"]


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 8)), min_size=1, max_size=30),
    st.lists(st.integers(0, 8), min_size=1, max_size=8, unique=True),
)
@QUICK
def test_a_join_is_a_look_up(keys, known):
    frame, right = (
        table(key=[None if key is None else str(key) for key in keys]),
        table(key=known, value=[f"v{key}" for key in known]),
    )
    wanted = [f"v{key}" if key in known else None for key in keys]
    if not any(wanted):
        assert "right.csv: no row has a partner on key" in refusal(join, frame, right, Join("right.csv", ("key",)))
        return
    found, remarks = join(frame, right, Join("right.csv", ("key",)))
    assert [value if isinstance(value, str) else None for value in found["value"]] == wanted
    assert found.index.equals(frame.index) and len(remarks) == (None in wanted)


@pytest.mark.parametrize(
    "right, spec, wanted",
    [
        ({"shop": ["1", 2, 1.0]}, Join("s.csv", ("shop",)), "s.csv: the key shop '1' occurs 2 times, in rows 2, 4"),
        ({"shop": ["1"], "date": ["x"]}, Join("s.csv", ("shop",)), "s.csv, column date: the table has a column of this name"),
        ({"store": ["1"]}, Join("s.csv", ("shop",)), "s.csv: no column shop; columns found: store"),
        ({"store": ["1"]}, Join("s.csv", ("store",)), "the table, to join s.csv: no column store; columns found: shop, date"),
        ({"shop": ["1"]}, Join("s.csv", ("shop",), ("size",)), "s.csv: no column size"),
        (
            {"shop": ["A", "B"]},
            Join("s.csv", ("shop",)),
            "s.csv: no row has a partner on shop: the table has '3', the file 'A'",
        ),
        ({"shop": ["1"]}, Join("s.csv", ()), "s.csv: joined on no column"),
    ],
)
def test_joins_that_cannot_be_are_refused(right, spec, wanted):
    assert wanted in refusal(join, left(), table(**right), spec)


def test_keys_that_are_missing_in_the_other_table_never_match():
    right = table(shop=["", "", "1"], size=["0", "0", "5"])
    assert join(left(), right, Join("s.csv", ("shop",)))[0]["size"].fillna("").tolist() == ["", "5", "", "5", ""]


# Elapsed


def slow_elapsed(frame: pd.DataFrame, window: int) -> list[list[float]]:
    """The same as `add_elapsed` by comparing each row with all others."""
    since, until, last, following = found = [[], [], [], []]
    for _, row in frame.iterrows():
        own = frame[(frame["shop"] == row["shop"]) & (frame["event"] == "1")]["date"]
        days = [(pd.Timestamp(date) - pd.Timestamp(row["date"])).days for date in own] if row["shop"] and row["date"] else []
        since.append(min((-day for day in days if day <= 0), default=math.nan))
        until.append(min((day for day in days if day >= 0), default=math.nan))
        known = row["shop"] and row["date"]
        last.append(len({day for day in days if -window < day <= 0}) if known else math.nan)
        following.append(len({day for day in days if 0 <= day < window}) if known else math.nan)
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(1, 9), st.sampled_from(["0", "1", ""])), max_size=30),
    st.integers(0, 12),
)
@QUICK
def test_elapsed_is_what_a_slow_loop_finds(rows, window):
    frame = table(shop=[row[0] for row in rows], date=[f"2013-01-0{row[1]}" for row in rows], event=[row[2] for row in rows])
    found = add_elapsed(frame, "date", "event", "shop", window=window)
    names = ["days since event", "days until event"]
    names += [f"event in the {which} {window} days" for which in ("last", "next")] if window else []
    assert list(found)[3:] == names
    for name, slow in zip(names, slow_elapsed(frame, window), strict=False):
        np.testing.assert_array_equal(found[name], np.array(slow, float))
    assert found[["shop", "date", "event"]].equals(frame) and found["days since event"].dtype == float


def test_rows_of_one_date_share_the_answer():
    frame = table(shop=["a"] * 3, date=["2013-01-05", "2013-01-05", "2013-01-07"], promo=[False, True, False])
    found = add_elapsed(frame, "date", "promo", "shop")
    assert found["days since promo"].tolist() == [0, 0, 2]
    assert found["days until promo"].fillna(-1).tolist() == [0, 0, -1]
    missing = add_elapsed(table(shop=["a", "a"], date=["", "2013-01-05"], promo=["1", "TRUE"]), "date", "promo", "shop")
    assert missing["days since promo"].fillna(-1).tolist() == [-1, 0]


def test_an_event_may_be_any_of_some_values():
    frame = table(shop=["a"] * 3, date=["2013-01-05", "2013-01-06", "2013-01-08"], holiday=["a", "0", "b"])
    found = add_elapsed(frame, "date", "holiday", "shop", values=["a", "c"], window=2)
    assert found["days since holiday"].tolist() == [0, 1, 3]
    assert found["holiday in the last 2 days"].tolist() == [1, 1, 0]
    assert found["holiday in the next 2 days"].tolist() == [1, 0, 0]


def test_wrong_events_are_refused():
    frame = table(shop=["a", "a"], date=["2013-01-05", "2013-01-06"], promo=["1", "maybe"])
    assert "row 3, column promo: 'maybe' is not an event" in refusal(add_elapsed, frame, "date", "promo", "shop")
    assert "row 3, column promo: '2'" in refusal(add_elapsed, frame.assign(promo=["1", "2"]), "date", "promo", "shop")
    assert "elapsed: no column day; columns found: shop, date, promo" in refusal(add_elapsed, frame, "day", "promo", "shop")
    again = frame.assign(**{"days since promo": 0})
    assert "elapsed: there is a column days since promo already" in refusal(add_elapsed, again, "date", "promo", "shop")


# Disguised targets


@pytest.fixture(scope="module")
def noise() -> pd.DataFrame:
    return typed(400, 3)


def test_honest_columns_are_not_suspected(noise):
    rng = np.random.default_rng(1)
    assert disguised_target(noise, ROLES, rng.normal(size=400)) == []
    assert disguised_target(noise, ROLES, rng.choice(["a", "b", "c"], 400)) == []
    assert disguised_target(noise, ROLES, np.array(["a"] * 400)) == [] and disguised_target(noise, ROLES, np.ones(400)) == []
    price = noise["price"].fillna(0).to_numpy()
    noisy = np.where(np.arange(400) == 7, -1e3, price)  # one exception
    assert disguised_target(noise, ROLES, noisy) == []


def test_a_column_in_the_targets_order_is_found(noise):
    price = noise["price"].fillna(noise["price"].min() - 1).to_numpy()
    for target in (np.exp(price / 50), -price):
        assert disguised_target(noise, ROLES, target) == [
            "column price looks like the target: its values have the target's order without an exception"
            " (Spearman's correlation is 1 or -1)"
        ]
    pairs = noise.assign(stock=np.arange(400) // 2)
    assert disguised_target(pairs, ROLES, np.arange(400.0)) == []  # nearly the target's order: a value has two targets
    elapsed = dates(noise["seen"].fillna(pd.Timestamp("2000-01-01"))).astype(float)
    assert [text.split()[1] for text in disguised_target(noise, ROLES, elapsed)] == ["seen"]


def test_a_column_that_names_the_label_is_found(noise):
    shops = categories(noise["shop"]).fillna("none")
    labels = shops.map({"shop 0": "x", "shop 1": "x"}).fillna("y").to_numpy(object)
    assert disguised_target(noise, ROLES, labels) == [
        "column shop looks like the target: each of its 6 values goes with a single target"
    ]
    assert len(disguised_target(noise, ROLES, np.where(labels == "x", 1.5, 2.5))) == 1
    stock = noise.assign(stock=np.arange(400) // 2)
    odd = np.where(np.arange(400) // 2 % 2, "odd", "even")
    assert [text.split()[1] for text in disguised_target(stock, ROLES, odd)] == ["stock"]
    assert disguised_target(stock.assign(stock=np.arange(400)), ROLES, odd) == []  # a value for each row says nothing


def test_a_column_that_is_missing_for_one_label_is_found(noise):
    labels = np.where(noise["price"].isna(), "no", "yes")
    text = "column price looks like the target: it is missing in all rows with one target, and in no other row"
    assert disguised_target(noise, ROLES, labels) == [text]
    assert disguised_target(noise, ROLES, np.where(labels == "no", 0.0, 1.0)) == [text]
    labels[0] = "no" if labels[0] == "yes" else "yes"
    assert disguised_target(noise, ROLES, labels) == []
