"""precompute: compute the frozen body's activations of every image: of its base view and K augmented views."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
from headstart.activations.build import Settings, build, refuse_too_large
from headstart.activations.cache import open_root, record_use, row_bytes
from headstart.activations.columns import AskedColumns, write_columns
from headstart.activations.compute import File
from headstart.core.command_line import main
from headstart.core.params import NO_BACKBONE
from headstart.core.stages import StageContext, Summary
from headstart.hardware import resolve_workers
from headstart.images.loader import RESIZED_CACHE_BYTES, ImageSource, ResizedImageCache
from headstart.images.transforms import Augmentation
from headstart.images.whites import whites_of
from headstart.manifest import read_manifest
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body, output_shape
from headstart.runtime import configure

logger = logging.getLogger("headstart")


def precompute(context: StageContext) -> Summary:
    """Write data/activations/{pooled,columns,GROUP}/*.arrow: of images, of columns, and where cache_map_after names a group.

    Raises:
        InputError: the weights cannot be loaded, the body's activations cannot be cached, an image changed, the disk
            has no room, or the cache cannot be used.
    """
    params, settings = context.params, context.params.precompute
    device = configure(params.runtime.threads, params.runtime.device)
    listed = read_manifest(context.root / "data/manifest.parquet")
    encoded = _columns(context, listed)
    if params.backbone.name == NO_BACKBONE:
        return encoded
    manifest = listed.drop_duplicates("key").sort_values("key")
    files = {"pooled": files_of(manifest)}
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    preprocessing = replace(backbone.preprocessing, whites=whites_of(listed))
    folder, augmentation = context.root / params.data.source, Augmentation(**settings.augment.model_dump())
    cache = ResizedImageCache(RESIZED_CACHE_BYTES if settings.cache_map_after != "none" else 0)  # a second cut decodes no image
    images = ImageSource(folder, params.data.max_pixels, preprocessing, augmentation, settings.view_seed, cache)
    bodies = {"pooled": backbone.body}
    if settings.cache_map_after != "none":
        bodies[settings.cache_map_after], _ = cut_body(backbone.body, backbone.groups, settings.cache_map_after)
        files[settings.cache_map_after] = files_of(manifest[manifest["split"].isin(["train", "valid"])])  # what fine_tune reads
    root = open_root(context.root / Path(params.runtime.cache_dir).expanduser())
    widest = "float16" if settings.storage == "float16" else "float32"
    sizes = {cut: row_bytes(output_shape(body, params.backbone.image_size), widest) for cut, body in bodies.items()}
    needed = sum(len(files[cut]) * (1 + settings.views) * size for cut, size in sizes.items())
    refuse_too_large(context.root, root, needed, settings.max_gb)
    if not settings.views:
        logger.info("  precompute.views is 0, so data augmentation does nothing: the head trains on the base views alone")
    how = Settings(
        settings.views,
        settings.engine,
        settings.precision,
        settings.storage,
        settings.batch_size,
        device,
        resolve_workers(params.runtime.workers),
    )
    built = {
        cut: build(
            context.output(f"data/activations/{cut}/x").parent,
            root,
            backbone=backbone,
            body=body,
            cut=cut,
            images=images,
            files=files[cut],
            settings=how,
        )
        for cut, body in bodies.items()
    }
    record_use(root, context.root, {cut: one.namespace for cut, one in built.items()}, params)
    return built["pooled"].summary() | encoded


def _columns(context: StageContext, manifest: pd.DataFrame) -> dict[str, int]:
    """Write data/activations/columns/*.arrow, if there are columns to learn from."""
    data = context.params.data
    asked = AskedColumns(**data.columns.model_dump())
    if not asked.any():
        return {}
    about = {"joins": [one.model_dump() for one in data.joins], "elapsed": [one.model_dump() for one in data.elapsed]}
    folder = context.output("data/activations/columns/x").parent
    return write_columns(folder, manifest, asked, about | {"split_by": data.split_by})


def files_of(images: pd.DataFrame) -> list[File]:
    """Return (path, key) of each of a manifest's images."""
    return list(zip(images["path"], images["key"], strict=True))


if __name__ == "__main__":
    main("precompute", precompute)
