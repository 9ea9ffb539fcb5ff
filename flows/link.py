"""`python -m flows.link --from PATH`: make data/NAME a symbolic link to a folder of images, or a copy of it in DVC's care."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from headstart.core.command_line import command_line, guarded
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.ingest.findings import log_linked
from headstart.ingest.link import check_name, inspect_source, link
from headstart.ingest.tree import check_folder, preflight
from headstart.versioning import cache_folders, copy_into_dvc

from flows.arguments import path

logger = logging.getLogger("headstart")


def link_source(root: Path, source: Path, name: str | None, *, relink: bool, copy: bool) -> None:
    """Make data/NAME a link to `source`, or a copy of it in DVC's care, and log what to do next.

    Args:
        name: the name below data/; None takes the folder's own name.

    Raises:
        InputError: the folder, its name or its layout is refused; a problem that a parameter accepts is only a warning.
    """
    params = load_params(root / "params.yaml")
    source = check_folder(source)
    name = name or source.name
    taken = {Path(out).name for stage in load_graph(root, params).values() for out in stage.outs if out.startswith("data/")}
    check_name(root, source, name, taken)
    data = params.data
    tree = preflight(source, follow_external_links=data.follow_external_links, trusted=functools.partial(cache_folders, root))
    found, problems = inspect_source(tree, data, f"data/{name}")
    if copy:
        record = copy_into_dvc(root, tree.root, name)
        logger.info("data/%s is a copy of %s in DVC's care", name, tree.root)
        logger.info("  to share it: git add %s, commit, and `dvc push`", record.relative_to(root))
    else:
        link(root, source, name, relink)
        logger.info("data/%s -> %s", name, tree.root)
    log_linked(tree, found, problems, f"data/{name}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.link", description="Make data/NAME a link to a folder of images, or a copy in DVC's care."
    )
    parser.add_argument("--from", dest="source", type=path, metavar="PATH", required=True, help="the folder; it is only read")
    parser.add_argument("--name", help="its name below data/ (default: the name of PATH)")
    parser.add_argument("--relink", action="store_true", help="replace a link that leads to another folder")
    parser.add_argument("--copy-into-dvc", action="store_true", help="make a copy in DVC's care instead of a link")
    options = parser.parse_args(arguments)
    link_source(Path.cwd(), options.source, options.name, relink=options.relink, copy=options.copy_into_dvc)
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
