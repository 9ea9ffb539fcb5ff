"""Make data/NAME a symbolic link to a folder of images: data sets are linked, not copied, and never written."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from headstart.core.errors import InputError
from headstart.core.files import fsync
from headstart.core.params import Data
from headstart.ingest.conflicts import Labelled, as_problems, conflicts, seen_as_images
from headstart.ingest.listing import Listing
from headstart.ingest.problems import Problem, refuse
from headstart.ingest.sources import list_as_set
from headstart.ingest.tree import Tree

MAX_NAME_BYTES = 200  # file systems allow 255, and temporary names are longer


def link(root: Path, source: Path, name: str, relink: bool) -> Path:
    """Make `root/data/NAME` a link to `source`, unless it is one already.

    Args:
        root: the project.
        source: an existing folder.
        name: the name of the link, checked by `check_name`.
        relink: replace a link to another folder.

    Returns:
        The link.

    Raises:
        InputError: data/NAME is not a link, or a link to another folder and `relink` is false; or DVC has a copy
            of this name, which it would restore through the link.
    """
    target = source.resolve()
    link_path = root / "data" / name
    record = link_path.with_name(f"{name}.dvc")
    if record.exists():
        raise InputError(
            f"{record}: data/{name} is a copy in DVC's care", fix=f"choose another --name, or first: dvc remove {record}"
        )
    if link_path.is_symlink():
        old = os.readlink(link_path)
        if os.path.realpath(link_path) == os.fspath(target):  # unlike resolve, it accepts a link to itself
            return link_path
        if not relink:
            raise InputError(f"{link_path} already links to {old}", fix="replace it with --relink, or choose another --name")
    elif link_path.exists():
        raise InputError(f"{link_path} already exists and is no link", fix="choose another --name")
    link_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = link_path.with_name(f".{name}.{os.getpid()}.tmp")
    os.symlink(target, temporary, target_is_directory=True)
    os.replace(temporary, link_path)  # replaces the old link, never its target
    fsync(link_path.parent)
    return link_path


def check_name(root: Path, source: Path, name: str, taken: Collection[str]) -> None:
    """Refuse an invalid name, and a folder that cannot be a data set of this project.

    Args:
        taken: names below data/ that the pipeline writes itself.

    Raises:
        InputError: the name is invalid, too long or taken, or the folder holds this project or lies in its data/.
    """
    target = source.resolve()
    plain = name == Path(name).name and name.isprintable() and not name.startswith((".", "-")) and not name.endswith(".dvc")
    if not plain or len(name.encode()) > MAX_NAME_BYTES:
        wanted = f"a plain file name of up to {MAX_NAME_BYTES} bytes, not ending in .dvc"
        raise InputError(f"--name {name!r}: an invalid name", wanted=wanted, fix="for example --name photos")
    if name in taken:
        raise InputError(f"--name {name}: the pipeline writes data/{name} itself", fix=f"--name my-{name}")
    if root.resolve().is_relative_to(target) or target.is_relative_to(root.resolve() / "data"):
        raise InputError(f"--from {target}: it holds this project, or lies in its data/", wanted="a folder of images elsewhere")


def inspect_source(tree: Tree, data: Data, source: str) -> tuple[Listing, list[Problem]]:
    """Return a folder's listing and its problems, from names, sizes and hashes; no pixel is decoded.

    Args:
        source: the value that data.source will have.

    Raises:
        InputError: the folder has problems that no parameter accepts.
    """
    if data.path_column == "none":
        return Listing(), []  # the table is checked when it is read
    found = list_as_set(tree, data)
    groups: list[Sequence[Labelled]] = []
    if data.on_label_conflict == "refuse":
        files = [Labelled(entry.path, entry.label, tree.files[entry.path].status.st_size) for entry in found.entries]
        groups = seen_as_images(str(tree.root), conflicts(str(tree.root), files, {}))
    problems = [*found.problems, *as_problems(groups)]
    if not all(problem.accept for problem in problems):
        refuse(tree.root, problems, source)
    return found, problems
