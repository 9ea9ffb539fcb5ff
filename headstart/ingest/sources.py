"""List the files of a source: which are images, with which label, split and group."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from posixpath import basename

import pandas as pd

from headstart.core.params import Data
from headstart.core.text import SHOWN, listing
from headstart.images.kinds import extension, is_named_as_image, why_ignored, why_sidecar
from headstart.ingest.label_checks import check_classes, clean_groups, clean_labels
from headstart.ingest.labels import USUAL_NAMES, Labels, TableColumns, labels_file, read_labels
from headstart.ingest.layouts import Layout, entered, find_layout
from headstart.ingest.listing import Entry, Listing
from headstart.ingest.problems import Problem
from headstart.ingest.spelling import clean
from headstart.ingest.tables import add_columns
from headstart.ingest.time_order import by_time
from headstart.ingest.tree import Tree
from headstart.targets.labels import AS_SHOWN, NONE, BadLabel, LabelFormat

LEADING_WORD = r"^.+?(?=[._ -]?\d)"  # cat.123.jpg, american_bulldog_12.jpg
OUTSIDE_CLASSES = "a file outside the class folders"


def list_source(
    tree: Tree,
    *,
    label_pattern: str = NONE,
    group_pattern: str = NONE,
    nested_folders: bool = False,
    labels: LabelFormat = AS_SHOWN,
    names: TableColumns = USUAL_NAMES,
) -> Listing:
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
        labels: how labels are written, as far as it is known.
        names: which table has the labels, and what its columns are called.

    Raises:
        InputError: the labels file is faulty.
    """
    found = Listing()
    base = entered(tree)
    table = labels_file(tree, base, names.file)
    if table is not None and label_pattern != NONE:
        text = f"{table} gives the labels, but data.label_pattern {label_pattern!r} is set too"
        found.problems.append(Problem(text, fix="keep one of the two", accept="data.label_pattern=none"))
    if table is not None:
        inside = table.relative_to(tree.root).as_posix()
        _by_labels_file(tree, found, read_labels(table, tree, inside.rpartition("/")[0] + "/" * ("/" in inside), labels, names))
    elif label_pattern != NONE:
        _by_pattern(tree, found, find_layout(tree, base, found.problems), label_pattern)
    else:
        _by_folders(tree, found, find_layout(tree, base, found.problems), nested_folders)
    if table is None and labels.columns:
        text = f"data.label_columns is set, but {tree.root} has no table"
        found.problems.append(Problem(text, wanted="labels.csv or labels.parquet", accept="data.label_columns=[]"))
    if table is None:
        _read_entries(found, labels)
    if group_pattern != NONE:
        _group(tree, found, group_pattern)
    clean_groups(found)
    found.entries.sort(key=lambda entry: entry.path)
    if base:
        found.remarks.append((base, "layout", f"it is the only folder and holds the classes: {base} was entered"))
    clean_labels(tree, found, folders=table is None and label_pattern == NONE)
    check_classes(tree, found, folders=table is None and label_pattern == NONE)
    if too_few := found.format.too_few(entry.label for entry in found.entries):
        _refuse_labels(tree, found, too_few, *_other_way(tree, found, base, label_pattern, table is not None))
    _warn_of_twins(found)
    assert len(found.entries) + len(found.stray) + len(found.ignored) == len(tree.files)
    return found


def list_as_set(tree: Tree, data: Data) -> Listing:
    """List a source as params.yaml, section data, says; see `list_source`.

    Raises:
        InputError: the labels file is faulty, a further table cannot be joined, or a date cannot be used.
    """
    found = list_source(
        tree,
        label_pattern=data.label_pattern,
        group_pattern=data.group_pattern,
        nested_folders=data.nested_folders,
        labels=LabelFormat(data.target, data.label_separator, tuple(data.label_columns)),
        names=TableColumns(data.labels_file, data.path_column, data.label_column, data.group_column),
    )
    if data.joins or data.elapsed:
        found.extra, remarks = add_columns(found.extra, tree, data.joins, data.elapsed, data.split_by)
        found.remarks += remarks
    if data.split_by != NONE:
        table = found.extra.reindex([entry.path for entry in found.entries])  # without a table there are no columns
        declared = pd.Series([entry.split for entry in found.entries], table.index)
        assigned = by_time(table, data.split_by, declared, data.valid_fraction, data.test_fraction)
        found.entries = [replace(entry, split=split, group="") for entry, split in zip(found.entries, assigned, strict=True)]
    return found


def _by_labels_file(tree: Tree, found: Listing, labels: Labels) -> None:
    found.extra, found.remarks, found.format = labels.extra, [*found.remarks, *labels.remarks], labels.format
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


def _read_entries(found: Listing, labels: LabelFormat) -> None:
    """Read the labels that folders or names give, which are classes unless another kind is asked for."""
    found.format = labels.settled("", ()) if labels.kind != "auto" or labels.separator != NONE else found.format
    read: list[Entry] = []
    for entry in found.entries:
        try:
            read.append(replace(entry, label=found.format.read(entry.label)))
        except BadLabel as error:
            found.stray.append((entry.path, f"its label is {error.found}, not {error.wanted or 'usable'}"))
    found.entries = read


def _other_way(tree: Tree, found: Listing, base: str, label_pattern: str, table: bool) -> tuple[str, str]:
    """Return how the labels were found, in words, and a setting that gives more of them; both may be empty."""
    if table:
        return "", ""
    if label_pattern != NONE:
        other = Listing()
        _by_folders(tree, other, find_layout(tree, base, other.problems), True)
        accept = "data.label_pattern=none" if len({entry.label for entry in other.entries}) > 1 else ""
        return f" by data.label_pattern {label_pattern!r}", accept
    paths = [entry.path for entry in found.entries] + [path for path, _ in found.stray]
    labels = [_match(LEADING_WORD, basename(path)) for path in paths if is_named_as_image(path)]
    found_in_names = "" not in labels and 1 < len(set(labels)) <= len(labels) / 2
    return "", f"data.label_pattern={LEADING_WORD}" if found_in_names else ""


def _refuse_labels(tree: Tree, found: Listing, what: str, how: str, accept: str) -> None:
    """Refuse labels that give nothing to learn, and name a setting that gives more of them."""
    stray = f" (the first of {len(found.stray):,} files without a class: {found.stray[0][0]!r})" if found.stray else ""
    found.problems.append(
        Problem(
            f"data.source {tree.root}: {what}{how}{_ignored_in(found, '') if not found.entries else ''}",
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
