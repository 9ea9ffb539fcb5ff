"""find_lr: run the learning-rate range test of the head on cached activations."""

from __future__ import annotations

import torch
from headstart.activations.store import Activations
from headstart.core.command_line import main
from headstart.core.stages import StageContext, Summary
from headstart.manifest import read_manifest
from headstart.models.heads import build_head, fit_standardiser
from headstart.runtime import configure
from headstart.seeds import derive_seed
from headstart.tracking.runs import stage_run
from headstart.training.activation_dataset import activations_of, endless
from headstart.training.head import head_prepare
from headstart.training.lr_report import write_search
from headstart.training.lr_search import Curve, range_test, suggest
from headstart.training.options import Options


def find_lr(context: StageContext) -> Summary:
    """Write reports/find_lr/{lr.json, curve.csv, curve.png}. No image is decoded."""
    params, settings, training = context.params, context.params.find_lr, context.params.train_head
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(context.root / "data/manifest.parquet")
    activations = Activations(context.root / "data/activations/pooled")
    train = activations_of(activations, manifest[manifest["split"] == "train"])
    options = Options(
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        label_smoothing=training.label_smoothing,
        balance=training.balance,
    )

    def curve(number: int) -> Curve:
        seed = derive_seed(params.seed, "find_lr", number)
        head = build_head(training.head, activations.width, manifest["class_index"].max() + 1, seed)
        fit_standardiser(head, train.base_views())
        return range_test(
            head,
            head_prepare(options, settings.lr_min),
            endless(train, options, seed),
            loss=options.loss(train.y_n, torch.device("cpu")),
            lr_min=settings.lr_min,
            lr_max=settings.lr_max,
            steps=settings.steps,
            seed=seed,
        )

    searched = {"lr_min": settings.lr_min, "lr_max": settings.lr_max, "steps": settings.steps, "seeds": settings.seeds}
    with stage_run(context.root, "find_lr", searched) as log:
        curves = [curve(number) for number in range(settings.seeds)]
        log.curve({"lr": lr, "smoothed_loss": loss} for lr, loss in zip(curves[0].lrs, curves[0].losses, strict=True))
    found = suggest(curves, settings.default)
    return {"suggested_lr": write_search(context.output("reports/find_lr/lr.json").parent, curves, found)}


if __name__ == "__main__":
    main("find_lr", find_lr)
