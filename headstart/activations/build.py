"""Build one cut's activations: prove that they may be cached, compute what is missing, check a sample, write the files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.activations import namespace
from headstart.activations.cache import Cache, open_cache, row_bytes, row_keys
from headstart.activations.compute import File, Filled, assemble, engine_rows, fill
from headstart.activations.engine import Engine, build_engine, fidelity
from headstart.activations.guard import refuse_moved, refuse_moving, refuse_other
from headstart.activations.store import write_shards
from headstart.core.errors import InputError
from headstart.core.files import free_bytes
from headstart.core.progress import track
from headstart.images.loader import ImageSource, alone
from headstart.images.preprocessing import normalise
from headstart.models.backbones import Backbone
from headstart.models.cuts import output_shape

logger = logging.getLogger("headstart")
SAMPLE = 8
META = (
    "backbone", "options", "weights", "cut", "preprocessing", "augmentation", "view_seed", "engine", "precision", "storage",
    "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings that decide how rows are computed; see params.yaml, section precompute."""

    views: int
    engine: str
    precision: str
    storage: str
    batch_size: int
    device: torch.device
    workers: int


@dataclass(frozen=True)
class Built:
    """The result for one cut: its namespace in the cache, rows found and computed, the engine, and its fidelity."""

    namespace: str
    filled: Filled
    seconds: float
    engine: Engine
    fidelity: dict[str, float]

    def summary(self) -> dict[str, str | int | float]:
        """Return the facts for the log and for MLflow."""
        plan, filled = self.engine.plan, self.filled
        rates = {}
        if filled.computed:
            rates = {
                "images_per_second": round(filled.images / self.seconds, 1),
                "views_per_second": round(filled.computed / self.seconds, 1),
            }
        return {
            **rates,
            "rows": filled.rows,
            "cached_rows": filled.cached,
            "damaged_rows": filled.damaged,
            "engine": plan.engine,
            "precision": plan.precision,
            "storage": plan.storage,
            "reason": plan.reason,
            **self.fidelity,
        }


def build(
    out: Path,
    cache_root: Path,
    *,
    backbone: Backbone,
    body: nn.Module,
    cut: str,
    images: ImageSource,
    files: Sequence[File],
    settings: Settings,
) -> Built:
    """Write a body's activations of all images to `out`; take from the cache what it has, and compute the rest.

    Args:
        out: the folder of Arrow files.
        cache_root: see `cache.open_root`.
        backbone: the architecture.
        body: the part of the backbone below the cut: images [n, 3, s, s] float32 to activations [n, ...].
        cut: "pooled", or the layer group after which the activation map is taken.
        files: (path, key) of each image once, in the order of keys.

    Raises:
        InputError: the body's activations cannot be cached, an image changed, activations are not finite or differ when
            computed again, the disk is full, or the cache cannot be used.
    """
    preprocessing = images.preprocessing
    sample = spread(files, min(SAMPLE, settings.batch_size))
    digest, engine, measured = prepare(body, cut, images, sample, settings)
    shape = output_shape(body, preprocessing.image_size)
    description = namespace.describe(
        backbone=backbone.name,
        options=backbone.options,
        weights=digest,
        cut=cut,
        shape=shape,
        preprocessing=preprocessing,
        augmentation=images.augmentation,
        view_seed=images.seed,
        plan=engine.plan,
    )
    name = namespace.name_of(description)
    cache = open_cache(cache_root, name, description, row_bytes(shape, engine.plan.storage))
    start = time.monotonic()
    filled = fill(cache, engine, images, files, views=settings.views, workers=settings.workers, progress=show)
    seconds = time.monotonic() - start
    refuse_moved(body, digest)
    check_sample(cache, engine, images, sample, settings.views)
    meta = {field: description[field] for field in META}
    write_shards(out, assemble(cache, [key for _, key in files], settings.views), shape, engine.plan.storage, meta)
    return Built(name, filled, seconds, engine, measured)


def prepare(
    body: nn.Module, cut: str, images: ImageSource, sample: Sequence[File], settings: Settings
) -> tuple[str, Engine, dict[str, float]]:
    """Prove on a sample that a body's activations may be cached; return the body's digest, an engine and its fidelity."""
    preprocessing = images.preprocessing
    pictures = torch.stack([images.base_view(*file) for file in sample])
    digest = refuse_moving(body, normalise(pictures[torch.arange(4) % len(pictures)], preprocessing))
    engine = build_engine(
        body,
        preprocessing,
        engine=settings.engine,
        precision=settings.precision,
        storage=settings.storage,
        batch_size=settings.batch_size,
        device=settings.device,
        workers=settings.workers,
    )
    measured = fidelity(engine, body, preprocessing, pictures)
    explain(engine, cut, measured)
    return digest, engine, measured


def spread(files: Sequence[File], count: int) -> list[File]:
    """Return up to `count` evenly spaced files: a random but reproducible sample, as the keys are hashes."""
    return list(files[:: max(1, len(files) // count)][:count])


def show(done: Iterator[int], total: int, cached: int) -> Iterator[int]:
    """Log how many views are cached, and show the progress of the others."""
    logger.info("  %s of %s views are in the cache, %s to compute", f"{cached:,}", f"{cached + total:,}", f"{total:,}")
    return track(done, "computing activations", total, unit="views", weigh=lambda rows: rows)


def explain(engine: Engine, cut: str, measured: dict[str, float]) -> None:
    """Log how the activations are computed, and their fidelity."""
    plan = engine.plan
    logger.info(
        "  %s activations: computed with %s in %s (%s) on %s, stored as %s",
        cut, plan.engine, plan.precision, plan.reason, plan.device, plan.storage,
    )  # fmt: skip
    logger.info(
        "  agreement with float32 on a sample: cosine at least %.5f, largest difference %.3g (largest activation %.3g)",
        measured["cosine_min"], measured["max_error"], measured["max_value"],
    )  # fmt: skip


def check_sample(cache: Cache, engine: Engine, images: ImageSource, sample: Sequence[File], views: int) -> None:
    """Compute one view of each sample image again and compare it with the cached row.

    Raises:
        InputError: a row is not the same bit for bit.
    """
    path_of = {key: path for path, key in sample}
    wanted = [(key, i % (1 + views)) for i, (_, key) in enumerate(sample)]

    def compute_again(names: Sequence[tuple[str, int]]) -> NDArray[np.uint8]:
        def rows() -> NDArray[np.uint8]:
            pictures = [next(images.views(path_of[key], key, [view])) for key, view in names]
            return engine_rows(engine, names, torch.stack(pictures))

        return alone(rows)

    stored, _ = cache.read(cache.find(np.concatenate([row_keys([key], [view]) for key, view in wanted])))
    refuse_other(compute_again, wanted, stored)


def refuse_too_large(project: Path, cache_root: Path, needed: int, max_gb: float) -> None:
    """Refuse, before the first row is computed, activations that exceed `max_gb` or the free disk space.

    In the worst case they are stored three times: in the cache, as a DVC output, and as DVC's copy of the output.

    Args:
        needed: upper limit of the bytes of all rows of all cuts.

    Raises:
        InputError: naming the space that is needed and the space that is free.
    """
    if needed > max_gb * 1e9:
        raise InputError(
            f"the activations of all views need {needed / 1e9:.3g} GB, and precompute.max_gb is {max_gb:g}",
            fix="raise precompute.max_gb or lower precompute.views, or set precompute.cache_map_after to none or"
            " precompute.storage to float16",
        )
    for path, copies, what in ((project, 2, "with DVC's copy"), (cache_root, 1, "in the cache")):
        free = free_bytes(path)
        if copies * needed > free:
            raise InputError(
                f"{path}: {free / 1e9:.3g} GB free, and the activations need {copies * needed / 1e9:.3g} GB ({what})",
                fix="free space, or lower precompute.views",
            )
