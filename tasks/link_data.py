"""link_data: link a folder of images (--from), and scan, verify and split data.source into the manifest."""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.core.arguments import path
from headstart.core.errors import guarded
from headstart.core.files import write_bytes, write_json
from headstart.core.parallel import count
from headstart.core.params import Data, load_params
from headstart.core.stages import Job, Summary, command_line, load_graph, main
from headstart.images.examine import Limits
from headstart.images.kinds import why_sidecar
from headstart.ingest.conflicts import Labelled, as_problems, conflicts, seen_as_images
from headstart.ingest.layouts import Listing, extensions, list_source, shown_kinds
from headstart.ingest.link import check_name, link
from headstart.ingest.problems import Problem, described, refuse
from headstart.ingest.scan import Scan, SplitRule, scan
from headstart.ingest.summary import pictures, summarise
from headstart.ingest.tree import Tree, check_folder, preflight, printable
from headstart.manifest import read_manifest, write_csv, write_manifest
from headstart.versioning import cache_folders
from headstart.versioning import snapshot as take_snapshot

logger = logging.getLogger("headstart")
SHOWN = 3
REMARKS = ("group spelling", "label spelling", "labels format", "labels path", "layout")
REMARKS_SHOWN = 10


def link_data(job: Job, verify: bool = False) -> Summary:
    """Write data/manifest.parquet, data/quarantine.csv and reports/data/; the source itself is only read.

    Args:
        job: the stage's parameters and folders.
        verify: read every file again, also those that seem unchanged.
    """
    data = job.params.data
    source = job.root / data.source
    tree = preflight(
        source, follow_external_links=data.follow_external_links, trusted=functools.partial(cache_folders, job.root)
    )
    found = list_source(
        tree, label_pattern=data.label_pattern, group_pattern=data.group_pattern, nested_folders=data.nested_folders
    )
    result = scan(
        tree,
        found,
        limits=Limits(data.max_pixels, data.min_side, data.formats),
        rule=SplitRule(job.params.seed, data.valid_fraction, data.test_fraction, data.folds, data.fold),
        max_quarantined=data.max_quarantined,
        on_label_conflict=data.on_label_conflict,
        near_duplicates=data.near_duplicates,
        timeout=data.file_timeout,
        workers=count(job.params.runtime.workers),
        state=job.root / ".headstart" / "scan.sqlite",
        expected=_hashes(job.root / "data/manifest.parquet") if verify else None,
    )
    report = summarise(result)
    write_manifest(job.output("data/manifest.parquet"), result.manifest)
    write_csv(job.output("data/quarantine.csv"), result.quarantine)
    write_json(job.output("reports/data/summary.json"), report)
    write_csv(job.output("reports/data/notes.csv"), result.notes)
    write_csv(job.output("reports/data/near_duplicates.csv"), result.leaks)
    for name, picture in pictures(result, source, data.max_pixels).items():
        write_bytes(job.output(f"reports/data/{name}"), picture)
    tell(result, report)
    numbers = {key: report[key] for key in ("images", "classes", "quarantined", "ignored")}
    return {**numbers, **report["splits"], "reread": result.reread}


def _hashes(path: Path) -> dict[str, str]:
    """Of the files of the present manifest, by path."""
    if not path.exists():
        return {}
    frame = read_manifest(path)
    return dict(zip(frame["path"], frame["key"], strict=True))


def tell(result: Scan, report: Mapping[str, Any]) -> None:
    """Say in the log what was found."""
    counts = Counter(result.manifest["split"])
    logger.info(
        "  %s images of %s classes: %s%s",
        f"{len(result.manifest):,}",
        f"{report['classes']:,}",
        ", ".join(f"{number:,} {split.replace('_', ' ')}" for split, number in sorted(counts.items())),
        f"; {result.reread:,} files read, {result.unchanged:,} known from before" if result.unchanged else "",
    )
    kinds = Counter(result.notes["kind"])
    parts = [f"{len(result.quarantine):,} quarantined (data/quarantine.csv)"]
    parts += [f"{number:,} {kind}" + (_of_which(report) if kind == "ignored" else "") for kind, number in sorted(kinds.items())]
    logger.info("  %s", "; ".join(parts) + (" (reports/data/notes.csv)" if kinds else ""))
    tell_remarks([row for row in result.notes.itertuples(index=False, name=None) if row[1] in REMARKS])
    for row in result.quarantine.head(SHOWN).itertuples():
        logger.warning("  quarantined: %s: %s", *map(printable, (str(row.path), str(row.reason))))
    for row in result.leaks.head(SHOWN).itertuples():
        path, of = map(printable, (str(row.path), str(row.of)))
        logger.warning("  near copy: %s (%s) of %s (%s)", path, row.split, of, row.of_split)
    for split, does in (("test", "the test figures say nothing of them"), ("valid", "no epoch is chosen by them")):
        lacking = report[f"classes_without_{split}"]
        if lacking:
            shown = printable(", ".join(lacking[:SHOWN])) + (", …" if len(lacking) > SHOWN else "")
            logger.warning("  classes without an image in %s: %s (%s); %s", split, f"{len(lacking):,}", shown, does)
    if result.rescued:
        logger.warning("  kept in train, having no other image there: %s", printable(", ".join(result.rescued[:SHOWN])))


def _of_which(report: Mapping[str, Any]) -> str:
    kinds = Counter(report["ignored_by_extension"])
    return f" (no images by their name: {shown_kinds(kinds)})" if kinds else ""


def tell_remarks(remarks: Sequence[tuple[Any, ...]]) -> None:
    """Say in the log what was accepted although it is not as the documents have it; (path, kind, text) each."""
    for file, kind, text in remarks[:REMARKS_SHOWN]:
        logger.info("  %s: %s", kind, printable(f"{file}: {text}" if file else text))
    if len(remarks) > REMARKS_SHOWN:
        logger.info("  … and %s more of the kind", f"{len(remarks) - REMARKS_SHOWN:,}")


def look_at(tree: Tree, data: Data, source: str) -> tuple[Listing, list[Problem]]:
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


def link_source(root: Path, source: Path, name: str | None, *, relink: bool, snapshot: bool) -> None:
    """Make data/NAME a link to `source`, or a snapshot of it in DVC's care, and say what to do next.

    Args:
        name: the folder's own where it is None.

    Raises:
        InputError: a folder or a name that will not do, or problems that no parameter accepts; the others are warned of.
    """
    params = load_params(root / "params.yaml")
    source = check_folder(source)
    name = name or source.name
    taken = {Path(out).name for stage in load_graph(root, params).values() for out in stage.outs if out.startswith("data/")}
    check_name(root, source, name, taken)
    data = params.data
    tree = preflight(source, follow_external_links=data.follow_external_links, trusted=functools.partial(cache_folders, root))
    found, problems = look_at(tree, data, f"data/{name}")
    if snapshot:
        record = take_snapshot(root, tree.root, name)
        logger.info("data/%s is a copy of %s in DVC's care", name, tree.root)
        logger.info("  git add %s, and `dvc push` to share it", record.relative_to(root))
    else:
        link(root, source, name, relink)
        logger.info("data/%s -> %s", name, tree.root)
    tell_linked(tree, found, problems, f"data/{name}")


def tell_linked(tree: Tree, found: Listing, problems: Sequence[Problem], source: str) -> None:
    """Say in the log what is in a folder, what stands in the way, and how to learn from it."""
    tops = Counter(path.partition("/")[0] for path in tree.files if "/" in path)
    shown = ", ".join(f"{printable(top)} ({number:,})" for top, number in sorted(tops.items())[:10])
    logger.info(
        "  %s files in %s folders: %s%s", f"{len(tree.files):,}", f"{len(tops):,}", shown, ", …" if len(tops) > 10 else ""
    )
    sidecars = extensions(path for path, reason in found.ignored if reason == why_sidecar(path.rpartition("/")[2]))
    if sidecars:
        logger.info("  %s may be images; no images by their name: %s", f"{len(found.entries):,}", shown_kinds(sidecars))
    tell_remarks(found.remarks)
    if problems:
        logger.warning("%s", described(tree.root, problems, source))
        return
    logger.info("  to learn from it: python -m flows.pipeline --set %s", shlex.quote(f"data.source={source}"))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.link_data", description="Scan data.source into the manifest; or, with --from, link a folder."
    )
    parser.add_argument("--from", dest="source", type=path, metavar="PATH", help="make data/NAME a link to PATH")
    parser.add_argument("--name", help="the link's name; PATH's own by default")
    parser.add_argument("--relink", action="store_true", help="replace a link that leads elsewhere")
    parser.add_argument("--snapshot", action="store_true", help="a copy in DVC's care instead of a link")
    parser.add_argument("--verify", action="store_true", help="scan and read every file, also those that seem unchanged")
    options = parser.parse_args(argv)
    if options.source is None and (options.name or options.relink or options.snapshot):
        parser.error("--name, --relink and --snapshot belong to --from PATH")
    return options


def run_link(options: argparse.Namespace) -> int:
    link_source(Path.cwd(), options.source, options.name, relink=options.relink, snapshot=options.snapshot)
    return 0


if __name__ == "__main__":
    options = arguments()
    if options.source is None:
        main("link_data", functools.partial(link_data, verify=options.verify))
    command_line()
    sys.exit(guarded(functools.partial(run_link, options)))
