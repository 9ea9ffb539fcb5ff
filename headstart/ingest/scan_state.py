"""The results of earlier scans on this machine, so that a new scan reads only the status of unchanged files.

A file counts as unchanged if device, inode, size, mtime and ctime are the same as when it was read. A file that changed
just before it was read is not remembered, because another change might leave the same times.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import xxhash

logger = logging.getLogger("headstart")

FINE_NS, COARSE_NS = 20_000_000, 2_000_000_000  # the resolution of file times: kernel ticks, or whole seconds
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last one: the tables are not ours
SECONDS_TO_WAIT = 30.0  # for another process's transaction


class ScanState:
    """A sqlite table from a file's absolute path to its status and the answer. `scan_state` makes it.

    Args:
        database: an open connection.
        namespace: a hash of all that answers depend on, except the file; answers of other namespaces are not used.
    """

    def __init__(self, database: sqlite3.Connection, namespace: str) -> None:
        self.database, self.namespace = database, namespace
        database.text_factory = bytes  # the checksum finds damaged text
        database.execute("PRAGMA synchronous = OFF")  # after a power failure the checks below find the damage
        (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if sound != b"ok":
            raise sqlite3.DatabaseError(sound)
        columns = "path TEXT PRIMARY KEY, stamp TEXT, namespace TEXT, answer TEXT, checksum TEXT"
        database.execute(f"CREATE TABLE IF NOT EXISTS files ({columns})")
        query = "SELECT path, stamp, namespace, answer, checksum FROM files WHERE namespace = ?"
        self.rows = {row[0]: row for row in database.execute(query, (namespace,))}

    def known(self, files: Iterable[tuple[str, os.stat_result]]) -> list[dict[str, Any] | None]:
        """Return for each file the answer of an earlier scan in which it had this status, or None."""
        answers: list[dict[str, Any] | None] = []
        for path, status in files:
            row = self.rows.get(path.encode())
            sound = row is not None and row[1] == stamp(status).encode() and row[4] == _checksum(row[:4])
            answers.append(orjson.loads(row[3]) if row is not None and sound else None)
        return answers

    def remember(self, answers: Iterable[tuple[str, os.stat_result, dict[str, Any]]], now_ns: int) -> None:
        """Keep answers, except for files that changed just before `now_ns`, the time at which their status was read."""
        rows = [
            (path, stamp(status), self.namespace, orjson.dumps(answer).decode())
            for path, status, answer in answers
            if not _is_recent(status, now_ns)
        ]
        signed = [(*row, _checksum([part.encode() for part in row]).decode()) for row in rows]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", signed)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop the answers for some files."""
        self._write("DELETE FROM files WHERE path = ?", [[path] for path in paths])

    def _write(self, statement: str, rows: Sequence[Sequence[str]]) -> None:
        try:
            with self.database:
                self.database.executemany(statement, rows)
        except sqlite3.OperationalError as error:  # no space, or another process's lock
            logger.warning("  the next scan must read these files again, because the results could not be stored: %s", error)


def stamp(status: os.stat_result) -> str:
    """Return the parts of a file's status that change with the file."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, parts))


def _checksum(row: Sequence[object]) -> bytes:
    """Return a row's checksum; a damaged row may hold anything."""
    parts = [part if isinstance(part, bytes) else b"damaged" for part in row]
    return xxhash.xxh3_64_hexdigest(b"\0".join(parts)).encode()


def _is_recent(status: os.stat_result, now_ns: int) -> bool:
    fine = status.st_ctime_ns % 1_000_000_000  # some file systems count whole seconds
    return status.st_ctime_ns > now_ns - (FINE_NS if fine else COARSE_NS)


@contextmanager
def scan_state(path: Path, namespace: str) -> Iterator[ScanState]:
    """Open the state at `path`. A damaged one is replaced, which only costs time.

    If it cannot be used (another process holds it, no space, no permission), the scan works without it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    state = _open(path, namespace)
    with closing(state.database):
        yield state


def _open(path: Path, namespace: str) -> ScanState:
    try:
        return _opened(str(path), namespace)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", DAMAGED[0]) & 0xFF not in DAMAGED:
            logger.warning("  %s cannot be used (%s), so every file is read", path, error)
            return _opened(":memory:", namespace)
    for name in (path, path.with_name(f"{path.name}-journal")):
        name.unlink(missing_ok=True)
    return _opened(str(path), namespace)


def _opened(name: str, namespace: str) -> ScanState:
    with ExitStack() as opened:
        database = opened.enter_context(closing(sqlite3.connect(name, timeout=SECONDS_TO_WAIT)))
        state = ScanState(database, namespace)
        opened.pop_all()  # success: the connection stays open
    return state
