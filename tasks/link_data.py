"""link_data: scan, verify and split data.source into the manifest."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from headstart.core.command_line import main
from headstart.core.files import write_bytes, write_json
from headstart.core.stages import StageContext, Summary
from headstart.hardware import resolve_workers
from headstart.images.limits import Limits
from headstart.ingest.findings import log_scan
from headstart.ingest.rows import scan_rows
from headstart.ingest.scan import Scan, ScanSettings, SplitRule, scan
from headstart.ingest.sources import list_as_set
from headstart.ingest.summary import pictures, summarise
from headstart.ingest.tree import Tree, preflight
from headstart.manifest import read_manifest, write_csv, write_manifest
from headstart.versioning import cache_folders


def link_data(context: StageContext, verify: bool = False) -> Summary:
    """Write data/manifest.parquet, data/target.json, data/quarantine.csv and reports/data/; the source itself is only read.

    Args:
        context: the stage's parameters and folders.
        verify: read every file again, even if it seems unchanged.
    """
    data = context.params.data
    source = context.root / data.source
    rule = SplitRule(context.params.seed, data.valid_fraction, data.test_fraction, data.folds, data.fold)
    tree = preflight(
        source, follow_external_links=data.follow_external_links, trusted=functools.partial(cache_folders, context.root)
    )
    result = scan_rows(tree, data, rule) if data.path_column == "none" else _scan_images(context, tree, rule, verify)
    report = summarise(result)
    write_manifest(context.output("data/manifest.parquet"), result.manifest)
    write_json(context.output("data/target.json"), result.format.describe(result.manifest, data.log_target, data.bound_target))
    write_csv(context.output("data/quarantine.csv"), result.quarantine)
    write_json(context.output("reports/data/summary.json"), report)
    write_csv(context.output("reports/data/notes.csv"), result.notes)
    write_csv(context.output("reports/data/near_duplicates.csv"), result.leaks)
    for name, picture in pictures(result, source, data.max_pixels).items():
        write_bytes(context.output(f"reports/data/{name}"), picture)
    log_scan(result, report)
    numbers = {key: report[key] for key in (report["unit"], "classes", "quarantined", "ignored")}
    return {**numbers, **report["splits"], "reread": result.reread}


def _scan_images(context: StageContext, tree: Tree, rule: SplitRule, verify: bool) -> Scan:
    data = context.params.data
    settings = ScanSettings(
        limits=Limits(data.max_pixels, data.min_side, data.formats),
        rule=rule,
        max_quarantined=data.max_quarantined,
        on_label_conflict=data.on_label_conflict,
        near_duplicates=data.near_duplicates,
        timeout=data.file_timeout,
        workers=resolve_workers(context.params.runtime.workers),
        state=context.root / ".headstart" / "scan.sqlite",
    )
    expected = _hashes(context.root / "data/manifest.parquet") if verify else None
    return scan(tree, list_as_set(tree, data), settings, expected)


def _hashes(path: Path) -> dict[str, str]:
    """Return the hashes that the present manifest has, by path."""
    if not path.exists():
        return {}
    frame = read_manifest(path)
    return dict(zip(frame["path"], frame["key"], strict=True))


if __name__ == "__main__":
    main("link_data", functools.partial(link_data, verify="--verify" in sys.argv[1:]), options=("--verify",))
