"""The per-image cache of activations: local to a machine, content-addressed, safe to delete at any time.

Each namespace (see namespace.py) is a folder with two append-only files: rows.bin holds rows of one size, and index.bin an
entry (image key, view, checksum) for each row. A batch's rows are written before its entries, so that a process killed at
any moment leaves a valid cache that lacks at most its last batch. Rows are checked when they are read. A damaged row is
computed again and appended; the last entry for a row counts.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from headstart.core.errors import InputError
from headstart.core.files import canonical_json, fsync, locked, no_space, sha256_bytes, write_text
from headstart.core.params import Params

TAG = "CACHEDIR.TAG"
TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir/
    "# Headstart's cache of activations, format 1. May be deleted at any time.\n"
)
ENTRY = np.dtype([("row_key", "S34"), ("checksum", "<u8")])  # row_key: SHA-256 of the image, then the view (big-endian)
BLOCK_BYTES = 32_000_000
PRUNE = "free space (python -m flows.cache prune), then run again; the activations computed so far are kept"
DELETE = "delete the folder, or set runtime.cache_dir to another folder"


def row_keys(keys: Iterable[str], views: Sequence[int]) -> NDArray[np.bytes_]:
    """Return the row keys [n * v] of each image key (hex) and, within it, each view."""
    tails = [view.to_bytes(2, "big") for view in views]
    return np.array([bytes.fromhex(key) + tail for key in keys for tail in tails], ENTRY["row_key"])


def split_row_key(row_key: bytes) -> tuple[str, int]:
    """Return the image key (hex) and the view of a row key."""
    padded = row_key.ljust(34, b"\0")  # numpy drops zeros at the end
    return padded[:32].hex(), int.from_bytes(padded[32:], "big")


def checksum(row_key: bytes, row: NDArray[np.uint8]) -> int:
    """Return the xxh3 of the row key and the row's bytes."""
    return xxhash.xxh3_64_intdigest(row.data, seed=xxhash.xxh3_64_intdigest(row_key.ljust(34, b"\0")))


def row_bytes(shape: Sequence[int], storage: str) -> int:
    """Return the size of one row in bytes."""
    return int(np.prod(shape)) * np.dtype(storage).itemsize


def split_blocks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Split row numbers into parts of about 32 MB; `size` is the bytes of one row."""
    return [rows[start : start + step] for step in [max(1, BLOCK_BYTES // size)] for start in range(0, len(rows), step)]


@dataclass(frozen=True)
class Block:
    """Consecutive rows: row keys [n], checksums [n] and the rows themselves as bytes [n, b]."""

    row_keys: NDArray[np.bytes_]
    checksums: NDArray[np.uint64]
    values: NDArray[np.uint8]


class Cache:
    """One namespace of the cache, open for reading; see `open_cache`.

    Args:
        folder: the namespace's folder.
        lock: the file that a process locks to write into the namespace.
        row_bytes: the size of a row.
    """

    def __init__(self, folder: Path, lock: Path, row_bytes: int) -> None:
        self.folder, self.lock, self.row_bytes = folder, lock, row_bytes
        self._appending = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Load what any process has appended since."""
        entries, rows = self.folder / "index.bin", self.folder / "rows.bin"
        for path in (entries, rows):
            path.touch()
        complete = min(entries.stat().st_size // ENTRY.itemsize, rows.stat().st_size // self.row_bytes)
        self.entries = np.fromfile(entries, ENTRY, complete)
        self._rows: NDArray[np.uint8] = np.empty((0, self.row_bytes), np.uint8)  # an empty file cannot be mapped
        if complete:
            self._rows = np.memmap(rows, np.uint8, "r", shape=(complete, self.row_bytes))
        self._order = np.argsort(self.entries["row_key"], kind="stable")
        self._sorted = self.entries["row_key"][self._order]

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the row numbers of row keys [n]; -1 for one that is missing."""
        if not len(self.entries):
            return np.full(len(wanted), -1)
        found = np.searchsorted(self._sorted, wanted, side="right") - 1  # the last of equal keys
        rows = self._order[np.maximum(found, 0)]
        return np.where((found >= 0) & (self.entries["row_key"][rows] == wanted), rows, -1)

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return rows by number as bytes [n, b], and whether each matches its checksum."""
        values: NDArray[np.uint8] = self._rows[rows]
        entries = self.entries[rows]
        pairs = zip(entries["row_key"].tolist(), values, strict=True)
        found = np.fromiter((checksum(row_key, row) for row_key, row in pairs), np.uint64, len(rows))
        return values, found == entries["checksum"]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the namespace for appending: wait for another process that appends, and load what it has added."""
        with locked(self.lock, f"the activations cache {self.folder}"):
            if not self.folder.exists():
                raise InputError(f"{self.folder}: was pruned during the run", fix="run again")
            self.refresh()
            self._count = len(self)
            with (self.folder / "rows.bin").open("r+b") as rows, (self.folder / "index.bin").open("r+b") as entries:
                self._files = (rows, entries)
                self._cut_tails()
                try:
                    yield
                finally:
                    self._cut_tails()
            fsync(self.folder)
        self.refresh()

    def _cut_tails(self) -> None:
        """Cut off an incomplete batch that a killed or failed writer has left."""
        for stream, size in zip(self._files, (self.row_bytes, ENTRY.itemsize), strict=True):
            stream.truncate(self._count * size)
            os.fsync(stream.fileno())

    def append(self, wanted: Sequence[bytes], values: NDArray[np.uint8]) -> None:
        """Append rows [n, b] for row keys [n], within `writing`, from any thread.

        Raises:
            InputError: the disk is full; the message names the space needed. The cache stays valid.
        """
        entries = np.array([(row_key, checksum(row_key, row)) for row_key, row in zip(wanted, values, strict=True)], ENTRY)
        parts = (np.ascontiguousarray(values).tobytes(), entries.tobytes())
        with self._appending:
            try:
                for stream, size, data in zip(self._files, (self.row_bytes, ENTRY.itemsize), parts, strict=True):
                    _write_at(stream.fileno(), data, self._count * size)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise no_space(self.folder, sum(map(len, parts)), PRUNE) from None
            self._count += len(values)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def open_root(root: Path) -> Path:
    """Return the cache's folder, and create it if it is missing.

    Raises:
        InputError: the folder cannot be written, or is not a cache of activations.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / TAG).exists():
            if any(not path.name.startswith(f".{TAG}.") for path in root.iterdir()):  # except another process's unfinished tag
                raise InputError(f"runtime.cache_dir: {root} is not empty and not a cache of activations", fix=DELETE)
            write_text(root / TAG, TAG_TEXT)
        if (root / TAG).read_text(errors="replace") != TAG_TEXT:
            raise InputError(
                f"runtime.cache_dir: {root} holds another format: its {TAG} is not that of Headstart's format 1", fix=DELETE
            )
        for name in ("rows", "locks", "users"):
            (root / name).mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_use(root, error) from None
    return root


def _cannot_use(root: Path, error: OSError) -> InputError:
    return InputError(
        f"runtime.cache_dir: {root} cannot be written: {error.strerror}",
        fix="correct the permissions, or set runtime.cache_dir to another folder",
    )


def open_cache(root: Path, name: str, description: Mapping[str, Any], row_bytes: int) -> Cache:
    """Open the namespace `name` of the cache at `root`, create it if it is missing, and mark it as used now.

    Raises:
        InputError: the cache cannot be written, or has another format.
    """
    folder = open_root(root) / "rows" / name
    try:
        folder.mkdir(exist_ok=True)
        if not (folder / "namespace.json").exists():
            write_text(folder / "namespace.json", canonical_json(description))
        if _json(folder / "namespace.json") != json.loads(canonical_json(description)):  # damaged: write it again
            write_text(folder / "namespace.json", canonical_json(description))
        os.utime(folder)
        cache = Cache(folder, root / "locks" / f"{name}.lock", row_bytes)
    except OSError as error:
        raise _cannot_use(root, error) from None
    return cache


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def record_use(root: Path, project: Path, names: Mapping[str, str], params: Params) -> None:
    """Record which namespaces (by cut) a project's parameters use, so that `prune` keeps them."""
    record = {"project": str(project), "params": params_digest(params), "namespaces": dict(names)}
    write_text(root / "users" / f"{xxhash.xxh3_64_hexdigest(str(project).encode())}.json", canonical_json(record))


def params_digest(params: Params) -> str:
    """Return a digest of the parameters that choose a namespace."""
    chosen = {"backbone": params.backbone.model_dump(), "precompute": params.precompute.model_dump()}
    return sha256_bytes(canonical_json(chosen).encode())
