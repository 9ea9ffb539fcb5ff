"""Encode a table's columns, and write them beside the activations: one row a key, in the same kind of file.

Shape legend: n rows, m numbers, k categories.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headstart.activations.cache import Block, checksum, row_keys
from headstart.activations.store import write_shards
from headstart.columns.checks import disguised_target
from headstart.columns.encoders import Encoders, fit_encoders
from headstart.columns.roles import choose_roles
from headstart.core.errors import InputError
from headstart.core.params import Data
from headstart.core.text import printable
from headstart.manifest import own_columns

logger = logging.getLogger("headstart")
CHUNK = 65_536


def write_columns(folder: Path, manifest: pd.DataFrame, data: Data) -> dict[str, int]:
    """Fit encoders to the training rows alone, encode all rows, and write them; without columns to learn from, do nothing.

    The files also say how joined columns and days between events were made, to make them again for new rows.

    Args:
        folder: of the Arrow files.
        manifest: with the source's own columns.
        data: params.yaml, section data.

    Returns:
        The number of columns of each role, for the stage's summary.

    Raises:
        InputError: a column does not exist or cannot be used, or the same image has two rows that differ.
    """
    asked = data.columns
    if not (asked.categorical or asked.continuous or asked.date):
        return {}
    about = {
        "joins": [one.model_dump() for one in data.joins],
        "elapsed": [one.model_dump() for one in data.elapsed],
        "split_by": data.split_by,
    }
    own = own_columns(manifest).set_axis(manifest["path"].str.removeprefix("row "), axis=0)
    train = (manifest["split"] == "train").to_numpy()
    roles, remarks = choose_roles(own[train], asked.categorical, asked.continuous, asked.date)
    for _, text in remarks:
        logger.info("  %s", printable(text))
    if not roles.names:
        raise InputError("data.columns: no column is left to learn from", wanted="at least one that differs between rows")
    _warn_of_target(own[train], roles, manifest.loc[train, "label"])
    encoders = fit_encoders(own[train], roles)
    once = (~manifest["key"].duplicated()).to_numpy()
    order = np.argsort(manifest["key"].to_numpy()[once], kind="stable")
    keys, table = manifest["key"].to_numpy()[once][order], own[list(roles.names)][once].iloc[order]
    _refuse_two_rows(manifest, own[list(roles.names)])
    valid = (manifest["split"] == "valid").to_numpy()
    unknown = (encoders.encode(own[valid]).codes == 0).mean(0) if valid.any() else np.zeros(len(encoders.cardinalities))
    meta = {"encoders": encoders.as_dict(), "unknown": [round(float(share), 4) for share in unknown], **about}
    width = len(encoders.continuous_names) + len(encoders.cardinalities)
    write_shards(folder, _blocks(encoders, keys, table), (width,), "float32", meta)
    return {role: len(names) for role, names in roles.as_dict().items()}


def encoded_rows(encoders: Encoders, frame: pd.DataFrame) -> np.ndarray:
    """Return rows as a head takes them: numbers, then codes, [n, m + k] float32.

    Raises:
        InputError: a column is missing, or a value cannot be used.
    """
    found = encoders.encode(frame)
    return np.concatenate([found.numbers, found.codes.astype(np.float32)], axis=1)


def _blocks(encoders: Encoders, keys: np.ndarray, table: pd.DataFrame) -> Iterator[Block]:
    for start in range(0, len(keys), CHUNK):
        values = np.ascontiguousarray(encoded_rows(encoders, table.iloc[start : start + CHUNK]))
        named = row_keys(list(keys[start : start + CHUNK]), [0])
        rows = values.view(np.uint8)
        sums = np.array([checksum(name, row) for name, row in zip(named.tolist(), rows, strict=True)], np.uint64)
        yield Block(named, sums, rows)


def _warn_of_target(train: pd.DataFrame, roles: Any, labels: pd.Series) -> None:
    numbers = pd.to_numeric(labels, errors="coerce")
    target = numbers.to_numpy(float) if numbers.notna().all() and labels.nunique() > 30 else labels.to_numpy(dtype=object)
    for text in disguised_target(train, roles, target):
        logger.warning("  %s; if it is not known beforehand, leave it out of data.columns", text)


def _refuse_two_rows(manifest: pd.DataFrame, table: pd.DataFrame) -> None:
    """Refuse the same image with two different rows: its columns are found by its content."""
    copies = manifest["key"].duplicated(keep=False).to_numpy()
    if not copies.any():
        return
    rows = table[copies].astype("str").assign(key=manifest.loc[copies, "key"].to_numpy())
    different = rows.drop_duplicates()
    twice = different["key"].duplicated(keep=False)
    if twice.any():
        names = ", ".join(printable(str(name)) for name in different.index[twice][:4])
        raise InputError(
            f"the same image with different columns, in {int(twice.sum()):,} rows: {names}, …",
            wanted="one row for each image",
            fix="remove the copies, or make their columns equal",
        )
