"""Marks on disk for the work that remains after the stages, so that it is not lost if the process dies in between."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from headstart.core.files import write_bytes

What = Literal["record", "register"]


def note(root: Path, what: What) -> None:
    """Mark that a record in MLflow, or a model's registration, remains to be done."""
    if not is_due(root, what):
        write_bytes(_mark(root, what), b"")


def is_due(root: Path, what: What) -> bool:
    """Return whether the work remains to be done."""
    return _mark(root, what).exists()


def settle(root: Path, what: What) -> None:
    """Remove the mark: the work is done."""
    _mark(root, what).unlink(missing_ok=True)


def _mark(root: Path, what: What) -> Path:
    return root / ".headstart" / "pending" / what
