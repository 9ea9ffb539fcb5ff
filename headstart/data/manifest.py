"""The manifest: one row per readable file, with its content's hash, label and split."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.core.errors import InputError
from headstart.core.files import sha256_bytes, write_bytes
from headstart.core.progress import track
from headstart.data.decode import DecodeError, decode
from headstart.data.sources import SHOWN, SPLITS, Entry, Listing

HELD_OUT = "held_out"


@dataclass(frozen=True)
class Scan:
    """Manifest rows, what was quarantined as (path, reason), and how many files were ignored."""

    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    ignored: int


def scan(
    source: Path,
    listing: Listing,
    *,
    seed: int,
    valid_fraction: float,
    test_fraction: float,
    max_quarantined: float,
    max_pixels: int,
    workers: int,
) -> Scan:
    """Hash and fully decode every file of a listing, and give each image its split.

    Returns:
        The manifest has columns key (sha256 of the file's bytes), path, label, class_index, split
        (train, valid, test, or held_out), width, height, bytes, then the source's own extra columns.

    Raises:
        InputError: too many unreadable files, a class without a readable file, or the same bytes under
            two labels.
    """
    rows: list[dict[str, Any]] = []
    quarantine = list(listing.stray)
    for entry, result in _read_all(source, listing.entries, max_pixels, workers):
        if isinstance(result, str):
            quarantine.append((entry.path, result))
        else:
            rows.append(
                {"key": result[0], "path": entry.path, "label": entry.label, "declared": entry.split or ""}
                | {"height": result[1], "width": result[2], "bytes": result[3]}
                | dict(entry.extra)
            )
    _check_quarantine(source, listing, quarantine, max_quarantined, {row["label"] for row in rows})
    frame = pd.DataFrame(rows).fillna("")
    _check_labels(frame)
    classes = class_order(frame["label"])
    frame.insert(3, "class_index", frame["label"].map({label: i for i, label in enumerate(classes)}).astype("int32"))
    declared = set(frame["declared"]) - {""}
    frame.insert(
        4,
        "split",
        [
            _split(row_key, row_declared, declared, seed, valid_fraction, test_fraction)
            for row_key, row_declared in zip(frame["key"], frame["declared"], strict=True)
        ],
    )
    frame["split"] = _one_split_each(frame)
    _check_splits(source, frame)
    columns = ["path", "reason"]
    return Scan(frame.drop(columns="declared"), pd.DataFrame(sorted(quarantine), columns=columns), listing.ignored)


def class_order(labels: pd.Series) -> list[str]:
    """The one stored order of classes: by name, as text."""
    return sorted(set(labels))


def split_share(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the image's bytes alone: the same for ever."""
    digest = hashlib.sha256(f"split\0{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _split(key: str, own: str, declared: set[str], seed: int, valid_fraction: float, test_fraction: float) -> str:
    """A source's own split is kept; what it lacks is carved from train by hash."""
    if own in ("valid", "test"):
        return own
    share = split_share(seed, key)
    if "test" not in declared:
        if share < test_fraction:
            return "test"
        share -= test_fraction
    if "valid" not in declared and share < valid_fraction:
        return "valid"
    return "train"


def _one_split_each(frame: pd.DataFrame) -> list[str]:
    """Copies of one image that the source put into two splits: test keeps it before valid before train."""
    rank = {split: i for i, split in enumerate(SPLITS)}
    best = frame.assign(rank=frame["split"].map(rank)).groupby("key")["rank"].max()
    kept = frame["key"].map(best).to_numpy()
    return [split if rank[split] == keep else HELD_OUT for split, keep in zip(frame["split"], kept, strict=True)]


def _read_all(
    source: Path, entries: Sequence[Entry], max_pixels: int, workers: int
) -> Iterator[tuple[Entry, tuple[str, int, int, int] | str]]:
    def read(entry: Entry) -> tuple[str, int, int, int] | str:
        try:
            data = (source / entry.path).read_bytes()
            height, width, _ = decode(data, max_pixels).shape
        except DecodeError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {os.strerror(error.errno or 0)}"
        return sha256_bytes(data), height, width, len(data)

    with ThreadPoolExecutor(workers) as pool:
        yield from track(zip(entries, pool.map(read, entries), strict=True), "reading images", len(entries))


def _check_quarantine(
    source: Path, listing: Listing, quarantine: list[tuple[str, str]], limit: float, readable: set[str]
) -> None:
    total = len(listing.entries) + len(listing.stray)
    shown = "\n    ".join(f"{path!r}: {reason}" for path, reason in quarantine[:SHOWN])
    if len(quarantine) > limit * total:
        raise InputError(
            f"{len(quarantine)} of {total} files in {source} cannot be used:\n    {shown}",
            wanted=f"at most {limit:.1%} (data.max_quarantined)",
            fix="mend or remove these files, or raise data.max_quarantined",
        )
    emptied = {entry.label for entry in listing.entries} - readable
    if emptied:
        raise InputError(f"no readable file is left of class {', '.join(sorted(emptied))} in {source}:\n    {shown}")


def _check_labels(frame: pd.DataFrame) -> None:
    labels = frame.groupby("key")["label"].nunique()
    clashing = frame[frame["key"].isin(labels[labels > 1].index)].sort_values(["key", "path"])
    if len(clashing):
        pairs = "\n    ".join(f"{row.path!r} is {row.label!r}" for row in clashing.head(SHOWN).itertuples())
        raise InputError(f"the same image has two labels:\n    {pairs}", fix="keep one of each pair")


def _check_splits(source: Path, frame: pd.DataFrame) -> None:
    counts = Counter(frame["split"])
    for split in SPLITS:
        if not counts[split]:
            raise InputError(
                f"{source}: no image fell into the {split} split ({len(frame)} images in all)",
                wanted="at least one in each of train, valid, test",
                fix="add images, or raise data.valid_fraction / data.test_fraction",
            )
    missing = set(frame["label"]) - set(frame.loc[frame["split"] == "train", "label"])
    if missing:
        raise InputError(f"{source}: no training image of class {', '.join(sorted(missing)[:SHOWN])}", fix="add images")


def write_manifest(path: Path, frame: pd.DataFrame) -> None:
    """Write the manifest as Parquet: equal frames give equal bytes."""
    table = pa.Table.from_pandas(frame.sort_values("path"), preserve_index=False).replace_schema_metadata(None)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_manifest(path: Path) -> pd.DataFrame:
    """Read a manifest written by `write_manifest`.

    Raises:
        InputError: no such file, or not a manifest.
    """
    try:
        frame = pq.read_table(path).to_pandas()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run link_data first, or the whole pipeline") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: damaged: {error}", fix="python -m flows.pipeline --force link_data") from None
    missing = {"key", "path", "label", "class_index", "split"} - set(frame.columns)
    if missing:
        raise InputError(f"{path}: columns {', '.join(sorted(missing))} are missing")
    return frame


def write_quarantine(path: Path, frame: pd.DataFrame) -> None:
    """Write the quarantine list as CSV; a cell can start no spreadsheet formula."""
    safe = frame.map(lambda cell: f"'{cell}" if str(cell)[:1] in "=+-@\t\r" and cell else cell)
    write_bytes(path, safe.to_csv(index=False, lineterminator="\n").encode())
