"""train_head: train the head on cached activations of the frozen body."""

from __future__ import annotations

import logging

from headstart.activations.inputs import HeadInputs
from headstart.core.command_line import main
from headstart.core.files import read_checked_json, sha256_file, write_bytes
from headstart.core.stages import StageContext, Summary
from headstart.images.preprocessing import Preprocessing
from headstart.manifest import read_manifest, rows_of, without_copies
from headstart.models.heads import build_head, fit_standardiser
from headstart.models.trained import ModelCard, save_model
from headstart.runtime import configure
from headstart.seeds import derive_seed
from headstart.targets.kinds import read_target
from headstart.targets.target import DecisionRule
from headstart.tracking.runs import stage_run
from headstart.training import head as head_training
from headstart.training.activation_dataset import inputs_of
from headstart.training.checkpoints import open_checkpoint
from headstart.training.head_spec import head_spec
from headstart.training.loop import TrainingRun, history_files
from headstart.training.options import options_of
from headstart.training.validation import collect_logits

logger = logging.getLogger("headstart")


def train_head(context: StageContext) -> Summary:
    """Write models/head.safetensors and reports/train_head/{history,trace}.csv. No image is decoded."""
    params, settings = context.params, context.params.train_head
    configure(params.runtime.threads, "cpu")
    manifest = read_manifest(context.root / "data/manifest.parquet")
    inputs = HeadInputs(context.root / "data/activations")
    target, options = read_target(context.root / "data/target.json"), options_of(settings)
    rows, chosen = rows_of(manifest, "train"), without_copies(manifest, "valid")
    y = target.encode(rows["label"])
    train = inputs_of(inputs, rows["key"], y, options.sampling(target, y))
    valid = inputs_of(inputs, chosen["key"], target.encode(chosen["label"]))
    lr = settings.lr
    if lr == "auto":
        lr = float(read_checked_json(context.root / "reports/find_lr/lr.json")["lr"])
    spec = head_spec(inputs, settings.head, target.outputs, settings.columns, rows["key"])
    head = build_head(spec, derive_seed(params.seed, "head"))
    fit_standardiser(head, train.base_views())
    meta = inputs.meta()
    provenance = {"weights": meta["weights"], "manifest": sha256_file(context.root / "data/manifest.parquet")}
    identity = (
        provenance
        | {"code": context.code, "activations": inputs.digest(), "seed": params.seed}
        | settings.model_dump()
        | {"lr": lr}
    )
    checkpoint = open_checkpoint(context.checkpoints, identity, "head")
    with stage_run(context.root, "train_head", settings.model_dump() | {"lr_used": lr}, checkpoint.run_path) as log:
        run = TrainingRun(params.seed, log, list(rows["path"]).__getitem__, checkpoint)
        history = head_training.train_head(head, train, valid, target, epochs=settings.epochs, lr=lr, options=options, run=run)
    best, words = history.best_epoch(), target.scores_in_words[target.headline]
    score = best[f"valid_{target.headline}"]
    logger.info("  kept epoch %s of %s: validation %s %.4f", best["epoch"], settings.epochs, words, score)
    answers = target.answers(collect_logits(head, valid.base_views()))
    rule = DecisionRule(params.evaluate.beta, params.evaluate.thresholds)
    card = ModelCard(
        backbone=meta["backbone"],
        options=meta["options"],
        preprocessing=Preprocessing.from_dict(meta["preprocessing"]) if meta["preprocessing"] else None,
        limits={"max_pixels": params.data.max_pixels, "min_side": params.data.min_side, "formats": list(params.data.formats)},
        head=spec,
        target=target.fitted(answers, target.truth(chosen["label"]), rule),
        provenance=provenance,
        columns={**inputs.columns.meta} if inputs.columns else None,
    )
    save_model(context.output("models/head.safetensors"), head, card)
    for name, data in history_files(history).items():
        write_bytes(context.output(f"reports/train_head/{name}"), data)
    return {"lr": lr, f"valid_{target.headline}": score, "epoch_kept": best["epoch"]}


if __name__ == "__main__":
    main("train_head", train_head)
