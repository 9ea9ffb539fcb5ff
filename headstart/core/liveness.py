"""Which of the runs that were started in a project still live: each holds an flock, which death of any kind releases."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alive(root: Path, kind: str, name: str, *, until_forgotten: bool = False) -> Iterator[None]:
    """Hold an flock in a run's name while the block runs; what is left of it unlocked tells of a dead process.

    Args:
        root: the project.
        kind: whose run it is, such as "mlflow".
        name: what its record there can be found by. Enter the block before the record is made.
        until_forgotten: a run that ends without `forget` counts as dead: its end could not be recorded.
    """
    path = record(root, kind, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        temporary.replace(path)  # it has its name only once it is locked
        try:
            yield
        finally:
            if not until_forgotten:
                path.unlink(missing_ok=True)


def dead(root: Path, kind: str) -> list[str]:
    """Names of the runs of a kind whose process died before they ended; each stays listed until `forget`."""
    return [path.name.removeprefix(f"{kind}-") for path in sorted(_folder(root).glob(f"{kind}-*")) if not _locked(path)]


def forget(root: Path, kind: str, name: str) -> None:
    """Take a dead run off the list: its end has been recorded."""
    record(root, kind, name).unlink(missing_ok=True)


def record(root: Path, kind: str, name: str) -> Path:
    """The file whose flock says that a run lives."""
    return _folder(root) / f"{kind}-{name}"


def _folder(root: Path) -> Path:
    return root / ".headstart" / "alive"


def _locked(path: Path) -> bool:
    try:
        with path.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it ended just now
        return True
    return False
