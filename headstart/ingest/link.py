"""Make data/NAME a symbolic link to a folder of images: data sets are linked, not copied, and never written."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from headstart.core.errors import InputError
from headstart.core.files import fsync
from headstart.core.params import Data
from headstart.ingest.conflicts import Labelled, as_problems, conflicts, seen_as_images
from headstart.ingest.layouts import Listing, list_source
from headstart.ingest.problems import Problem, refuse
from headstart.ingest.tree import Tree

MAX_NAME_BYTES = 200  # file systems allow 255, and temporary names are longer


def link(root: Path, source: Path, name: str, relink: bool) -> Path:
    """Make `root/data/NAME` a link to `source`, or leave the link that is there and leads there.

    Args:
        root: the project.
        source: an existing folder.
        name: of the link, checked by `check_name`.
        relink: replace a link that leads elsewhere.

    Returns:
        The link.

    Raises:
        InputError: something at the link's place that is no link, a link that leads elsewhere and is not
            to be replaced, or a copy in DVC's care of this name, which DVC would restore through the link.
    """
    target = source.resolve()
    place = root / "data" / name
    record = place.with_name(f"{name}.dvc")
    if record.exists():
        raise InputError(
            f"{record}: data/{name} is a copy in DVC's care", fix=f"choose another --name, or first: dvc remove {record}"
        )
    if place.is_symlink():
        old = os.readlink(place)
        if os.path.realpath(place) == os.fspath(target):  # unlike resolve, gets over a link to itself
            return place
        if not relink:
            raise InputError(f"{place} links to {old} already", fix="--relink replaces the link, or choose another --name")
    elif place.exists():
        raise InputError(f"{place} is there already and is no link", fix="choose another --name")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{name}.{os.getpid()}.tmp")
    os.symlink(target, temporary, target_is_directory=True)
    os.replace(temporary, place)  # the old link goes, what it pointed to is not touched
    fsync(place.parent)
    return place


def check_name(root: Path, source: Path, name: str, taken: Collection[str]) -> None:
    """Refuse a name that cannot be, and a folder that cannot be a data set of this project.

    Args:
        taken: names below data/ that the pipeline writes itself.

    Raises:
        InputError: an impossible, long or taken name, or a folder that holds this project or lies in its data/.
    """
    target = source.resolve()
    plain = name == Path(name).name and name.isprintable() and not name.startswith((".", "-")) and not name.endswith(".dvc")
    if not plain or len(name.encode()) > MAX_NAME_BYTES:
        wanted = f"a plain file name of up to {MAX_NAME_BYTES} bytes, not ending in .dvc"
        raise InputError(f"--name {name!r}", wanted=wanted, fix="for example --name photos")
    if name in taken:
        raise InputError(f"--name {name}: the pipeline writes data/{name} itself", fix=f"--name my-{name}")
    if root.resolve().is_relative_to(target) or target.is_relative_to(root.resolve() / "data"):
        raise InputError(f"--from {target}: it holds this project, or lies in its data/", wanted="a folder of images elsewhere")


def inspect_source(tree: Tree, data: Data, source: str) -> tuple[Listing, list[Problem]]:
    """A folder's listing and its problems, by names, sizes and hashes; no pixel is decoded.

    Args:
        source: data.source as it will be.

    Raises:
        InputError: the folder itself must be changed.
    """
    found = list_source(
        tree, label_pattern=data.label_pattern, group_pattern=data.group_pattern, nested_folders=data.nested_folders
    )
    groups: list[Sequence[Labelled]] = []
    if data.on_label_conflict == "refuse":
        files = [Labelled(entry.path, entry.label, tree.files[entry.path].status.st_size) for entry in found.entries]
        groups = seen_as_images(str(tree.root), conflicts(str(tree.root), files, {}))
    problems = [*found.problems, *as_problems(groups)]
    if not all(problem.accept for problem in problems):
        refuse(tree.root, problems, source)
    return found, problems
