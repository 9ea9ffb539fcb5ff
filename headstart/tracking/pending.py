"""What is still to be done once the stages are fresh: a mark on disk, so that a death in between loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from headstart.core.files import write_bytes

What = Literal["record", "register"]


def note(root: Path, what: What) -> None:
    """Something is to be recorded in MLflow, or a model to be judged for the registry."""
    if not is_due(root, what):
        write_bytes(_mark(root, what), b"")


def is_due(root: Path, what: What) -> bool:
    """Whether it is still to be done."""
    return _mark(root, what).exists()


def settle(root: Path, what: What) -> None:
    """It has been done."""
    _mark(root, what).unlink(missing_ok=True)


def _mark(root: Path, what: What) -> Path:
    return root / ".headstart" / "pending" / what
