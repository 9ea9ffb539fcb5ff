"""find_lr: the learning-rate range test on the head's cached activations."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pandas as pd
from headstart import tracking
from headstart.activations.store import Activations
from headstart.core.files import write_bytes, write_json
from headstart.core.stages import Job, Summary, main
from headstart.data.manifest import read_manifest
from headstart.evaluation.plots import lr_curve
from headstart.models.heads import adapt, build_head
from headstart.runtime import configure
from headstart.training.head import Rows, activations_of, epoch_batches
from headstart.training.loop import Batch, derive_seed
from headstart.training.lr_search import Curve, range_test, suggest

logger = logging.getLogger("headstart")


def find_lr(job: Job) -> Summary:
    """Write reports/find_lr/{lr.json, curve.csv, curve.png}. No image is decoded."""
    params, settings = job.params, job.params.find_lr
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(job.root / "data/manifest.parquet")
    activations = Activations(job.root / "data/activations/pooled")
    train = activations_of(activations, manifest, "train")

    def curve(number: int) -> Curve:
        seed = derive_seed(params.seed, "find_lr", number)
        head = build_head(params.train_head.head, activations.width, manifest["class_index"].max() + 1, seed)
        adapt(head, train.plain())
        return range_test(
            head,
            endless(train, params.train_head.batch_size, seed),
            lr_min=settings.lr_min,
            lr_max=settings.lr_max,
            steps=settings.steps,
            seed=seed,
        )

    with tracking.stage_run(job.root, "find_lr", settings.model_dump()) as log:
        curves = [curve(number) for number in range(settings.seeds)]
        for step, (lr, loss) in enumerate(zip(curves[0].lrs, curves[0].losses, strict=True)):
            log(step, {"lr": lr, "smoothed_loss": loss})
    found = suggest(curves, settings.default)
    folder = job.output("reports/find_lr/lr.json").parent
    write_json(folder / "lr.json", {
        "lr": found.lr, "abstained": found.abstained, "by_rule": found.by_rule,
        "spread": found.spread if found.spread != float("inf") else None,
    })  # fmt: skip
    write_bytes(folder / "curve.csv", table(curves))
    shown = [(one.lrs, one.losses) for one in curves]
    write_bytes(folder / "curve.png", lr_curve(shown, found.by_rule, found.lr, found.abstained))
    if found.abstained:
        logger.info("  the rules and seeds disagree by more than a decade: the default %.2g is used", found.lr)
    else:
        logger.info("  suggested learning rate %.2g (all suggestions within a factor of %.3g)", found.lr, found.spread)
    return {"suggested_lr": found.lr}


def endless(rows: Rows, batch_size: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of shuffled batches."""
    epoch = 0
    while True:
        yield from epoch_batches(rows, batch_size, derive_seed(seed, "order", epoch))
        epoch += 1


def table(curves: list[Curve]) -> bytes:
    """The curves as CSV: seed, lr, smoothed loss."""
    rows = [(i, *pair) for i, one in enumerate(curves) for pair in zip(one.lrs, one.losses, strict=True)]
    buffer = io.StringIO()
    pd.DataFrame(rows, columns=["seed", "lr", "smoothed_loss"]).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue().encode()


if __name__ == "__main__":
    main("find_lr", find_lr)
