"""fine_tune: unfreeze the body and train it with the head, on augmented images or from a cached map."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

from headstart.activations.engine import probe_images
from headstart.activations.inputs import HeadInputs
from headstart.core.command_line import main
from headstart.core.files import read_checked_json, sha256_file, write_bytes, write_json
from headstart.core.stages import StageContext, Summary
from headstart.hardware import resolve_workers
from headstart.images.loader import open_images
from headstart.manifest import read_manifest, rows_of, without_copies
from headstart.models.backbones import build_backbone
from headstart.models.trained import load_card, load_head, refuse_another, save_model
from headstart.runtime import configure
from headstart.seeds import derive_seed
from headstart.targets.target import DecisionRule
from headstart.tracking.runs import stage_run
from headstart.training.checkpoints import open_checkpoint
from headstart.training.loop import history_files
from headstart.training.lr_report import write_search
from headstart.training.tuning import NOTHING_KEPT, NOTHING_TO_UNFREEZE, Tuner, TuningData, open_network, what_was_kept

logger = logging.getLogger("headstart")
FOUND, REPORTS, HEAD = "reports/find_lr/lr.json", "reports/fine_tune", "models/head.safetensors"
TUNED = "models/fine_tuned.safetensors"


def fine_tune(context: StageContext) -> Summary:
    """Write models/fine_tuned.safetensors and reports/fine_tune/{history,trace}.csv, lr.json, curve.*, bn_freeze.json."""
    if load_card(context.root / HEAD).preprocessing is None:
        logger.info("  %s", NOTHING_TO_UNFREEZE)
        save_model(context.output(TUNED), *load_head(context.root / HEAD))
        write_json(context.output(f"{REPORTS}/kept.json"), NOTHING_KEPT)
        return {"kept": NOTHING_TO_UNFREEZE}
    tuner, lr = build_tuner(context), context.params.fine_tune.lr
    if lr == "auto":
        head_lr = float(read_checked_json(context.root / FOUND)["lr"])
        curves, suggestion = tuner.search(context.params.find_lr.unfrozen, default=head_lr / 2)  # as fastai 2's `fine_tune`
        lr = write_search(context.output(f"{REPORTS}/lr.json").parent, curves, suggestion)
    tuned = tuner.tune(lr, DecisionRule(context.params.evaluate.beta, context.params.evaluate.thresholds))
    target, history = tuned.answered.target, tuned.history
    best, found, card = history.best_epoch(), what_was_kept(history, target), load_card(context.root / HEAD)
    logger.info("  %s", found["sentence"])
    save_model(file := context.output(TUNED), tuned.model, replace(card, target=target))
    refuse_another(file, tuned.model, probe_images(card.for_images.image_size, 2))
    write_json(context.output(f"{REPORTS}/kept.json"), found)
    for name, data in history_files(history).items():
        write_bytes(context.output(f"{REPORTS}/{name}"), data)
    score = f"valid_{target.headline}"
    facts = {score: best[score], "epoch_kept": best["epoch"], "kept": found["sentence"], "training_seconds": tuned.seconds}
    if tuned.choice is not None:
        write_json(context.output(f"{REPORTS}/bn_freeze.json"), tuned.choice.as_json())
        facts["bn_freeze"] = tuned.choice.sentence()
    return {"lr": lr if isinstance(lr, float) else ", ".join(f"{one:g}" for one in lr), **facts}


def build_tuner(context: StageContext) -> Tuner:
    """Build the network with the trained head, its data, and the identity of its checkpoints."""
    params, settings = context.params, context.params.fine_tune
    device = configure(params.runtime.threads, params.runtime.device)
    head, card = load_head(context.root / HEAD)
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    network = open_network(backbone, head, card, device, settings)
    paths = {name: context.root / name for name in ("data/manifest.parquet", HEAD, FOUND)}
    manifest, after = read_manifest(paths["data/manifest.parquet"]), params.precompute.cache_map_after
    folder, augment, seed = context.root / params.data.source, params.precompute.augment, derive_seed(params.seed, "fine_tune")
    images = open_images(folder, params.data.max_pixels, card.for_images, augment.model_dump(), seed)
    maps = None if after == "none" else (context.root / f"data/activations/{after}", after)
    rows, workers = (rows_of(manifest, "train"), without_copies(manifest, "valid")), resolve_workers(params.runtime.workers)
    columns = HeadInputs(context.root / "data/activations").columns
    data = TuningData(images, card.target, *rows, settings.balance == "sampling", maps, workers, columns)
    sources = [data.source(network, one, device) for one in settings.phases()]
    identity = {
        "code": context.code,
        "inputs": {name: sha256_file(path) for name, path in paths.items()},
        "maps": [*(source.digest for source in sources), columns.digest() if columns else ""],
        "params": [params.seed, *(part.model_dump() for part in (params.backbone, augment, settings))],
        "search": params.find_lr.unfrozen.model_dump(),
        "precision": network.precision,
    }
    checkpoint = functools.partial(open_checkpoint, context.checkpoints, identity, device=device.type)
    return Tuner(network, data, sources, settings, params.seed, checkpoint, functools.partial(stage_run, context.root))


if __name__ == "__main__":
    main("fine_tune", fine_tune)
