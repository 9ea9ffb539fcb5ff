"""link_data: link a folder of images (--from), and scan, verify and split data.source into the manifest."""

from __future__ import annotations

import argparse
import functools
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from headstart.core.arguments import path
from headstart.core.errors import guarded
from headstart.core.files import write_bytes, write_json
from headstart.core.parallel import count
from headstart.core.params import load_params
from headstart.core.stages import Job, Summary, command_line, load_graph, main
from headstart.data.examine import Limits
from headstart.data.link import check_name, link
from headstart.data.manifest import read_manifest, write_csv, write_manifest
from headstart.data.scan import Scan, SplitRule, scan
from headstart.data.sources import list_source
from headstart.data.summary import pictures, summarise
from headstart.data.tree import check_folder, preflight, printable
from headstart.versioning import cache_folders
from headstart.versioning import snapshot as take_snapshot

logger = logging.getLogger("headstart")
SHOWN = 3


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


def tell(result: Scan, report: dict[str, object]) -> None:
    """Say in the log what was found."""
    counts = Counter(result.manifest["split"])
    unchanged = result.files - result.reread
    logger.info(
        "  %s images of %s classes: %s%s",
        f"{len(result.manifest):,}",
        f"{report['classes']:,}",
        ", ".join(f"{number:,} {split.replace('_', ' ')}" for split, number in sorted(counts.items())),
        f"; {result.reread:,} files read, {unchanged:,} known from before" if unchanged else "",
    )
    kinds = Counter(result.notes["kind"])
    parts = [f"{len(result.quarantine):,} quarantined (data/quarantine.csv)"]
    parts += [f"{number:,} {kind}" for kind, number in sorted(kinds.items())]
    logger.info("  %s", "; ".join(parts) + (" (reports/data/notes.csv)" if kinds else ""))
    for row in result.quarantine.head(SHOWN).itertuples():
        logger.warning("  quarantined: %s: %s", *map(printable, (str(row.path), str(row.reason))))
    for row in result.leaks.head(SHOWN).itertuples():
        path, of = map(printable, (str(row.path), str(row.of)))
        logger.warning("  near copy: %s (%s) of %s (%s)", path, row.split, of, row.of_split)
    if result.rescued:
        logger.warning("  kept in train, having no other image there: %s", printable(", ".join(result.rescued[:SHOWN])))


def link_source(root: Path, source: Path, name: str | None, *, relink: bool, snapshot: bool) -> None:
    """Make data/NAME a link to `source`, or a snapshot of it in DVC's care, and say what to do next.

    Args:
        name: the folder's own where it is None.

    Raises:
        InputError: a folder or a name that will not do.
    """
    params = load_params(root / "params.yaml")
    source = check_folder(source)
    name = name or source.name
    taken = {Path(out).name for stage in load_graph(root, params).values() for out in stage.outs if out.startswith("data/")}
    check_name(root, source, name, taken)
    data = params.data
    tree = preflight(source, follow_external_links=data.follow_external_links, trusted=functools.partial(cache_folders, root))
    if snapshot:
        record = take_snapshot(root, tree.root, name)
        logger.info("data/%s is a copy of %s in DVC's care", name, tree.root)
        logger.info("  git add %s, and `dvc push` to share it", record.relative_to(root))
    else:
        link(root, source, name, relink)
        logger.info("data/%s -> %s", name, tree.root)
    tops = Counter(path.partition("/")[0] for path in tree.files if "/" in path)
    shown = ", ".join(f"{printable(top)} ({number:,})" for top, number in sorted(tops.items())[:10])
    logger.info(
        "  %s files in %s folders: %s%s", f"{len(tree.files):,}", f"{len(tops):,}", shown, ", …" if len(tops) > 10 else ""
    )
    logger.info("  to learn from it: python -m flows.pipeline --set %s", shlex.quote(f"data.source=data/{name}"))


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
