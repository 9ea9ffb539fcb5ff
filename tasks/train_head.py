"""train_head: train the head on cached activations of the frozen body."""

from __future__ import annotations

import logging

from headstart.activations.store import Activations
from headstart.core.command_line import main
from headstart.core.files import read_checked_json, sha256_file, write_bytes
from headstart.core.stages import StageContext, Summary
from headstart.images.preprocessing import Preprocessing
from headstart.manifest import class_order, read_manifest, without_copies
from headstart.models.heads import build_head, fit_standardiser
from headstart.models.trained import ModelCard, save_model
from headstart.runtime import configure
from headstart.seeds import derive_seed
from headstart.tracking.runs import stage_run
from headstart.training import head as head_training
from headstart.training.activation_dataset import activations_of
from headstart.training.checkpoints import open_checkpoint
from headstart.training.loop import history_files
from headstart.training.options import options_of

logger = logging.getLogger("headstart")


def train_head(context: StageContext) -> Summary:
    """Write models/head.safetensors and reports/train_head/{history,trace}.csv. No image is decoded."""
    params, settings = context.params, context.params.train_head
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(context.root / "data/manifest.parquet")
    activations = Activations(context.root / "data/activations/pooled")
    train = activations_of(activations, manifest[manifest["split"] == "train"])
    valid = activations_of(activations, without_copies(manifest, "valid"))
    classes = class_order(manifest["label"])
    lr = settings.lr
    if lr == "auto":
        lr = float(read_checked_json(context.root / "reports/find_lr/lr.json")["lr"])
    head = build_head(settings.head, activations.width, len(classes), derive_seed(params.seed, "head"))
    fit_standardiser(head, train.base_views())
    provenance = {"weights": activations.meta["weights"], "manifest": sha256_file(context.root / "data/manifest.parquet")}
    identity = (
        provenance
        | {"code": context.code, "activations": activations.digest(), "seed": params.seed}
        | settings.model_dump()
        | {"lr": lr}
    )
    checkpoint = open_checkpoint(context.checkpoints, identity, "head")
    paths = list(manifest["path"][manifest["split"] == "train"])
    with stage_run(context.root, "train_head", settings.model_dump() | {"lr_used": lr}, checkpoint.run_path) as log:
        history = head_training.train_head(
            head,
            train,
            valid,
            epochs=settings.epochs,
            lr=lr,
            seed=params.seed,
            log=log,
            options=options_of(settings),
            name_of=paths.__getitem__,
            checkpoint=checkpoint,
        )
    best = history.best_epoch()
    logger.info("  kept epoch %s of %s: validation accuracy %.4f", best["epoch"], settings.epochs, best["valid_accuracy"])
    meta = activations.meta
    card = ModelCard(
        backbone=meta["backbone"],
        options=meta["options"],
        preprocessing=Preprocessing.from_dict(meta["preprocessing"]),
        limits={"max_pixels": params.data.max_pixels, "min_side": params.data.min_side, "formats": list(params.data.formats)},
        head=settings.head,
        width=activations.width,
        classes=tuple(classes),
        provenance=provenance,
    )
    save_model(context.output("models/head.safetensors"), head, card)
    for name, data in history_files(history).items():
        write_bytes(context.output(f"reports/train_head/{name}"), data)
    return {"lr": lr, "valid_accuracy": best["valid_accuracy"], "epoch_kept": best["epoch"]}


if __name__ == "__main__":
    main("train_head", train_head)
