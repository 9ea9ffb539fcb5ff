"""train_head: train the head on cached activations of the frozen body."""

from __future__ import annotations

import json
import logging

import torch
from headstart import tracking
from headstart.activations.store import Activations
from headstart.core.files import write_bytes
from headstart.core.stages import Job, Summary, main
from headstart.data.manifest import class_order, read_manifest
from headstart.data.transforms import Preprocessing
from headstart.models.heads import adapt, build_head
from headstart.models.trained import Card, save_model
from headstart.runtime import configure
from headstart.training import head as head_training
from headstart.training.loop import derive_seed, history_csv

logger = logging.getLogger("headstart")


def train_head(job: Job) -> Summary:
    """Write models/head.safetensors and reports/train_head/history.csv. No image is decoded."""
    params, settings = job.params, job.params.train_head
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(job.root / "data/manifest.parquet")
    activations = Activations(job.root / "data/activations")
    split = {name: manifest[manifest["split"] == name] for name in ("train", "valid")}
    x_vnd = activations.all_views(list(split["train"]["key"]))
    labels = {name: torch.tensor(rows["class_index"].to_numpy(), dtype=torch.int64) for name, rows in split.items()}
    classes = class_order(manifest["label"])
    lr = settings.lr
    if lr == "auto":
        lr = float(json.loads((job.root / "reports/find_lr/lr.json").read_text())["lr"])
    head = build_head(settings.head, activations.width, len(classes), derive_seed(params.seed, "head"))
    adapt(head, x_vnd[0])
    with tracking.stage_run(job.root, "train_head", settings.model_dump() | {"lr_used": lr}) as log:
        history = head_training.train_head(
            head,
            x_vnd,
            labels["train"],
            (activations.rows(list(split["valid"]["key"])), labels["valid"]),
            epochs=settings.epochs,
            lr=lr,
            batch_size=settings.batch_size,
            seed=params.seed,
            log=log,
        )
    best = history.epochs[history.best]
    logger.info("  kept epoch %s of %s: validation accuracy %.4f", history.best + 1, settings.epochs, best["valid_accuracy"])
    meta = activations.meta
    preprocessing = Preprocessing(**meta["preprocessing"])
    provenance = {"weights": meta["weights"], "manifest": meta["manifest"]}
    card = Card(meta["backbone"], preprocessing, settings.head, activations.width, tuple(classes), provenance)
    save_model(job.output("models/head.safetensors"), head, card)
    write_bytes(job.output("reports/train_head/history.csv"), history_csv(history))
    return {"lr": lr, "valid_accuracy": best["valid_accuracy"], "epoch_kept": history.best + 1}


if __name__ == "__main__":
    main("train_head", train_head)
