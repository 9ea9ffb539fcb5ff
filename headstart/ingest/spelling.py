"""Names of classes and groups without what nobody sees: white space at the ends, no-break spaces, invisible characters."""

from __future__ import annotations

import functools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

JOINERS = "\u200c\u200d"  # which Persian, Hindi and emoji need between their signs
BLACK_FLAG = "\U0001f3f4"  # begins the flags of England, Scotland, …, whose letters are invisible tags
# Of category Cf and seen: number signs and the like before digits, and what arranges hieroglyphs, shorthand and notes.
SEEN = frozenset(
    [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)]
    + [*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)]
)


@functools.lru_cache(maxsize=65_536)  # asked of the same names again and again
def clean(text: str) -> str:
    """A name without white space at its ends and without invisible characters; other kinds of spaces become plain ones.

    Joiners stay between two signs that are not both ASCII, tags stay in a flag.
    """
    if text.isascii():
        return text.strip()
    kept: list[str] = []
    for place, sign in enumerate(text):
        category = unicodedata.category(sign)
        if category == "Zs":
            kept.append(" ")
        elif category != "Cf" or ord(sign) in SEEN or _is_needed(text, place, kept):
            kept.append(sign)
    return "".join(kept).strip()


def _is_needed(text: str, place: int, before: list[str]) -> bool:
    """Whether an invisible character changes what is seen, or how it is read."""
    sign = text[place]
    if "\U000e0020" <= sign <= "\U000e007f":
        return bool(before) and (before[-1] == BLACK_FLAG or "\U000e0020" <= before[-1] <= "\U000e007e")
    if sign not in JOINERS or not before or place + 1 == len(text):
        return False
    left, right = before[-1], text[place + 1]
    return not any(_is_blank(one) for one in (left, right)) and not (left.isascii() and right.isascii())


def _is_blank(sign: str) -> bool:
    return sign.isspace() or unicodedata.category(sign) == "Cf"


def fold(name: str) -> str:
    """What names have in common that differ in case, spaces, joiners or Unicode's normal form only."""
    plain = " ".join("".join(sign for sign in clean(name) if sign not in JOINERS).split())
    return unicodedata.normalize("NFC", plain).casefold()


@dataclass(frozen=True)
class Spellings:
    """How names are spelled in a source.

    Args:
        changed: (as spelled, as read, how often) of names that lose something.
        clashes: (as read, all its spellings) of names that are spelled in several ways.
    """

    changed: list[tuple[str, str, int]]
    clashes: list[tuple[str, list[str]]]


def spellings(names: Iterable[str]) -> Spellings:
    """Look at all names of one kind, each as often as it occurs."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    by_name: dict[str, list[str]] = defaultdict(list)
    for spelled in sorted(counts):
        by_name[clean(spelled)].append(spelled)
    changed = [(spelled, clean(spelled), counts[spelled]) for spelled in sorted(counts) if clean(spelled) != spelled]
    return Spellings(changed, [(name, several) for name, several in sorted(by_name.items()) if len(several) > 1])
