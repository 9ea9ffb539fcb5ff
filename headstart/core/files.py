"""Atomic writes and checksums. Every file that the project keeps is written here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.core.errors import InputError, OfTheMachine

logger = logging.getLogger("headstart")


def sha256_bytes(data: bytes) -> str:
    """Return the hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, which is read in a stream."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


FULL = (errno.ENOSPC, errno.EDQUOT)


def no_space(
    path: Path, wanted: int | None = None, fix: str = "free space, then run again; finished stages are kept"
) -> OfTheMachine:
    """Return the error for a full disk; `wanted` is the number of bytes that did not fit, if it is known."""
    more = f", {wanted:,} more bytes were needed" if wanted is not None else ""
    return OfTheMachine(f"{path}: no space left on this disk{more}", fix=fix)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to the disk and rename it to `path`.

    An exception leaves `path` as it was and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically.

    Raises:
        InputError: the disk is full.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.errno in FULL:
            raise no_space(path, len(data)) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as canonical JSON to `path` atomically."""
    write_text(path, canonical_json(value))


def write_checked_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as canonical JSON with its own SHA-256 in it, for `read_checked_json`."""
    write_json(path, {**value, "sha256": sha256_bytes(canonical_json(value).encode())})


def read_checked_json(path: Path) -> dict[str, Any]:
    """Read what `write_checked_json` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        if value.pop("sha256") == sha256_bytes(canonical_json(value).encode()):
            return value
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run the pipeline first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise InputError(f"{path} is damaged: its checksum does not match", fix="delete it and run the pipeline again")


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def swap_in(new: Path, target: Path, trash: Path) -> None:
    """Replace `target` by the file or folder `new` with renames; the old one exists until the new one does.

    `new`, `target` and `trash` must lie on one file system.

    Raises:
        FileNotFoundError: `new` does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if new.is_dir() and (target.exists() or target.is_symlink()):
        trash.mkdir(parents=True, exist_ok=True)
        old = trash / target.name
        remove(old)
        os.replace(target, old)  # a folder cannot be replaced in one rename
        os.replace(new, target)
        remove(old)
    else:
        os.replace(new, target)
    fsync(target.parent)


def remove(path: Path) -> None:
    """Delete a file, a link (never its target) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Return how many bytes an unprivileged process may still write on `path`'s file system."""
    return shutil.disk_usage(path).free


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an flock on `path`. While another process holds it, log which one, and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            logger.info("%s is held by process %s: waiting until it ends", what, stream.read().strip() or "unknown")
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
