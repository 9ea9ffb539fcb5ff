"""Walk a source folder without opening anything, and refuse what DVC or the scan could not read safely."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.core.errors import InputError
from headstart.core.text import listing, printable
from headstart.images.kinds import why_ignored

UNKNOWN = os.stat_result([0] * 10)  # of what cannot be looked at
LINKED_FOLDER, OUTSIDE = "a linked sub-folder", "a link to a file outside the folder"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, or a link to one.

    Args:
        path: relative to the source, with slashes.
        status: of what is read: a link's target.
    """

    path: str
    status: os.stat_result


@dataclass(frozen=True)
class Tree:
    """All files and folders below a source, by path."""

    root: Path
    files: dict[str, File]
    folders: list[str]


def preflight(source: Path, *, follow_external_links: bool = False, trusted: Callable[[], Sequence[Path]] = tuple) -> Tree:
    """Walk a source by lstat alone; nothing is opened.

    Args:
        source: a folder, or a link to one.
        follow_external_links: accept links to files outside the folder.
        trusted: asked when a link leads outside, tells folders that it may lead into, such as DVC's cache.

    Raises:
        InputError: no such folder, an empty one, or one with dangling or circular links, linked sub-folders, links
            to files outside, folders that cannot be opened, FIFOs, sockets, devices, names that are not
            UTF-8, paths that are too long, or a .dvcignore. All offenders are listed.
    """
    root = check_folder(source)

    @functools.cache
    def outside() -> list[Path]:
        return [path.resolve() for path in trusted()]

    def may_lead_to(path: Path) -> bool:
        return follow_external_links or path.is_relative_to(root) or any(map(path.is_relative_to, outside()))

    files: dict[str, File] = {}
    folders: list[str] = []
    offenders: list[str] = []
    for path, status, reason in walk(root, may_lead_to):
        if reason and stat.S_ISDIR(status.st_mode) and path != "." and why_ignored(path.split("/"), ""):
            continue  # such as lost+found, which is root's
        if reason:
            offenders.append(f"{path}: {reason}")
        elif stat.S_ISDIR(status.st_mode):
            folders.append(path)
        else:
            files[path] = File(path, status)
    if offenders:
        raise InputError(
            f"data.source {source} holds what cannot be read safely:\n    {listing(offenders)}", fix=_advice(offenders)
        )
    if not files:
        raise InputError(f"data.source {source}: the folder is empty", wanted="at least two folders of images")
    return Tree(root, dict(sorted(files.items())), sorted(folders))


def _advice(offenders: Sequence[str]) -> str:
    advice = "repair or remove them"
    if any(OUTSIDE in line for line in offenders):
        advice += "; data.follow_external_links=true accepts links to files outside the folder"
    if any(LINKED_FOLDER in line for line in offenders):
        advice += "; instead of linking a sub-folder, link the whole source, or list its files in a labels.csv"
    return advice


def check_folder(source: Path) -> Path:
    """Refuse a path that is no folder.

    Returns:
        Its absolute path, without links.

    Raises:
        InputError: nothing there, a link that leads nowhere or to itself, a file, or a path that is not UTF-8.
    """
    try:
        there = source.exists()
    except OSError as error:  # a name too long for the system, or a folder above that cannot be entered
        raise InputError(
            f"data.source {printable(str(source))}: {error.strerror}", wanted="a folder that can be read"
        ) from None
    if not there:
        link = f" (a link to {os.readlink(source)})" if source.is_symlink() else ""
        record = source.with_name(f"{source.name}.dvc")
        fix = "python -m flows.link --from /path/to/images --name NAME; then set data.source: data/NAME"
        raise InputError(
            f"data.source {source}{link}: no such folder",
            wanted="a folder of class folders, of train/ valid/ test/, or with labels.csv",
            fix=f"dvc pull {record.name}, in {source.parent}" if record.is_file() else fix,
        )
    if not source.is_dir():
        raise InputError(f"data.source {source}: a file, not a folder", wanted="a folder; unpack archives first")
    root = source.resolve()
    try:
        os.fspath(root).encode()
    except UnicodeEncodeError:
        raise InputError(f"data.source {printable(str(root))}: a path that is not UTF-8", fix="rename the folder") from None
    return root


def walk(root: Path, may_lead_to: Callable[[Path], bool]) -> Iterator[tuple[str, os.stat_result, str | None]]:
    """(relative path, status, why it is refused) of everything below `root`.

    What vanishes meanwhile is passed over; what cannot be looked at is refused by itself, and the rest goes on.
    """
    waiting = [("", root.stat())]
    while waiting:
        folder, status = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    seen = _look(entry, may_lead_to)
                    if seen is None:
                        continue
                    if seen[1] is None and stat.S_ISDIR(seen[0].st_mode):
                        waiting.append((path, seen[0]))
                    yield path, *seen
        except OSError as error:  # no permission, or a path longer than the system takes
            if not isinstance(error, FileNotFoundError) or not folder:
                yield folder or ".", status, f"a folder that cannot be read ({error.strerror})"


def _look(entry: os.DirEntry[str], may_lead_to: Callable[[Path], bool]) -> tuple[os.stat_result, str | None] | None:
    """An entry's status (`UNKNOWN`, where it cannot be looked at) and why it is refused; None where it is gone."""
    try:
        return _seen(entry, may_lead_to)
    except FileNotFoundError:
        return None
    except OSError as error:
        return UNKNOWN, f"cannot be looked at ({error.strerror})"


def _seen(entry: os.DirEntry[str], may_lead_to: Callable[[Path], bool]) -> tuple[os.stat_result, str | None]:
    status = entry.stat(follow_symlinks=False)
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return status, "a name that is not UTF-8"
    if stat.S_ISLNK(status.st_mode):
        return _seen_behind(entry.path, status, may_lead_to)
    if stat.S_ISDIR(status.st_mode):
        return status, None
    if not stat.S_ISREG(status.st_mode):
        return status, "not a regular file (a FIFO, a socket or a device)"
    return status, "DVC would drop files by it" if entry.name == ".dvcignore" else None


def _seen_behind(path: str, link: os.stat_result, may_lead_to: Callable[[Path], bool]) -> tuple[os.stat_result, str | None]:
    try:
        target = os.stat(path)
    except OSError as error:
        os.lstat(path)  # raises where the link itself is gone
        return link, f"a link that leads nowhere ({error.strerror})"
    if stat.S_ISDIR(target.st_mode):
        return link, f"{LINKED_FOLDER}, which is not entered"
    if not stat.S_ISREG(target.st_mode):
        return link, "a link to what is not a regular file"
    real = Path(os.path.realpath(path))
    if not may_lead_to(real):
        return link, f"{OUTSIDE}, {real}"
    return target, None
