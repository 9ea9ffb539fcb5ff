"""Remove what nobody can see from names of classes and groups: outer white space, no-break spaces, invisible characters."""

from __future__ import annotations

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji need these between their characters
BLACK_FLAG = "\U0001f3f4"  # the first character of the flags of England, Scotland, …; invisible tags follow
# Visible characters of category Cf: signs before numbers, and those that arrange hieroglyphs, shorthand and notes.
SEEN = frozenset(
    [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)]
    + [*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)]
)


@functools.lru_cache(maxsize=65_536)  # the same names come again and again
def clean(text: str) -> str:
    """Remove outer white space and invisible characters from a name, and replace other kinds of spaces by plain ones.

    Joiners stay between two characters that are not both ASCII; tags stay in a flag.
    """
    if text.isascii():
        return text.strip()
    kept: list[str] = []
    for index, sign in enumerate(text):
        category = unicodedata.category(sign)
        if category == "Zs":
            kept.append(" ")
        elif category != "Cf" or ord(sign) in SEEN or _is_needed(text, index, kept):
            kept.append(sign)
    return "".join(kept).strip()


def _is_needed(text: str, index: int, before: list[str]) -> bool:
    """Return whether an invisible character changes how the text looks or is read."""
    sign = text[index]
    if "\U000e0020" <= sign <= "\U000e007f":
        return bool(before) and (before[-1] == BLACK_FLAG or "\U000e0020" <= before[-1] <= "\U000e007e")
    if sign not in JOINERS or not before or index + 1 == len(text):
        return False
    left, right = before[-1], text[index + 1]
    return not any(_is_blank(one) for one in (left, right)) and not (left.isascii() and right.isascii())


def _is_blank(sign: str) -> bool:
    return sign.isspace() or unicodedata.category(sign) == "Cf"


def fold(name: str) -> str:
    """Return the same text for names that differ only in case, spaces, joiners or Unicode's normal form."""
    plain = " ".join("".join(sign for sign in clean(name) if sign not in JOINERS).split())
    return unicodedata.normalize("NFC", plain).casefold()


@dataclass(frozen=True)
class Spellings:
    """How names are spelled in a source.

    Args:
        changed: (spelled, read, count) of names that `clean` changes.
        clashes: (read, all spellings) of names that are spelled in several ways.
    """

    changed: list[tuple[str, str, int]]
    clashes: list[tuple[str, list[str]]]


def spellings(names: Iterable[str]) -> Spellings:
    """Collect the spellings of all names of one kind; each is counted as often as it occurs."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    by_name: dict[str, list[str]] = defaultdict(list)
    for spelled in sorted(counts):
        by_name[clean(spelled)].append(spelled)
    changed = [(spelled, clean(spelled), counts[spelled]) for spelled in sorted(counts) if clean(spelled) != spelled]
    return Spellings(changed, [(name, several) for name, several in sorted(by_name.items()) if len(several) > 1])
