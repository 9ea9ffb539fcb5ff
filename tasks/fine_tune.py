"""fine_tune: unfreeze the body and train it and the head on augmented images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pandas as pd
import torch
from headstart import tracking
from headstart.core.errors import InputError
from headstart.core.files import write_bytes
from headstart.core.parallel import count
from headstart.core.progress import track
from headstart.core.stages import Job, Summary, main
from headstart.data.images import ImageSource
from headstart.data.manifest import read_manifest
from headstart.data.transforms import Augmentation
from headstart.models.backbones import build_backbone
from headstart.models.freezing import has_batch_norm, layer_groups
from headstart.models.heads import Classifier
from headstart.models.trained import load_head, save_model
from headstart.models.weights import state_digest
from headstart.runtime import configure, place
from headstart.training import fine_tune as tuning
from headstart.training.loop import Batch, derive_seed, history_csv

logger = logging.getLogger("headstart")


def fine_tune(job: Job) -> Summary:
    """Write models/fine_tuned.safetensors and reports/fine_tune/history.csv."""
    params, settings = job.params, job.params.fine_tune
    device = configure(params.runtime.threads, params.runtime.device)
    manifest = read_manifest(job.root / "data/manifest.parquet")
    head, card = load_head(job.root / "models/head.safetensors")
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    if state_digest(backbone.body) != card.provenance["weights"]:
        raise InputError("models/head.safetensors was trained on another backbone", fix="run the whole pipeline")
    model = place(Classifier(backbone.body, head), device)
    if settings.bn_freeze and not has_batch_norm(model):
        logger.info("  bn_freeze changes nothing: %s has no batch norm", backbone.name)
    lr = settings.lr
    if lr == "auto":
        lr = float(json.loads((job.root / "reports/find_lr/lr.json").read_text())["lr"]) / 2
    images = ImageSource(
        folder=job.root / params.data.source,
        max_pixels=params.data.max_pixels,
        preprocessing=card.preprocessing,
        augmentation=Augmentation(**params.precompute.augment.model_dump()),
        seed=derive_seed(params.seed, "fine_tune"),
    )
    train, valid = (manifest[manifest["split"] == split].reset_index(drop=True) for split in ("train", "valid"))
    with tracking.stage_run(job.root, "fine_tune", settings.model_dump() | {"lr_used": lr}) as log:
        history = tuning.fine_tune(
            model,
            layer_groups(backbone.groups, model),
            train=(lambda epoch, row: images.augmented(train["path"][row], train["key"][row], epoch), labels(train)),
            valid=(lambda row: images.plain(valid["path"][row], valid["key"][row]), labels(valid)),
            preprocessing=card.preprocessing,
            epochs=settings.epochs,
            lr=lr,
            lr_ratio=settings.lr_ratio,
            bn_freeze=settings.bn_freeze,
            unfreeze_from=settings.unfreeze_from,
            batch_size=settings.batch_size,
            label_smoothing=settings.label_smoothing,
            workers=count(params.runtime.workers),
            seed=params.seed,
            log=log,
            progress=lambda batches, epoch, steps: show(batches, epoch, settings.epochs, steps),
        )
    best = history.epochs[history.best]
    logger.info("  kept epoch %s of %s: validation accuracy %.4f", history.best + 1, settings.epochs, best["valid_accuracy"])
    save_model(job.output("models/fine_tuned.safetensors"), model, card)
    write_bytes(job.output("reports/fine_tune/history.csv"), history_csv(history))
    return {"lr": lr, "valid_accuracy": best["valid_accuracy"], "epoch_kept": history.best + 1}


def labels(rows: pd.DataFrame) -> torch.Tensor:
    """Class indices [n] int64."""
    return torch.tensor(rows["class_index"].to_numpy(), dtype=torch.int64)


def show(batches: Iterator[Batch], epoch: int, epochs: int, steps: int) -> Iterator[Batch]:
    """Progress of one epoch."""
    return track(batches, f"epoch {epoch + 1} of {epochs}", steps, unit="batches")


if __name__ == "__main__":
    main("fine_tune", fine_tune)
