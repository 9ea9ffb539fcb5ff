"""Walk a source folder without opening any file, and refuse what DVC or the scan cannot read safely."""

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

UNKNOWN = os.stat_result([0] * 10)  # the status of an entry whose status cannot be read
LINKED_FOLDER, OUTSIDE = "a linked sub-folder", "a link to a file outside the folder"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, or a link to one.

    Args:
        path: relative to the source, with slashes.
        status: the file's status; for a link, that of its target.
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
    """Walk a source by lstat alone; no file is opened.

    Args:
        source: a folder, or a link to one.
        follow_external_links: accept links to files outside the folder.
        trusted: called if a link leads outside; it returns folders that links may lead to, such as DVC's cache.

    Raises:
        InputError: the folder is missing or empty, or has dangling or circular links, linked sub-folders, links
            to files outside, unreadable folders, FIFOs, sockets, devices, names that are not UTF-8, paths that are
            too long, or a .dvcignore. The message lists all of them.
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
            continue  # such as lost+found, which belongs to root
        if reason:
            offenders.append(f"{path}: {reason}")
        elif stat.S_ISDIR(status.st_mode):
            folders.append(path)
        else:
            files[path] = File(path, status)
    if offenders:
        raise InputError(
            f"data.source {source} has entries that cannot be read safely:\n    {listing(offenders)}", fix=_advice(offenders)
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
        The folder's absolute path, without links.

    Raises:
        InputError: the path is missing, a link to nothing or to itself, a file, or not UTF-8.
    """
    try:
        exists = source.exists()
    except OSError as error:  # the name is too long for the system, or a parent folder cannot be entered
        raise InputError(
            f"data.source {printable(str(source))}: {error.strerror}", wanted="a folder that can be read"
        ) from None
    if not exists:
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
    """Yield (relative path, status, reason to refuse it or None) of everything below `root`.

    An entry that disappears during the walk is skipped. One that cannot be read is refused, and the walk goes on.
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
        except OSError as error:  # no permission, or the path is too long for the system
            if not isinstance(error, FileNotFoundError) or not folder:
                yield folder or ".", status, f"a folder that cannot be read ({error.strerror})"


def _look(entry: os.DirEntry[str], may_lead_to: Callable[[Path], bool]) -> tuple[os.stat_result, str | None] | None:
    """Return an entry's status (`UNKNOWN` if it cannot be read) and why it is refused; None if it has disappeared."""
    try:
        return _seen(entry, may_lead_to)
    except FileNotFoundError:
        return None
    except OSError as error:
        return UNKNOWN, f"its status cannot be read ({error.strerror})"


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
    return status, "DVC would leave out files because of it" if entry.name == ".dvcignore" else None


def _seen_behind(path: str, link: os.stat_result, may_lead_to: Callable[[Path], bool]) -> tuple[os.stat_result, str | None]:
    try:
        target = os.stat(path)
    except OSError as error:
        os.lstat(path)  # raises if the link itself has disappeared
        return link, f"a link that leads nowhere ({error.strerror})"
    if stat.S_ISDIR(target.st_mode):
        return link, f"{LINKED_FOLDER}, which is not entered"
    if not stat.S_ISREG(target.st_mode):
        return link, "a link to something other than a regular file"
    real = Path(os.path.realpath(path))
    if not may_lead_to(real):
        return link, f"{OUTSIDE}, {real}"
    return target, None
