"""Recognise the layout of a source folder: the folder that holds everything, and the folders of splits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from posixpath import basename

from headstart.core.text import printable
from headstart.images.kinds import is_named_as_image, why_ignored
from headstart.ingest.labels import NAMES
from headstart.ingest.problems import Problem
from headstart.ingest.spelling import clean
from headstart.ingest.tree import Tree

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
SET = re.compile(r"[ _-]?(set|images|imgs|data)$")  # training_set, testset, train-images


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


def _folders_in(tree: Tree, base: str) -> list[str]:
    """Return the folders directly below a folder, except those of an operating system."""
    inner = (folder for folder in tree.folders if folder.startswith(base) and "/" not in folder[len(base) :])
    return [folder for folder in inner if not why_ignored([basename(folder)], "")]


def _images_in(tree: Tree, base: str) -> bool:
    """Return whether files named like images are directly below a folder."""
    inner = (path for path in tree.files if path.startswith(base) and "/" not in path[len(base) :])
    return any(is_named_as_image(basename(path)) for path in inner)


def entered(tree: Tree) -> str:
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


def find_layout(tree: Tree, base: str, problems: list[Problem]) -> Layout:
    """Return the layout of the folder `base` of a source; what is wrong with its splits is added to `problems`."""
    folders = _folders_in(tree, base)
    splits = {folder: split for folder in folders if (split := _split_of(folder)) is not None}
    if "train" not in splits.values() or len(folders) > len(splits) == 1:  # a single train/ beside other folders is a class
        return Layout(base, {})
    for split in sorted(set(splits.values())):
        same = [folder for folder in sorted(splits) if splits[folder] == split]
        if len(same) > 1:
            text = f"{tree.root}: both {' and '.join(map(printable, same))}"
            problems.append(Problem(text, fix=f"keep one folder of {split} images"))

    def classes(split: str) -> set[str]:
        return {clean(basename(one)) for folder in splits if splits[folder] == split for one in _folders_in(tree, f"{folder}/")}

    # no labels if no folder inside is a class of train, as in test/unknown/ or test/test/
    flat = (folder for folder, split in splits.items() if split != "train" and not classes(split) & classes("train"))
    return Layout(base, splits, frozenset(flat))
