"""What code and parameters this process started with, to notice when they change under a running stage."""

from __future__ import annotations

import hashlib
from pathlib import Path

FIRST_PARTY = ("headstart", "tasks", "flows")
SUFFIXES = (".py", ".j2")


def code_digest(root: Path) -> str:
    """Hex SHA-256 over every first-party source file below `root` (about 5 ms)."""
    digest = hashlib.sha256()
    for package in FIRST_PARTY:
        for path in sorted(path for path in (root / package).rglob("*") if path.suffix in SUFFIXES):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# Work at import, on purpose: it must happen before the rest of the code is imported, or an edit
# between the import and the hash would run as the old code and be committed as the new.
CODE_ROOT = Path(__file__).resolve().parents[2]
CODE_AT_START = code_digest(CODE_ROOT)
