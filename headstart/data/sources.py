"""What lies in a source folder: a walk that touches nothing, and the three layouts it may have."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headstart.core.errors import InputError

SPLITS = ("train", "valid", "test")
IGNORED_NAMES = ("Thumbs.db", ".DS_Store", "desktop.ini")
IGNORED_FOLDERS = (".ipynb_checkpoints", "__MACOSX")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
RESERVED = ("key", "class_index", "width", "height", "bytes", "declared")
SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """One file to learn from: its path relative to the source, its label, its split where the source names one."""

    path: str
    label: str
    split: str | None = None
    extra: tuple[tuple[str, str], ...] = ()


@dataclass
class Listing:
    """All entries of a source, and the files that are not entries."""

    entries: list[Entry] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)  # (path, reason): to be quarantined
    ignored: int = 0


def preflight(source: Path) -> None:
    """Refuse by lstat alone what would hang or mislead DVC and the scan; nothing is opened.

    Raises:
        InputError: no such folder, an empty one, or one with dangling links, linked sub-folders, FIFOs,
            sockets, devices, names that are not UTF-8, or a .dvcignore. All offenders are listed.
    """
    if not source.exists():
        link = f" (a link to {os.readlink(source)})" if source.is_symlink() else ""
        raise InputError(
            f"data.source {source}{link}: no such folder",
            wanted="a folder of class folders, of train/ valid/ test/, or with labels.csv",
            fix="ln -s /path/to/images data/NAME; then set data.source: data/NAME",
        )
    if not source.is_dir():
        raise InputError(f"data.source {source}: a file, not a folder", wanted="a folder; unpack archives first")
    offenders, count = [], 0
    for path in _lstat_walk(source.resolve()):
        count += 1
        reason = _offence(path)
        if reason:
            offenders.append(f"{os.fsencode(path).decode(errors='backslashreplace')}: {reason}")
    if offenders:
        shown = "\n    ".join(offenders[:SHOWN])
        more = f"\n    … and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
        raise InputError(f"data.source {source} holds what cannot be read safely:\n    {shown}{more}", fix="remove them")
    if not count:
        raise InputError(f"data.source {source}: the folder is empty", wanted="at least two folders of images")


def _lstat_walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        for name in (*names, *(name for name in folders if Path(folder, name).is_symlink())):
            yield Path(folder, name)


def _offence(path: Path) -> str | None:
    mode = path.lstat().st_mode
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    if stat.S_ISLNK(mode):
        try:
            target = path.stat().st_mode
        except OSError as error:
            return f"a link that leads nowhere ({error.strerror})"
        return "a linked sub-folder (link the whole source instead)" if stat.S_ISDIR(target) else None
    if not stat.S_ISREG(mode):
        return "not a regular file"
    return "DVC would drop files by it" if path.name == ".dvcignore" else None


def list_source(source: Path) -> Listing:
    """List a source's images by its layout, in path order.

    A folder with labels.csv is read by it; else folders train/ (with valid/ or test/) hold class
    folders; else the folder's own sub-folders are the classes.

    Raises:
        InputError: no class, one class only, an empty class folder, nested folders, or a faulty labels.csv.
    """
    if (source / "labels.csv").is_file():
        listing = _from_csv(source)
    elif (source / "train").is_dir() and any((source / name).is_dir() for name in SPLITS[1:]):
        listing = Listing()
        for split in SPLITS:
            if (source / split).is_dir():
                _from_class_folders(source, source / split, split, listing)
        _stray_files(source, source, listing)
    else:
        listing = Listing()
        _from_class_folders(source, source, None, listing)
    _check_classes(source, listing)
    listing.entries.sort(key=lambda entry: entry.path)
    return listing


def _from_class_folders(source: Path, parent: Path, split: str | None, listing: Listing) -> None:
    _stray_files(source, parent, listing)
    for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
        if folder.name in IGNORED_FOLDERS or folder.name.startswith("."):
            listing.ignored += sum(1 for path in folder.rglob("*") if path.is_file())
            continue
        before = len(listing.entries)
        for path in sorted(folder.iterdir()):
            _class_file(source, path, folder.name, split, listing)
        if len(listing.entries) == before:
            raise InputError(f"class folder {folder.relative_to(source)} in {source}: no images in it", fix="fill or remove it")


def _class_file(source: Path, path: Path, label: str, split: str | None, listing: Listing) -> None:
    relative = path.relative_to(source).as_posix()
    if _is_ignored(path):
        listing.ignored += 1
    elif path.is_dir():
        if any(child.is_file() for child in path.rglob("*")):
            raise InputError(
                f"folder {relative} in {source}: a folder inside a class folder",
                wanted="images right below their class folder",
                fix="move the images up, or list them in a labels.csv",
            )
        listing.ignored += 1
    else:
        listing.entries.append(Entry(relative, label, split))


def _stray_files(source: Path, folder: Path, listing: Listing) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if _is_ignored(path) or path.suffix.lower() not in EXTENSIONS:
            listing.ignored += 1  # a licence, a readme: not an image, nobody misses it
        else:
            listing.stray.append((path.relative_to(source).as_posix(), "an image outside the class folders"))


def _is_ignored(path: Path) -> bool:
    return path.name in IGNORED_NAMES or path.name.startswith("._") or path.name in IGNORED_FOLDERS


def _check_classes(source: Path, listing: Listing) -> None:
    labels = {entry.label for entry in listing.entries}
    folded: dict[str, str] = {}
    for label in sorted(labels):
        twin = folded.setdefault(label.casefold(), label)
        if twin != label:
            raise InputError(f"{source}: classes {twin!r} and {label!r} differ in case only", fix="rename one")
    if len(labels) < 2:
        found = f"one class only ({labels.pop()!r})" if labels else "no images in class folders"
        raise InputError(
            f"data.source {source}: {found}",
            wanted="a folder per class (two or more), or train/ valid/ test/ of them, or labels.csv",
        )


def _from_csv(source: Path) -> Listing:
    path = source / "labels.csv"
    listing = Listing()
    seen: dict[str, int] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        columns = reader.fieldnames or []
        if "path" not in columns or "label" not in columns:
            raise InputError(
                f"{path}: columns {', '.join(columns) or 'none'}", wanted="path,label[,split][,more], comma-separated"
            )
        taken = sorted(set(columns) & set(RESERVED))
        if taken or len(set(columns)) < len(columns):
            raise InputError(f"{path}: columns {', '.join(taken or columns)}: reserved or twice", fix="rename them")
        for number, row in enumerate(reader, start=2):
            entry = _csv_entry(source, f"{path} row {number}", row)
            if entry.path in seen:
                raise InputError(f"{path} row {number}, column path: {entry.path} is in row {seen[entry.path]} already")
            seen[entry.path] = number
            listing.entries.append(entry)
    listed = seen.keys() | {"labels.csv"}
    for file in source.rglob("*"):
        if file.is_file() and file.relative_to(source).as_posix() not in listed:
            listing.ignored += 1
    return listing


def _csv_entry(source: Path, place: str, row: dict[str | None, str | None]) -> Entry:
    if None in row or None in row.values():
        raise InputError(f"{place}: not as many cells as the header has columns")
    cells = {str(key): str(value) for key, value in row.items()}
    name, label, split = cells.pop("path"), cells.pop("label"), cells.pop("split", "") or None
    file = Path(os.path.normpath(source / name))
    if not file.is_relative_to(source) or Path(name).is_absolute():
        raise InputError(f"{place}, column path: {name!r} leads out of the folder")
    if not file.is_file():
        raise InputError(f"{place}, column path: no file {name!r} in {source}")
    if not label:
        raise InputError(f"{place}, column label: empty")
    if split not in (None, *SPLITS):
        raise InputError(f"{place}, column split: {split!r}", wanted="train, valid, test or empty")
    return Entry(file.relative_to(source).as_posix(), label, split, tuple(sorted(cells.items())))
