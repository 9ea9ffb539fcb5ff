"""precompute: compute the frozen body's activations of every image: of its base view and K augmented views."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
from headstart.activations.build import Settings, build, refuse_too_large
from headstart.activations.cache import open_root, record_use, row_bytes
from headstart.activations.columns import write_columns
from headstart.activations.compute import File
from headstart.core.command_line import main
from headstart.core.errors import naming
from headstart.core.params import NO_BACKBONE
from headstart.core.stages import StageContext, Summary
from headstart.hardware import resolve_workers
from headstart.images.loader import open_images
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
    with naming(params.data.source):
        encoded = write_columns(context.out / "data/activations/columns", listed, params.data)
    if params.backbone.name == NO_BACKBONE:
        return encoded
    manifest = listed.drop_duplicates("key").sort_values("key")
    files = {"pooled": files_of(manifest)}
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    preprocessing = replace(backbone.preprocessing, whites=whites_of(listed))
    folder, again = context.root / params.data.source, settings.cache_map_after != "none"  # a second cut decodes no image
    images = open_images(
        folder, params.data.max_pixels, preprocessing, settings.augment.model_dump(), settings.view_seed, keep_resized=again
    )
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
    how = settings.model_dump(include={"views", "engine", "precision", "storage", "batch_size"})
    chosen = Settings(**how, device=device, workers=resolve_workers(params.runtime.workers))
    built = {
        cut: build(
            context.output(f"data/activations/{cut}/x").parent,
            root,
            backbone=backbone,
            body=body,
            cut=cut,
            images=images,
            files=files[cut],
            settings=chosen,
        )
        for cut, body in bodies.items()
    }
    record_use(root, context.root, {cut: one.namespace for cut, one in built.items()}, params)
    return built["pooled"].summary() | encoded


def files_of(images: pd.DataFrame) -> list[File]:
    """Return (path, key) of each of a manifest's images."""
    return list(zip(images["path"], images["key"], strict=True))


if __name__ == "__main__":
    main("precompute", precompute)
