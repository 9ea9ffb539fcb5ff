"""precompute: the frozen body's activations of every image, the plain view and K augmented ones."""

from __future__ import annotations

import logging
import time

import torch
from headstart.activations.compute import DTYPES, compute_blocks
from headstart.activations.engine import Engine, fidelity
from headstart.activations.store import write_shards
from headstart.core.errors import InputError
from headstart.core.files import free_bytes, sha256_file
from headstart.core.parallel import count
from headstart.core.progress import track
from headstart.core.stages import Job, Summary, main
from headstart.data.images import ImageSource
from headstart.data.manifest import read_manifest
from headstart.data.transforms import Augmentation
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.weights import state_digest
from headstart.runtime import configure

logger = logging.getLogger("headstart")
SAMPLE = 8


def precompute(job: Job) -> Summary:
    """Write data/activations/*.arrow.

    Raises:
        InputError: weights that cannot be had, an image that changed, not enough disk.
    """
    params = job.params
    device = configure(params.runtime.threads, params.runtime.device)
    manifest = read_manifest(job.root / "data/manifest.parquet").drop_duplicates("key").sort_values("key")
    files = list(zip(manifest["path"], manifest["key"], strict=True))
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    settings = params.precompute
    images = ImageSource(
        folder=job.root / params.data.source,
        max_pixels=params.data.max_pixels,
        preprocessing=backbone.preprocessing,
        augmentation=Augmentation(**settings.augment.model_dump()),
        seed=params.seed,
    )
    engine = Engine(backbone.body, backbone.preprocessing, settings.precision, settings.batch_size, device)
    dtype = DTYPES[engine.plan.precision]
    rows = len(files) * (1 + settings.views)
    refuse_full_disk(job, rows * (backbone.width * (2 if dtype == "float16" else 4) + 100))
    sample = torch.stack([images.plain(*file) for file in files[: min(SAMPLE, settings.batch_size)]])
    measured = fidelity(engine, backbone.body, sample)
    explain(settings.views, engine, measured)
    blocks = compute_blocks(engine, images, files, views=settings.views, workers=count(params.runtime.workers))
    start = time.monotonic()
    write_shards(
        job.output("data/activations/x").parent,
        track(blocks, "computing activations", rows, weight=settings.batch_size),
        backbone.width,
        dtype,
        provenance(job, backbone, engine),
    )
    rate = rows / (time.monotonic() - start)
    return {"images": rows, "images_per_second": round(rate, 1), "precision": engine.plan.precision, **measured}


def refuse_full_disk(job: Job, wanted: int) -> None:
    """Refuse before the first row when the activations cannot fit (twice: once here, once in DVC's cache)."""
    free = free_bytes(job.root)
    if 2 * wanted > free:
        raise InputError(
            f"{job.root}: {free / 1e9:.1f} GB free, and the activations need {2 * wanted / 1e9:.1f} GB (with DVC's copy)",
            fix="free space, or lower precompute.views",
        )


def explain(views: int, engine: Engine, measured: dict[str, float]) -> None:
    """Say in the log how the activations are computed, and what views mean for training."""
    plan = engine.plan
    logger.info(
        "  %s (%s), %s batch norms folded, on %s; against plain float32: cosine >= %.5f",
        plan.precision,
        plan.reason,
        plan.folded,
        engine.device,
        measured["cosine_min"],
    )
    if not views:
        logger.info("  precompute.views is 0: with precomputed activations, no data augmentation takes place")


def provenance(job: Job, backbone: Backbone, engine: Engine) -> dict[str, object]:
    """What the activations were made from; kept in the files."""
    return {
        "backbone": backbone.name,
        "weights": state_digest(backbone.body),
        "preprocessing": backbone.preprocessing.as_dict(),
        "precision": engine.plan.precision,
        "batch_size": engine.plan.batch_size,
        "augment": job.params.precompute.augment.model_dump(),
        "seed": job.params.seed,
        "manifest": sha256_file(job.root / "data/manifest.parquet"),
    }


if __name__ == "__main__":
    main("precompute", precompute)
