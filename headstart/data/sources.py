"""The layouts a source folder may have: which of its files are images of which class and split."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from headstart.core.errors import InputError
from headstart.data.kinds import why_ignored
from headstart.data.labels import labels_file, read_labels
from headstart.data.tree import Tree, listing

SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
NONE = "none"


@dataclass(frozen=True)
class Entry:
    """One file to learn from; split and group are empty where the source names none."""

    path: str
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """What every file of a source is taken for.

    Args:
        entries: images, in path order.
        stray: (path, reason) of files to be quarantined unread.
        ignored: (path, reason) of files that are none of ours.
        warned: (path, kind, text).
        extra: further columns of a labels file, indexed by path.
    """

    entries: list[Entry] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    warned: list[tuple[str, str, str]] = field(default_factory=list)
    extra: pd.DataFrame = field(default_factory=pd.DataFrame)


def list_source(tree: Tree, *, label_pattern: str = NONE, group_pattern: str = NONE, nested_folders: bool = False) -> Listing:
    """Tell a source's layout and list its files by it.

    With a label pattern, each file's name tells its label. Else a folder with labels.csv or labels.parquet
    is read by it; else folders train/ (with valid/ or test/, or as the only one) hold class folders; else the folder's
    own sub-folders are the classes. With a label pattern too, such folders are splits.

    Args:
        tree: the folder's files.
        label_pattern: a regular expression searched in the file's name; its first group, or all of the match, is the label.
        group_pattern: likewise in the path relative to the source, for the group that is never split apart.
        nested_folders: whether folders inside a class folder belong to its class; refused otherwise.

    Raises:
        InputError: no class, one class only, an empty class folder, nested folders, class folders whose
            names differ in case only, or a faulty labels file.
    """
    found = Listing()
    labels = labels_file(tree)
    if label_pattern != NONE:
        if labels is not None:
            raise InputError(f"{labels}: and data.label_pattern {label_pattern!r} is set too", fix="keep one of the two")
        _by_pattern(tree, found, label_pattern)
    elif labels is not None:
        rows, found.extra = read_labels(labels, tree)
        found.entries = [Entry(row.path, row.label, row.split, row.group) for row in rows]
        listed = {row.path for row in rows}
        found.ignored = [
            (path, "the list of labels" if path == labels.name else f"not in {labels.name}")
            for path in tree.files
            if path not in listed
        ]
    else:
        _by_folders(tree, found, nested_folders)
    if group_pattern != NONE:
        _group(tree, found, group_pattern)
    found.entries.sort(key=lambda entry: entry.path)
    _check_classes(tree, found, folders=label_pattern == NONE and labels is None)
    _warn_of_twins(found)
    assert len(found.entries) + len(found.stray) + len(found.ignored) == len(tree.files)
    return found


def _split_folders(tree: Tree) -> dict[str, str]:
    """Top-level folders that are splits, and which; empty where the source is not split."""
    folders = [folder for folder in tree.folders if "/" not in folder and not why_ignored([folder], "")]
    top = {folder: SPLIT_FOLDERS[folder.lower()] for folder in folders if folder.lower() in SPLIT_FOLDERS}
    if "train" not in top.values() or len(folders) > len(top) == 1:  # train alone beside others is a class
        return {}
    for split in top.values():
        same = sorted(folder for folder in top if top[folder] == split)
        if len(same) > 1:
            raise InputError(f"{tree.root}: both {' and '.join(same)}", fix=f"keep one folder of {split} images")
    return top


def _by_pattern(tree: Tree, found: Listing, pattern: str) -> None:
    splits = _split_folders(tree)
    for path in tree.files:
        parts = path.split("/")
        reason = why_ignored(parts[:-1], parts[-1])
        label = _match(pattern, parts[-1])
        if reason:
            found.ignored.append((path, reason))
        elif label:
            found.entries.append(Entry(path, label, splits.get(parts[0], "") if len(parts) > 1 else ""))
        else:
            found.stray.append((path, f"its name does not match data.label_pattern {pattern!r}"))


def _match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        return ""
    return str(match[1] or "") if match.re.groups else match[0]


def _by_folders(tree: Tree, found: Listing, nested_folders: bool) -> None:
    splits = _split_folders(tree)
    depth = 1 if splits else 0
    nested: list[str] = []
    for path in tree.files:
        parts = path.split("/")
        reason = why_ignored(parts[:-1], parts[-1])
        if not reason and splits and len(parts) > 1 and parts[0] not in splits:
            reason = f"outside {', '.join(splits)}"
        if reason:
            found.ignored.append((path, reason))
        elif len(parts) < depth + 2:
            found.stray.append((path, "a file outside the class folders"))
        else:
            found.entries.append(Entry(path, parts[depth], splits.get(parts[0], "") if depth else ""))
            if len(parts) > depth + 2:
                nested.append(path)
    if nested and not nested_folders:
        raise InputError(
            f"{tree.root}: folders inside class folders:\n    {listing(nested)}",
            wanted="images right below their class folder",
            fix="move the images up, list them in a labels.csv, or set data.nested_folders: true",
        )
    _check_empty_folders(tree, found, splits, depth)


def _check_empty_folders(tree: Tree, found: Listing, splits: dict[str, str], depth: int) -> None:
    filled = {"/".join(entry.path.split("/")[: depth + 1]) for entry in found.entries}
    for folder in tree.folders:
        parts = folder.split("/")
        is_class = len(parts) == depth + 1 and (not splits or parts[0] in splits)
        if is_class and not why_ignored(parts, "") and folder not in filled:
            raise InputError(f"class folder {folder} in {tree.root}: no images in it", fix="fill or remove it")


def _group(tree: Tree, found: Listing, pattern: str) -> None:
    if any(entry.group for entry in found.entries):
        raise InputError(f"{tree.root}: a column group, and data.group_pattern {pattern!r} is set too", fix="keep one")
    found.entries = [Entry(e.path, e.label, e.split, _match(pattern, e.path)) for e in found.entries]
    for entry in found.entries:
        if not entry.group:
            found.warned.append((entry.path, "no group", f"data.group_pattern {pattern!r} matches nothing in its path"))


def _check_classes(tree: Tree, found: Listing, folders: bool) -> None:
    first = {entry.label: entry.path for entry in reversed(found.entries)}
    folded: dict[str, str] = {}
    for label in sorted(first):
        twin = folded.setdefault(unicodedata.normalize("NFC", label).casefold(), label)
        if twin != label and folders:
            raise InputError(
                f"{tree.root}: classes {twin!r} and {label!r} differ in case or in Unicode's normal form only",
                fix="rename one, or put their images together",
            )
        if twin != label:
            text = f"its label {label!r} and {twin!r} differ in case or in Unicode's normal form only"
            found.warned.append((first[label], "label twin", text))
    if len(first) < 2:
        what = f"one class only ({next(iter(first))!r})" if first else "no images in class folders"
        raise InputError(
            f"data.source {tree.root}: {what}",
            wanted="a folder per class (two or more), or train/ valid/ test/ of them, or labels.csv",
            fix=f"first of {len(found.stray):,} files that belong nowhere: {found.stray[0][0]!r}" if found.stray else "",
        )


def _warn_of_twins(found: Listing) -> None:
    """Names that only a Unicode normal form tells apart: fine here, one file on another system."""
    twins: dict[str, list[str]] = defaultdict(list)
    for path in _not_ascii(entry.path for entry in found.entries):
        twins[unicodedata.normalize("NFC", path)].append(path)
    for paths in twins.values():
        for path in paths[1:]:
            found.warned.append((path, "name twin", "another file's name differs in Unicode's normal form only (NFC, NFD)"))


def _not_ascii(paths: Iterable[str]) -> Iterable[str]:
    return (path for path in paths if not path.isascii())
