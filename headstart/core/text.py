"""Make text from outside, such as file names, safe to show."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10


def printable(text: str) -> str:
    """Return a file's name as it may be printed: nothing in it can forge a line or move the cursor."""
    text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")  # bytes that are not UTF-8
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listing(items: Sequence[str]) -> str:
    """Return up to ten items, one per line, and how many more there are."""
    more = [f"… and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
    return "\n    ".join([*map(printable, items[:SHOWN]), *more])
