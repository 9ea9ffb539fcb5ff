"""What earlier scans on this machine found, so that a rescan of unchanged files reads nothing but their status.

A file is taken for unchanged while device, inode, size, mtime and ctime are what they were when it was read.
One changed so shortly before it was read that a further change might leave the same times is not remembered.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import xxhash

FINE_NS, COARSE_NS = 20_000_000, 2_000_000_000  # times of a file are at least this fine: by kernel ticks, or seconds


class ScanState:
    """A sqlite table: absolute path to the file's status and the answer given then. Make it with `scan_state`.

    Args:
        database: an open connection.
        namespace: what answers depend on beside the file; others' answers are not seen.
    """

    def __init__(self, database: sqlite3.Connection, namespace: str) -> None:
        self.database, self.namespace = database, namespace
        database.execute("PRAGMA synchronous = OFF")  # after a power failure the checks below find the damage
        (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        columns = "path TEXT PRIMARY KEY, stamp TEXT, namespace TEXT, answer TEXT, checksum TEXT"
        database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns})")

    def known(self, files: Iterable[tuple[str, os.stat_result]]) -> list[dict[str, Any] | None]:
        """For each file the answer given when it had this status, or None."""
        query = "SELECT path, stamp, namespace, answer, checksum FROM files WHERE namespace = ?"
        rows = {row[0]: row for row in self.database.execute(query, (self.namespace,))}
        answers: list[dict[str, Any] | None] = []
        for path, status in files:
            row = rows.get(path)
            sound = row is not None and row[1] == stamp(status) and row[4] == _checksum(row[:4])
            answers.append(orjson.loads(row[3]) if row is not None and sound else None)
        return answers

    def remember(self, answers: Iterable[tuple[str, os.stat_result, dict[str, Any]]], now_ns: int) -> None:
        """Keep answers, but for files changed just before `now_ns`, the time their status was taken."""
        rows = [
            (path, stamp(status), self.namespace, orjson.dumps(answer).decode())
            for path, status, answer in answers
            if not _is_recent(status, now_ns)
        ]
        with self.database:
            self.database.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", [(*row, _checksum(row)) for row in rows]
            )

    def forget(self, paths: Iterable[str]) -> None:
        """Drop what is known of some files."""
        with self.database:
            self.database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])


def stamp(status: os.stat_result) -> str:
    """The parts of a file's status that change when it does."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, parts))


def _checksum(row: Sequence[str]) -> str:
    return xxhash.xxh3_64_hexdigest("\0".join(row).encode())


def _is_recent(status: os.stat_result, now_ns: int) -> bool:
    fine = status.st_ctime_ns % 1_000_000_000  # some file systems count whole seconds
    return status.st_ctime_ns > now_ns - (FINE_NS if fine else COARSE_NS)


@contextmanager
def scan_state(path: Path, namespace: str) -> Iterator[ScanState]:
    """The state kept at `path`, made anew when it is damaged: nothing is lost by that but time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        database = sqlite3.connect(path)
        state = ScanState(database, namespace)
    except sqlite3.DatabaseError:
        path.unlink()
        database = sqlite3.connect(path)
        state = ScanState(database, namespace)
    try:
        yield state
    finally:
        database.close()
