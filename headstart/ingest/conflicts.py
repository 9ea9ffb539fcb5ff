"""Find the same bytes under two labels before anything is decoded: by size, then both ends, then all bytes."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headstart.core.text import listing
from headstart.images.kinds import begins_like_an_image
from headstart.ingest.problems import Problem

END_BYTES = 4096
MAX_FILES = 200_000  # of equal size that are read here; the scan finds the other conflicts
ACCEPT = "data.on_label_conflict=quarantine"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A file with its label, before it is decoded."""

    path: str
    label: str
    size: int


def conflicts(root: str, files: Iterable[Labelled], known: Mapping[str, str]) -> list[list[Labelled]]:
    """Return groups of files with the same bytes and several labels.

    Only files of equal size and different labels are read in part, and in full only if both ends are equal too.

    Args:
        known: SHA-256 of files by path, as far as it is known without reading.
    """
    sized = list(_split(files, lambda file: file.size))
    alike = [group for group in sized if all(file.path in known for file in group)]
    unread = [group for group in sized if any(file.path not in known for file in group)]
    alike += (group for one in _first(unread, MAX_FILES) for group in _split(one, lambda file: _ends(root, file)))
    found = [group for one in alike for group in _split(one, lambda file: known.get(file.path) or _hash(root, file.path))]
    return sorted((sorted(group, key=lambda file: file.path) for group in found), key=lambda group: group[0].path)


def _split(files: Iterable[Labelled], key: Callable[[Labelled], Hashable | None]) -> Iterator[list[Labelled]]:
    groups: dict[Hashable, list[Labelled]] = defaultdict(list)
    for file in files:
        if (value := key(file)) is not None:
            groups[value].append(file)
    return (group for group in groups.values() if len({file.label for file in group}) > 1)


def _first(groups: Sequence[list[Labelled]], limit: int) -> Iterator[list[Labelled]]:
    for group in sorted(groups, key=len):
        limit -= len(group)
        if limit < 0:
            return
        yield group


def _ends(root: str, file: Labelled) -> bytes | None:
    """Return a hash of the first and last bytes, or None for an unreadable file, which the scan will report."""
    try:
        with open(_regular(root, file.path), "rb", buffering=0) as stream:
            first = stream.read(END_BYTES)
            stream.seek(max(0, file.size - END_BYTES))
            return hashlib.sha256(first + stream.read(END_BYTES)).digest()
    except OSError:
        return None


def _hash(root: str, path: str) -> str | None:
    try:
        with open(_regular(root, path), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _regular(root: str, path: str) -> int:
    return os.open(f"{root}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block


def seen_as_images(root: str, groups: Iterable[Sequence[Labelled]]) -> list[Sequence[Labelled]]:
    """Return the groups whose files begin like an image, for a caller that decodes nothing: equal junk is no conflict."""
    return [group for group in groups if _begins_like_an_image(root, group[0].path)]


def _begins_like_an_image(root: str, path: str) -> bool:
    try:
        with open(_regular(root, path), "rb", buffering=0) as stream:
            return begins_like_an_image(stream.read(16))
    except OSError:
        return False


def as_problems(groups: Sequence[Sequence[Labelled]]) -> list[Problem]:
    """Return the problem that such groups are, if there are any."""
    if not groups:
        return []
    often = "once" if len(groups) == 1 else f"{len(groups):,} times"
    lines = [f"{file.path!r} is {file.label!r}" for group in groups for file in group]
    return [
        Problem(
            f"the same bytes have two labels, {often}:\n    {listing(lines)}",
            fix="keep one of each",
            accept=ACCEPT,
        )
    ]
