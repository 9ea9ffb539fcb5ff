"""link_data: scan, verify and split data.source into the manifest."""

from __future__ import annotations

import logging

from headstart.core.stages import Job, Summary, main
from headstart.data.manifest import scan, write_manifest, write_quarantine
from headstart.data.sources import SPLITS, list_source, preflight
from headstart.runtime import count

logger = logging.getLogger("headstart")


def link_data(job: Job) -> Summary:
    """Write data/manifest.parquet and data/quarantine.csv; the source itself is only read."""
    data = job.params.data
    source = job.root / data.source
    preflight(source)
    result = scan(
        source,
        list_source(source),
        seed=job.params.seed,
        valid_fraction=data.valid_fraction,
        test_fraction=data.test_fraction,
        max_quarantined=data.max_quarantined,
        max_pixels=data.max_pixels,
        workers=count(job.params.runtime.workers),
    )
    write_manifest(job.output("data/manifest.parquet"), result.manifest)
    write_quarantine(job.output("data/quarantine.csv"), result.quarantine)
    splits = result.manifest["split"].value_counts()
    counts = {split: int(splits.get(split, 0)) for split in (*SPLITS, "held_out")}
    classes = result.manifest["label"].nunique()
    logger.info(
        "  %s images of %s classes: %s; %s quarantined, %s other files ignored",
        f"{len(result.manifest):,}",
        classes,
        ", ".join(f"{n:,} {split}" for split, n in counts.items() if n),
        len(result.quarantine),
        result.ignored,
    )
    for row in result.quarantine.head(3).itertuples():
        logger.warning("  quarantined: %s: %s", row.path, row.reason)
    return {"images": len(result.manifest), "classes": classes, "quarantined": len(result.quarantine), **counts}


if __name__ == "__main__":
    main("link_data", link_data)
