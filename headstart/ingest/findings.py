"""Log what a scan or a link found in a folder."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.core.text import printable
from headstart.images.kinds import why_sidecar
from headstart.ingest.listing import Listing
from headstart.ingest.problems import Problem, described
from headstart.ingest.scan import Scan
from headstart.ingest.sources import extensions, shown_kinds
from headstart.ingest.tree import Tree

logger = logging.getLogger("headstart")
SHOWN = 3
REMARKS = ("group spelling", "label spelling", "labels format", "labels path", "layout")
REMARKS_SHOWN = 10


def log_scan(result: Scan, report: Mapping[str, Any]) -> None:
    """Log what a scan found."""
    counts = Counter(result.manifest["split"])
    logger.info(
        "  %s %s%s: %s%s",
        f"{len(result.manifest):,}",
        report["unit"],
        f" of {report['classes']:,} classes" if report["classes"] else "",
        ", ".join(f"{number:,} {split.replace('_', ' ')}" for split, number in sorted(counts.items())),
        f"; {result.reread:,} files read, {result.unchanged:,} known from an earlier scan" if result.unchanged else "",
    )
    kinds = Counter(result.notes["kind"])
    parts = [f"{len(result.quarantine):,} quarantined (data/quarantine.csv)"]
    parts += [f"{number:,} {kind}" + (_of_which(report) if kind == "ignored" else "") for kind, number in sorted(kinds.items())]
    logger.info("  %s", "; ".join(parts) + (" (reports/data/notes.csv)" if kinds else ""))
    log_remarks([row for row in result.notes.itertuples(index=False, name=None) if row[1] in REMARKS])
    for row in result.quarantine.head(SHOWN).itertuples():
        logger.warning("  quarantined: %s: %s", *map(printable, (str(row.path), str(row.reason))))
    for row in result.leaks.head(SHOWN).itertuples():
        path, of = map(printable, (str(row.path), str(row.of)))
        logger.warning("  near copy: %s (%s) of %s (%s)", path, row.split, of, row.of_split)
    for split, does in (("test", "test metrics ignore them"), ("valid", "the choice of the epoch ignores them")):
        lacking = report[f"classes_without_{split}"]
        if lacking:
            shown = printable(", ".join(lacking[:SHOWN])) + (", …" if len(lacking) > SHOWN else "")
            logger.warning("  classes without an image in %s: %s (%s); %s", split, f"{len(lacking):,}", shown, does)
    if result.rescued:
        shown = printable(", ".join(result.rescued[:SHOWN]))
        logger.warning("  classes that had no training image, so one was moved back to train: %s", shown)


def _of_which(report: Mapping[str, Any]) -> str:
    kinds = Counter(report["ignored_by_extension"])
    return f" (not named like images: {shown_kinds(kinds)})" if kinds else ""


def log_remarks(remarks: Sequence[tuple[Any, ...]]) -> None:
    """Log what was accepted although it differs from the documented form: (path, kind, text) each."""
    for file, kind, text in remarks[:REMARKS_SHOWN]:
        logger.info("  %s: %s", kind, printable(f"{file}: {text}" if file else text))
    if len(remarks) > REMARKS_SHOWN:
        logger.info("  … and %s more", f"{len(remarks) - REMARKS_SHOWN:,}")


def log_linked(tree: Tree, found: Listing, problems: Sequence[Problem], source: str) -> None:
    """Log what is in a folder, its problems, and how to learn from it."""
    tops = Counter(path.partition("/")[0] for path in tree.files if "/" in path)
    shown = ", ".join(f"{printable(top)} ({number:,})" for top, number in sorted(tops.items())[:10])
    logger.info(
        "  %s files in %s folders: %s%s", f"{len(tree.files):,}", f"{len(tops):,}", shown, ", …" if len(tops) > 10 else ""
    )
    sidecars = extensions(path for path, reason in found.ignored if reason == why_sidecar(path.rpartition("/")[2]))
    if sidecars:
        logger.info("  %s may be images; not named like images: %s", f"{len(found.entries):,}", shown_kinds(sidecars))
    log_remarks(found.remarks)
    if problems:
        logger.warning("%s", described(tree.root, problems, source))
        return
    logger.info("  to learn from it: python -m flows.pipeline --set %s", shlex.quote(f"data.source={source}"))
