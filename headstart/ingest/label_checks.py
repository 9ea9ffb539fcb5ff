"""Clean the names of classes and groups, and find those that may be the same."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from headstart.ingest.listing import Listing
from headstart.ingest.problems import Problem
from headstart.ingest.spelling import clean, fold, spellings
from headstart.ingest.tree import Tree

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def clean_groups(found: Listing) -> None:
    """Treat all spellings of a group as one group: keeping images together can never leak."""
    spelled = spellings(entry.group for entry in found.entries)
    found.remarks += [("", "group spelling", f"{was!r} is read as {name!r} ({n:,} files)") for was, name, n in spelled.changed]
    if spelled.changed:
        found.entries = [replace(entry, group=clean(entry.group)) for entry in found.entries]


def clean_labels(tree: Tree, found: Listing, folders: bool) -> None:
    """Make each class its clean name, and refuse two spellings of one."""
    form = found.format
    spelled = spellings(name for entry in found.entries for name in form.classes(entry.label))
    what = "class folders" if folders else "labels"
    for name, several in spelled.clashes:
        both = " and ".join(map(repr, several))
        text = f"{tree.root}: {what} {both} differ only in white space or invisible characters"
        found.problems.append(Problem(text, wanted=f"one spelling of {name!r}", fix="rename one, or put their images together"))
    if folders and any(not name for _, name, _ in spelled.changed):
        text = f"{tree.root}: the name of a class folder is only white space or invisible characters"
        found.problems.append(Problem(text, fix="rename it"))
    found.remarks += [("", "label spelling", f"{was!r} is read as {name!r} ({n:,} files)") for was, name, n in spelled.changed]
    if spelled.changed:
        # a kind of space that becomes a plain one may separate classes
        cleaned = (
            form.write(part for name in form.classes(entry.label) for part in form.classes(clean(name)))
            for entry in found.entries
        )
        found.entries = [replace(entry, label=label) for entry, label in zip(found.entries, cleaned, strict=True)]


def check_classes(tree: Tree, found: Listing, folders: bool) -> None:
    """Refuse classes that only some systems tell apart, or warn of them."""
    first = {name: entry.path for entry in reversed(found.entries) for name in found.format.classes(entry.label)}
    folded: dict[str, str] = {}
    for label in sorted(first):
        twin = folded.setdefault(fold(label), label)
        if twin == label:
            continue
        how = "differ only in case, inner white space or Unicode's normal form"
        if folders:
            text = f"{tree.root}: classes {_distinct(twin, label)} {how}"
            found.problems.append(Problem(text, fix="rename one, or put their images together"))
        else:
            found.warned.append((first[label], "label twin", f"its label and another one, {_distinct(label, twin)}, {how}"))
    numbers: dict[float, str] = {}
    for label in sorted(label for label in first if NUMBER.fullmatch(label)):
        twin = numbers.setdefault(float(label), label)
        if twin != label:
            text = f"its label and another one, {label!r} and {twin!r}, are the same number"
            found.warned.append((first[label], "label twin", text))


def _distinct(one: str, other: str) -> str:
    """Return two names so that their difference is visible."""
    shown = repr if unicodedata.normalize("NFC", one) != unicodedata.normalize("NFC", other) else ascii
    return f"{shown(one)} and {shown(other)}"
