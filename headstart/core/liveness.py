"""Which of a project's runs are alive: each holds an flock, which any kind of death releases.

A record names its own path. In a copy of the project it names the original's record, whose lock decides.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alive(root: Path, kind: str, name: str, *, until_forgotten: bool = False) -> Iterator[None]:
    """Hold an flock in a run's name while the block runs. A file that is left unlocked means that its process died.

    Args:
        root: the project.
        kind: whose run it is, such as "mlflow".
        name: the name of the run's record there. Enter the block before the record is made.
        until_forgotten: a run that ends without `forget` counts as dead, because its end could not be recorded.
    """
    path = record(root, kind, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(os.fsencode(path.resolve()))
        stream.flush()
        temporary.replace(path)  # the file gets its name only once it is locked
        try:
            yield
        finally:
            if not until_forgotten:
                path.unlink(missing_ok=True)


def dead(root: Path, kind: str) -> list[str]:
    """Return the names of the runs of a kind whose process died before they ended; each stays listed until `forget`."""
    return [path.name.removeprefix(f"{kind}-") for path in sorted(_folder(root).glob(f"{kind}-*")) if not _locked(path)]


def forget(root: Path, kind: str, name: str) -> None:
    """Remove a dead run from the list, because its end has been recorded."""
    record(root, kind, name).unlink(missing_ok=True)


def record(root: Path, kind: str, name: str) -> Path:
    """Return the file whose flock shows that a run is alive."""
    return _folder(root) / f"{kind}-{name}"


def _folder(root: Path) -> Path:
    return root / ".headstart" / "alive"


def _locked(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            original = Path(os.fsdecode(stream.read()))
    except BlockingIOError:
        return True
    except FileNotFoundError:  # it has just ended
        return True
    return original != path.resolve() and original.is_file() and _locked(original)
