"""What lies in a source folder: one walk that opens nothing, and refuses what DVC or the scan could not read safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.core.errors import InputError

SHOWN = 10


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


def listing(items: Sequence[str]) -> str:
    """Up to ten items, one a line, and how many more there are."""
    more = [f"… and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
    return "\n    ".join([*items[:SHOWN], *more])


def preflight(source: Path, *, follow_external_links: bool = False, trusted: Sequence[Path] = ()) -> Tree:
    """Walk a source by lstat alone; nothing is opened.

    Args:
        source: a folder, or a link to one.
        follow_external_links: accept links to files outside the folder.
        trusted: folders that links may lead into, such as DVC's cache.

    Raises:
        InputError: no such folder, an empty one, or one with dangling or circular links, linked sub-folders, links
            to files outside, folders that cannot be opened, FIFOs, sockets, devices, names that are not
            UTF-8, or a .dvcignore. All offenders are listed.
    """
    _check_folder(source)
    root = source.resolve()
    inside = [root, *(path.resolve() for path in trusted)]
    files: dict[str, File] = {}
    folders: list[str] = []
    offenders: list[str] = []
    for path, status, reason in _walk(root, None if follow_external_links else inside):
        if reason:
            offenders.append(f"{_shown(path)}: {reason}")
        elif stat.S_ISDIR(status.st_mode):
            folders.append(path)
        else:
            files[path] = File(path, status)
    if offenders:
        raise InputError(
            f"data.source {source} holds what cannot be read safely:\n    {listing(offenders)}", fix="mend or remove them"
        )
    if not files:
        raise InputError(f"data.source {source}: the folder is empty", wanted="at least two folders of images")
    return Tree(root, dict(sorted(files.items())), sorted(folders))


def _check_folder(source: Path) -> None:
    if not source.exists():
        link = f" (a link to {os.readlink(source)})" if source.is_symlink() else ""
        snapshot = source.with_name(f"{source.name}.dvc")
        fix = "python -m tasks.link_data --from /path/to/images --name NAME; then set data.source: data/NAME"
        raise InputError(
            f"data.source {source}{link}: no such folder",
            wanted="a folder of class folders, of train/ valid/ test/, or with labels.csv",
            fix=f"dvc pull {snapshot.name}, in {source.parent}" if snapshot.is_file() else fix,
        )
    if not source.is_dir():
        raise InputError(f"data.source {source}: a file, not a folder", wanted="a folder; unpack archives first")


def _walk(root: Path, inside: Sequence[Path] | None) -> Iterator[tuple[str, os.stat_result, str | None]]:
    """(relative path, status, why it is refused) of everything below `root`."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    status, reason = _look(entry, inside)
                    if reason is None and stat.S_ISDIR(status.st_mode):
                        waiting.append(path)
                    yield path, status, reason
        except PermissionError as error:
            yield folder or ".", root.stat(), f"a folder that cannot be opened ({error.strerror})"


def _look(entry: os.DirEntry[str], inside: Sequence[Path] | None) -> tuple[os.stat_result, str | None]:
    status = entry.stat(follow_symlinks=False)
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return status, "a name that is not UTF-8"
    if stat.S_ISLNK(status.st_mode):
        return _look_behind(entry.path, status, inside)
    if stat.S_ISDIR(status.st_mode):
        return status, None
    if not stat.S_ISREG(status.st_mode):
        return status, "not a regular file (a FIFO, a socket or a device)"
    return status, "DVC would drop files by it" if entry.name == ".dvcignore" else None


def _look_behind(path: str, link: os.stat_result, inside: Sequence[Path] | None) -> tuple[os.stat_result, str | None]:
    try:
        target = os.stat(path)
    except OSError as error:
        return link, f"a link that leads nowhere ({error.strerror})"
    if stat.S_ISDIR(target.st_mode):
        return link, "a linked sub-folder (link the whole source instead)"
    if not stat.S_ISREG(target.st_mode):
        return link, "a link to what is not a regular file"
    real = Path(os.path.realpath(path))
    if inside is not None and not any(real.is_relative_to(folder) for folder in inside):
        return link, f"a link to a file outside the folder, {real} (data.follow_external_links accepts such links)"
    return target, None


def _shown(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")
