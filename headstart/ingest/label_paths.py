"""Find the file that a path in a labels file means: that very file, or the only one that differs from it in spelling."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from posixpath import basename, dirname, normpath, splitext

from headstart.images.kinds import is_named_as_image, why_ignored
from headstart.ingest.spelling import clean
from headstart.ingest.tree import Tree

SPACES, BACKSLASHES, ABSOLUTE = "white space or invisible characters", "backslashes for slashes", "an absolute path"
OWN_NAME, NO_EXTENSION, CASE = "the folder's own name in front", "no extension", "another case"
NO_FOLDER = "a sub-folder left out"
SHOWN = 3


class BadCell(Exception):
    """A cell of a labels file that cannot be used.

    Args:
        column: its column.
        found: what is wrong.
        wanted: what is allowed instead.
    """

    def __init__(self, column: str, found: str, wanted: str = "") -> None:
        super().__init__(found)
        self.column, self.found, self.wanted = column, found, wanted


class Paths:
    """The files of a source, as a labels file in its folder `base` (with a slash, or empty) may spell them.

    `spelled` maps each kind of spelling to the number of such paths, the first of them, and its file.
    """

    def __init__(self, tree: Tree, base: str) -> None:
        self.tree, self.base = tree, base
        self.spelled: dict[str, tuple[int, str, str]] = {}
        self._real = functools.lru_cache(maxsize=4096)(os.path.realpath)  # for folders

    def find(self, cell: str) -> str:
        """Return the file that a cell means, relative to the source.

        Raises:
            BadCell: the cell means no file, or several, or a path outside the folder.
        """
        own = normpath(self.base + cell)
        if cell and not os.path.isabs(cell) and own in self.tree.files:
            return own
        if not clean(cell):
            raise BadCell("path", f"no file {cell!r} in {self.tree.root}")
        kinds: list[str] = []
        wanted = self._relative(cell, kinds)
        if wanted in self.tree.files:
            return self._note(cell, wanted, kinds)
        return self._nearest(cell, wanted, kinds)

    def _relative(self, cell: str, kinds: list[str]) -> str:
        """Return the cell as a path relative to the source, whether or not that file exists."""
        text = clean(cell)
        if "\0" in text:
            raise self._leads_out(cell, "")
        kinds += [SPACES] if text != cell else []
        kinds += [BACKSLASHES] if "\\" in text else []
        text = text.replace("\\", "/")
        if os.path.isabs(text) or text[1:3] == ":/":
            inside = f"{self._real(dirname(text))}/{basename(text)}" if os.path.isabs(text) else ""
            if not inside.startswith(f"{self.tree.root}/"):
                raise self._leads_out(cell, text)
            kinds.append(ABSOLUTE)
            return inside[len(f"{self.tree.root}/") :]
        wanted = normpath(self.base + text)
        if wanted.split("/")[0] == "..":
            raise self._leads_out(cell, text)
        own = f"{self.tree.root.name}/"
        if wanted not in self.tree.files and wanted.startswith(own) and wanted.removeprefix(own) in self.tree.files:
            kinds.append(OWN_NAME)
            return wanted.removeprefix(own)
        return wanted

    def _nearest(self, cell: str, wanted: str, kinds: list[str]) -> str:
        fits = [(file, more) for file in self._candidates(wanted) if (more := self._differences(file, wanted)) is not None]
        fewest = min((len(more) for _, more in fits), default=0)
        best = [(file, more) for file, more in fits if len(more) == fewest]
        if len(best) == 1:
            return self._note(cell, best[0][0], [*kinds, *best[0][1]])
        if best:
            several = ", ".join(repr(file) for file, _ in best[:SHOWN]) + (", …" if len(best) > SHOWN else "")
            found = f"no file {cell!r} in {self.tree.root}, but it could mean {len(best):,} files: {several}"
            raise BadCell("path", found, "the full path of one, with sub-folder and extension")
        raise BadCell("path", f"no file {cell!r} in {self.tree.root}{self._cause(wanted)}")

    def _candidates(self, wanted: str) -> list[str]:
        key = _tail(wanted[len(self.base) :])
        found = self._by_tail.get(key, []) + ([] if is_named_as_image(wanted) else self._by_stem.get(key, []))
        return sorted(set(found))

    def _differences(self, file: str, wanted: str) -> list[str] | None:
        """Return the kinds of spelling in which a path differs from a file, or None if it cannot mean that file."""
        kinds = []
        name, other = basename(file), basename(wanted)
        if name.casefold() != other.casefold():
            kinds.append(NO_EXTENSION)
            name = splitext(name)[0]
        folder, outer = dirname(file[len(self.base) :]), dirname(wanted[len(self.base) :])
        if folder.casefold() != outer.casefold():
            if outer and not f"/{folder}".casefold().endswith(f"/{outer}".casefold()):
                return None
            kinds.append(NO_FOLDER)
            folder = folder[len(folder) - len(outer) :] if outer else ""
        return [*kinds, CASE] if (name, folder) != (other, outer) else kinds

    def _note(self, cell: str, file: str, kinds: list[str]) -> str:
        for kind in kinds:
            number, *first = self.spelled.get(kind, (0, cell, file))
            self.spelled[kind] = (number + 1, first[0], first[1])
        return file

    def _leads_out(self, cell: str, text: str) -> BadCell:
        inner = next((file for file in self._by_tail.get(_tail(text), []) if text.endswith(f"/{file}")), "")
        hint = f"; {inner!r} exists" if inner else ""
        return BadCell("path", f"{cell!r} leads out of the folder{hint}", f"a path below {self.tree.root}, relative to it")

    def _cause(self, wanted: str) -> str:
        if wanted.startswith(("http:/", "https:/")):
            return "; it is a web address: download the file"
        if unicodedata.normalize("NFC", wanted) in self._forms:
            return "; its name exists in another Unicode normal form (NFC, NFD)"
        if wanted in self.tree.folders:
            return "; it is a folder"
        for key in (_tail(splitext(wanted[len(self.base) :])[0]), splitext(basename(wanted))[0].casefold()):
            if key in self._by_stem:
                return f"; {self._by_stem[key][0]!r} exists"
        return ""

    @functools.cached_property
    def _by_tail(self) -> dict[str, list[str]]:
        return self._index(self._usable())

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return self._index((splitext(name)[0], file) for name, file in self._usable() if is_named_as_image(name))

    @functools.cached_property
    def _forms(self) -> set[str]:
        return {unicodedata.normalize("NFC", file) for file in self.tree.files if not file.isascii()}

    def _usable(self) -> Iterator[tuple[str, str]]:
        """Yield (path below the base, path) of all files, except those of an operating system."""
        for file in self.tree.files:
            *folders, name = file.split("/")
            if file.startswith(self.base) and not why_ignored(folders, name):
                yield file[len(self.base) :], file

    def _index(self, files: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
        """Index files by name, and by folder and name, without case."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, file in files:
            for key in {_tail(name), basename(name).casefold()}:
                found[key].append(file)
        return dict(found)


def _tail(path: str) -> str:
    """Return a path's last folder and name, without case."""
    return "/".join(path.split("/")[-2:]).casefold()
