"""Recognise the layout of a source folder: which of its files are images, of which class and split."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from posixpath import basename

import pandas as pd

from headstart.core.text import SHOWN, listing, printable
from headstart.images.kinds import extension, is_named_as_image, why_ignored, why_sidecar
from headstart.ingest.labels import NAMES, Labels, labels_file, read_labels
from headstart.ingest.problems import Problem
from headstart.ingest.spelling import clean, fold, spellings
from headstart.ingest.tree import Tree

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
SET = re.compile(r"[ _-]?(set|images|imgs|data)$")  # training_set, testset, train-images
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
NONE = "none"
LEADING_WORD = r"^.+?(?=[._ -]?\d)"  # cat.123.jpg, american_bulldog_12.jpg
OUTSIDE_CLASSES = "a file outside the class folders"


@dataclass(frozen=True)
class Entry:
    """One file to learn from. Split and group are empty if the source names none."""

    path: str
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """What every file of a source is.

    Args:
        entries: images, in path order.
        stray: (path, reason) of files to quarantine without reading them.
        ignored: (path, reason) of files that are no part of the data set.
        warned: (path, kind, text) of notes about single files.
        remarks: (path, kind, text) of notes about the source, its folders or its labels file.
        problems: the reasons to refuse the source.
        uncounted: files that are not named like images. If they are none, they do not count as unusable.
        extra: other columns of a labels file, indexed by path.
    """

    entries: list[Entry] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    warned: list[tuple[str, str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    uncounted: frozenset[str] = frozenset()
    extra: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Layout:
    """The place of the classes in a source.

    Args:
        base: the folder that holds them, with a slash; empty for the source itself.
        splits: the split of each folder that is one, by path.
        flat: those of these folders whose files have no labels, because they are not in class folders.
    """

    base: str
    splits: dict[str, str]
    flat: frozenset[str] = frozenset()

    def top(self, path: str) -> str:
        """Return the folder directly below the base that holds a path, or an empty string."""
        return self.base + path[len(self.base) :].partition("/")[0] if path.startswith(self.base) else ""

    def depth(self) -> int:
        """Return how many folders are above the class folders."""
        return self.base.count("/") + bool(self.splits)


def list_source(tree: Tree, *, label_pattern: str = NONE, group_pattern: str = NONE, nested_folders: bool = False) -> Listing:
    """Recognise a source's layout and list its files. All faults of the layout are in `problems`.

    With a label pattern, each file's name gives its label. Otherwise labels.csv or labels.parquet is used if it exists.
    Otherwise a folder train/ (with valid/ or test/, or as the only one) holds class folders, or else the source's own
    sub-folders are the classes. With a label pattern, too, such folders are splits. A single sub-folder that holds all
    of this is entered.

    Args:
        tree: the folder's files.
        label_pattern: a regular expression to search for in the file's name; its first group, or the whole match, is the label.
        group_pattern: the same for the path relative to the source; images of one group stay in one split.
        nested_folders: whether folders inside a class folder belong to its class; otherwise they are a problem.

    Raises:
        InputError: the labels file is faulty.
    """
    found = Listing()
    base = _entered(tree)
    labels = labels_file(tree, base)
    if labels is not None and label_pattern != NONE:
        text = f"{labels} gives the labels, but data.label_pattern {label_pattern!r} is set too"
        found.problems.append(Problem(text, fix="keep one of the two", accept="data.label_pattern=none"))
    if labels is not None:
        _by_labels_file(tree, found, read_labels(labels, tree, base))
    elif label_pattern != NONE:
        _by_pattern(tree, found, _layout(tree, found, base), label_pattern)
    else:
        _by_folders(tree, found, _layout(tree, found, base), nested_folders)
    if group_pattern != NONE:
        _group(tree, found, group_pattern)
    _clean_groups(found)
    found.entries.sort(key=lambda entry: entry.path)
    if base:
        found.remarks.append((base, "layout", f"it is the only folder and holds the classes: {base} was entered"))
    _clean_labels(tree, found, folders=labels is None and label_pattern == NONE)
    _check_classes(tree, found, folders=labels is None and label_pattern == NONE)
    if labels is None:
        _check_number_of_classes(tree, found, base, label_pattern)
    elif len({entry.label for entry in found.entries}) < 2:
        _refuse_number_of_classes(tree, found, "", "")
    _warn_of_twins(found)
    assert len(found.entries) + len(found.stray) + len(found.ignored) == len(tree.files)
    return found


def _folders_in(tree: Tree, base: str) -> list[str]:
    """Return the folders directly below a folder, except those of an operating system."""
    inner = (folder for folder in tree.folders if folder.startswith(base) and "/" not in folder[len(base) :])
    return [folder for folder in inner if not why_ignored([basename(folder)], "")]


def _images_in(tree: Tree, base: str) -> bool:
    """Return whether files named like images are directly below a folder."""
    inner = (path for path in tree.files if path.startswith(base) and "/" not in path[len(base) :])
    return any(is_named_as_image(basename(path)) for path in inner)


def _entered(tree: Tree) -> str:
    """Return the single folder, with a slash, that holds everything: no images beside it, classes in it. Else return ""."""
    base, wrapper = "", ""
    while len(folders := _folders_in(tree, base)) == 1 and _split_of(folders[0]) is None:
        if _images_in(tree, base) or any(base + name in tree.files for name in NAMES):
            break
        base = f"{folders[0]}/"
        if any(base + name in tree.files for name in NAMES) or (
            not _images_in(tree, base)
            and (len(inner := _folders_in(tree, base)) > 1 or "train" in [_split_of(folder) for folder in inner])
        ):
            wrapper = base
            break
    return wrapper


def _split_of(folder: str) -> str | None:
    """Return the split that a folder's name means, or None."""
    return SPLIT_FOLDERS.get(SET.sub("", clean(basename(folder)).lower()))


def _layout(tree: Tree, found: Listing, base: str) -> Layout:
    folders = _folders_in(tree, base)
    splits = {folder: split for folder in folders if (split := _split_of(folder)) is not None}
    if "train" not in splits.values() or len(folders) > len(splits) == 1:  # a single train/ beside other folders is a class
        return Layout(base, {})
    for split in sorted(set(splits.values())):
        same = [folder for folder in sorted(splits) if splits[folder] == split]
        if len(same) > 1:
            text = f"{tree.root}: both {' and '.join(map(printable, same))}"
            found.problems.append(Problem(text, fix=f"keep one folder of {split} images"))

    def classes(split: str) -> set[str]:
        return {clean(basename(one)) for folder in splits if splits[folder] == split for one in _folders_in(tree, f"{folder}/")}

    # no labels if no folder inside is a class of train, as in test/unknown/ or test/test/
    flat = (folder for folder, split in splits.items() if split != "train" and not classes(split) & classes("train"))
    return Layout(base, splits, frozenset(flat))


def _by_labels_file(tree: Tree, found: Listing, labels: Labels) -> None:
    found.extra, found.remarks = labels.extra, [*found.remarks, *labels.remarks]
    found.entries = [Entry(row.path, row.label, row.split, row.group) for row in labels.rows]
    listed = {row.path for row in labels.rows}
    for path in tree.files:
        if path not in listed:
            sidecar = path != labels.name and why_sidecar(basename(path))
            found.ignored.append((path, sidecar or ("the list of labels" if path == labels.name else f"not in {labels.name}")))


def _by_pattern(tree: Tree, found: Listing, layout: Layout, pattern: str) -> None:
    for path in tree.files:
        *folders, name = path.split("/")
        reason = why_ignored(folders, name) or why_sidecar(name)
        label = _match(pattern, name)
        if reason:
            found.ignored.append((path, reason))
        elif clean(label):
            found.entries.append(Entry(path, label, layout.splits.get(layout.top(path), "")))
        else:
            found.stray.append((path, f"its name does not match data.label_pattern {pattern!r}"))
    _set_uncounted(found)


def _match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        return ""
    return str(match[1] or "") if match.re.groups else match[0]


def _by_folders(tree: Tree, found: Listing, layout: Layout, nested_folders: bool) -> None:
    depth = layout.depth()
    nested: list[str] = []
    flat: Counter[str] = Counter()
    for path in tree.files:
        *folders, name = path.split("/")
        top = layout.top(path)
        reason = why_ignored(folders, name) or why_sidecar(name)
        if not reason and layout.splits and len(folders) >= depth and top not in layout.splits:
            reason = f"outside {', '.join(layout.splits)}"
        if not reason and top in layout.flat:
            flat[top] += 1
            reason = f"no label: no folder in {top} is a class of train"
        if reason:
            found.ignored.append((path, reason))
        elif len(folders) <= depth or not path.startswith(layout.base):
            found.stray.append((path, OUTSIDE_CLASSES))
        else:
            found.entries.append(Entry(path, folders[depth], layout.splits.get(top, "")))
            if len(folders) > depth + 1:
                nested.append(path)
    _set_uncounted(found)
    for folder, number in sorted(flat.items()):
        text = f"{number:,} files have no labels (no class of train): ignored, {layout.splits[folder]} is split off from train"
        found.remarks.append((folder, "layout", f"{text}; python -m flows.predict --images can classify them later"))
    if nested and not nested_folders:
        found.problems.append(
            Problem(
                f"{tree.root}: folders inside class folders:\n    {listing(nested)}",
                wanted="images directly below their class folder",
                fix="move the images up, list them in a labels.csv, or set data.nested_folders: true",
                accept="data.nested_folders=true",
            )
        )
    _check_empty_folders(tree, found, layout)


def _set_uncounted(found: Listing) -> None:
    """Do not count files without an extension, which may be anything, unless all files are without one."""
    paths = [entry.path for entry in found.entries]
    bare = {path for path in paths if not extension(basename(path))}
    strays = {path for path, _ in found.stray if not extension(basename(path))}
    found.uncounted = frozenset(strays | (bare if len(bare) < len(paths) else set()))


def _check_empty_folders(tree: Tree, found: Listing, layout: Layout) -> None:
    depth = layout.depth()
    filled = {"/".join(entry.path.split("/")[: depth + 1]) for entry in found.entries}
    empty = []
    for folder in tree.folders:
        parts = folder.split("/")
        is_class = len(parts) == depth + 1 and folder.startswith(layout.base)
        top = layout.top(folder)
        of_split = not layout.splits or (top in layout.splits and top not in layout.flat)
        if is_class and of_split and not why_ignored(parts, ""):
            empty += [folder] if folder not in filled else []
    if empty:
        lines = [f"class folder {folder} in {tree.root}: no images in it{_ignored_in(found, folder)}" for folder in empty]
        found.problems.append(Problem(listing(lines), fix="fill or remove it" if len(empty) == 1 else "fill or remove them"))


def _ignored_in(found: Listing, folder: str) -> str:
    kinds = extensions(path for path, _ in found.ignored if not folder or path.startswith(f"{folder}/"))
    return f", and {shown_kinds(kinds)} ignored" if kinds else ""


def extensions(paths: Iterable[str]) -> Counter[str]:
    """Count the files of each extension, and those without one."""
    return Counter(extension(basename(path)) or "without extension" for path in paths)


def shown_kinds(kinds: Counter[str]) -> str:
    """Return the counts of `extensions` in words, the most common first."""
    shown = [f"{number:,} {kind}" for kind, number in sorted(kinds.items(), key=lambda one: (-one[1], one[0]))]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN:,} more kinds" if len(shown) > SHOWN else "")


def _group(tree: Tree, found: Listing, pattern: str) -> None:
    if any(entry.group for entry in found.entries):
        text = f"{tree.root}: the labels file has a column group, but data.group_pattern {pattern!r} is set too"
        found.problems.append(Problem(text, fix="keep one of the two", accept="data.group_pattern=none"))
        return
    found.entries = [replace(entry, group=_match(pattern, entry.path)) for entry in found.entries]
    for entry in found.entries:
        if not clean(entry.group):
            found.warned.append((entry.path, "no group", f"data.group_pattern {pattern!r} matches nothing in its path"))


def _clean_groups(found: Listing) -> None:
    """Treat all spellings of a group as one group: keeping images together can never leak."""
    spelled = spellings(entry.group for entry in found.entries)
    found.remarks += [("", "group spelling", f"{was!r} is read as {name!r} ({n:,} files)") for was, name, n in spelled.changed]
    if spelled.changed:
        found.entries = [replace(entry, group=clean(entry.group)) for entry in found.entries]


def _clean_labels(tree: Tree, found: Listing, folders: bool) -> None:
    """Make each label its clean name, and refuse two spellings of one."""
    spelled = spellings(entry.label for entry in found.entries)
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
        found.entries = [replace(entry, label=clean(entry.label)) for entry in found.entries]


def _check_classes(tree: Tree, found: Listing, folders: bool) -> None:
    first = {entry.label: entry.path for entry in reversed(found.entries)}
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


def _check_number_of_classes(tree: Tree, found: Listing, base: str, label_pattern: str) -> None:
    """Refuse fewer than two classes, and name a setting that gives more of them."""
    if len({entry.label for entry in found.entries}) > 1:
        return
    if label_pattern != NONE:
        other = Listing()
        _by_folders(tree, other, _layout(tree, other, base), True)
        accept = "data.label_pattern=none" if len({entry.label for entry in other.entries}) > 1 else ""
        _refuse_number_of_classes(tree, found, f" by data.label_pattern {label_pattern!r}", accept)
        return
    paths = [entry.path for entry in found.entries] + [path for path, _ in found.stray]
    labels = [_match(LEADING_WORD, basename(path)) for path in paths if is_named_as_image(path)]
    accept = f"data.label_pattern={LEADING_WORD}" if "" not in labels and 1 < len(set(labels)) <= len(labels) / 2 else ""
    _refuse_number_of_classes(tree, found, "", accept)


def _refuse_number_of_classes(tree: Tree, found: Listing, how: str, accept: str) -> None:
    label = found.entries[0].label if found.entries else ""
    what = f"only one class ({label!r}){how}" if found.entries else f"no images in class folders{how}"
    stray = f" (the first of {len(found.stray):,} files without a class: {found.stray[0][0]!r})" if found.stray else ""
    found.problems.append(
        Problem(
            f"data.source {tree.root}: {what}{_ignored_in(found, '') if not found.entries else ''}",
            wanted="a folder per class (two or more), or train/ valid/ test/ of them, or labels.csv,"
            " or data.label_pattern if the files' names contain the class",
            fix=f"sort the images into class folders, or list them in a labels.csv{stray}",
            accept=accept,
        )
    )


def _warn_of_twins(found: Listing) -> None:
    """Warn of names that differ only in Unicode's normal form: they are the same file on some systems."""
    twins: dict[str, list[str]] = defaultdict(list)
    for path in _not_ascii(entry.path for entry in found.entries):
        twins[unicodedata.normalize("NFC", path)].append(path)
    for paths in twins.values():
        for path in paths[1:]:
            found.warned.append((path, "name twin", "another file's name differs only in Unicode's normal form (NFC, NFD)"))


def _not_ascii(paths: Iterable[str]) -> Iterable[str]:
    return (path for path in paths if not path.isascii())
