"""fine_tune: unfreeze the body and train it and the head, on augmented images or from a cached map."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
from headstart.activations.engine import probe_images
from headstart.activations.store import Activations
from headstart.core.command_line import main
from headstart.core.errors import InputError
from headstart.core.files import read_checked_json, sha256_file, write_bytes, write_json
from headstart.core.params import Stretch as Phase
from headstart.core.progress import track
from headstart.core.stages import StageContext, Summary
from headstart.hardware import choose_precision, resolve_workers
from headstart.images.loader import KEPT_BYTES, ImageSource, Kept
from headstart.images.transforms import Augmentation
from headstart.manifest import read_manifest, without_copies
from headstart.models.backbones import build_backbone, refuse_size
from headstart.models.cuts import cut_body
from headstart.models.freezing import has_batch_norm
from headstart.models.heads import Classifier
from headstart.models.trained import Card, load_head, refuse_another, save_model
from headstart.models.weights import state_digest
from headstart.runtime import configure, place
from headstart.seeds import derive_seed
from headstart.tracking.runs import stage_run
from headstart.training import fine_tune as tuning
from headstart.training.bn_choice import Verdict, choose
from headstart.training.checkpoints import Checkpoint, open_checkpoint
from headstart.training.fine_tune import Feed, Network, Stretch
from headstart.training.head import activations_of
from headstart.training.loop import History, history_files
from headstart.training.lr_report import write_search
from headstart.training.lr_search import Curve, range_test, suggest
from headstart.training.options import options_of
from headstart.training.validation import predict

logger = logging.getLogger("headstart")
ARMS = {True: "frozen", False: "moving"}
Rate = float | Sequence[float]


def fine_tune(context: StageContext) -> Summary:
    """Write models/fine_tuned.safetensors and reports/fine_tune/{history,trace}.csv, lr.json, curve.*, bn_freeze.json."""
    params, settings = context.params, context.params.fine_tune
    device = configure(params.runtime.threads, params.runtime.device)
    head, card = load_head(context.root / "models/head.safetensors")
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    if state_digest(backbone.body) != card.provenance["weights"] or dict(backbone.options) != dict(card.options):
        raise InputError("models/head.safetensors was trained on another backbone", fix="run the whole pipeline")
    for number, one in enumerate(settings.gradual):
        if one.image_size != "none":
            refuse_size(backbone, one.image_size, f"fine_tune.gradual[{number}].image_size")
    model = place(Classifier(backbone.body, head), device)
    if not has_batch_norm(model):
        logger.info("  bn_freeze changes nothing: %s has no batch norm", backbone.name)
    precision, why = choose_precision(settings.precision, device)
    logger.info("  training in %s (%s)", precision, why)
    network = Network(model, backbone.groups, settings.bn_freeze is not False, precision)
    manifest = read_manifest(context.root / "data/manifest.parquet")
    pixels = Kept(KEPT_BYTES)
    feeds = [feed_for(context, network, card, manifest, one, device, pixels) for one in settings.stretches()]
    identity = {
        "code": context.code,
        "head": sha256_file(context.root / "models/head.safetensors"),
        "manifest": sha256_file(context.root / "data/manifest.parquet"),
        "backbone": params.backbone.model_dump(),
        "augment": params.precompute.augment.model_dump(),
        "maps": [feed.digest for feed in feeds],
        "fine_tune": settings.model_dump(),
        "find_lr": [params.find_lr.unfrozen.model_dump(), sha256_file(context.root / "reports/find_lr/lr.json")],
        "seed": params.seed,
        "precision": precision,
    }
    tuner = Tuner(context, manifest, network, feeds, identity)
    lr = tuner.rate()
    arms = [True, False] if settings.bn_freeze == "auto" and has_batch_norm(model) else [network.bn_freeze]
    start = time.monotonic()
    tuned = {arm: tuner.tune(arm, lr, f"fine_tune {ARMS[arm]}" if len(arms) > 1 else "fine_tune") for arm in arms}
    summary: dict[str, str | float] = {"training_seconds": round(time.monotonic() - start, 3)}
    kept = arms[0]
    if len(arms) > 1:
        verdict = tuner.verdict({arm: one for arm, (one, _) in tuned.items()})
        kept, summary = verdict.bn_freeze, summary | {"bn_freeze": verdict.sentence()}
    best_model, history = tuned[kept]
    best, found = history.best_epoch(), what_was_kept(history)
    logger.info("  %s", found["sentence"])
    save_model(file := context.output("models/fine_tuned.safetensors"), best_model, card)
    refuse_another(file, best_model, probe_images(card.preprocessing.image_size, 2))
    write_json(context.output("reports/fine_tune/kept.json"), found)
    for name, data in history_files(history).items():
        write_bytes(context.output(f"reports/fine_tune/{name}"), data)
    rate = lr if isinstance(lr, float) else ", ".join(f"{one:g}" for one in lr)
    return {
        "lr": rate,
        "valid_accuracy": best["valid_accuracy"],
        "epoch_kept": best["epoch"],
        "kept": found["sentence"],
        **summary,
    }


def what_was_kept(history: History) -> dict[str, str | int | float]:
    """Whether fine-tuning or the trained head as it was is the better by validation, and why; for kept.json."""
    head, *tuned = history.epochs
    best = min(tuned, key=lambda row: row["valid_calibrated_log_loss"])
    kept = history.best_epoch()["epoch"]
    own, before = best["valid_calibrated_log_loss"], head["valid_calibrated_log_loss"]
    losses = f"validation log-loss after temperature scaling {own:.4f} in epoch {best['epoch']}, {before:.4f} before"
    accuracies = f"accuracy {best['valid_accuracy']:.4f}, {head['valid_accuracy']:.4f} before"
    lowered = (
        f" The rate was lowered to {history.scale:.2g} of what was set, as it spoilt the network." if history.scale < 1 else ""
    )
    if kept:
        sentence = f"The fine-tuned network is kept, as it is after epoch {kept}: {losses} ({accuracies}).{lowered}"
    else:
        sentence = f"Fine-tuning is not kept, the trained head is better as it was: {losses} ({accuracies}).{lowered}"
    return {"epoch": kept, "rate_scale": history.scale, "sentence": sentence}


@dataclass(frozen=True)
class Tuner:
    """Fine-tuning from one head: the search, the arms, the choice between them."""

    context: StageContext
    manifest: pd.DataFrame
    network: Network
    feeds: Sequence[Feed]
    identity: Mapping[str, object]

    def split(self, name: str) -> pd.DataFrame:
        """The manifest's rows of one split; of those that choose, copies resolve_workers once."""
        return split_of(self.manifest, name)

    def checkpoint(self, name: str) -> Checkpoint:
        """The place of one training."""
        device = next(self.network.model.parameters()).device.type
        return open_checkpoint(self.context.checkpoints, self.identity, name, device)

    def stretches(self, lr: Rate) -> list[Stretch]:
        """The phases; `lr` for those whose rate is `auto`."""
        settings = self.context.params.fine_tune
        return [
            Stretch(one.unfreeze_from, one.epochs, lr if one.lr == "auto" else one.lr, settings.lr_ratio)
            for one in settings.stretches()
        ]

    def rate(self) -> Rate:
        """The last phase's rate: as params.yaml has it, or found by a range test on the unfrozen network."""
        params, settings, folder = (
            self.context.params,
            self.context.params.fine_tune,
            self.context.output("reports/fine_tune/lr.json").parent,
        )
        if settings.lr != "auto":
            return settings.lr
        search, options = params.find_lr.unfrozen, options_of(settings)
        default = self.head_rate() / 2
        stretch, feed = self.stretches(default)[-1], self.feeds[-1]
        loss = options.loss(labels(self.split("train")), next(self.network.model.parameters()).device)

        def curve(number: int) -> Curve:
            seed = derive_seed(params.seed, "find_lr unfrozen", number)
            return range_test(
                self.network.model,
                tuning.network_prepare(self.network, stretch, feed, options),
                tuning.endless(feed, options, seed),
                loss=loss,
                lr_min=search.lr_min,
                lr_max=search.lr_max,
                steps=search.steps,
                seed=seed,
            )

        logger.info("  searching the learning rate of the unfrozen network")
        found_before = self.checkpoint("search").remember(lambda: [asdict(curve(number)) for number in range(search.seeds)])
        curves = [Curve(one["steps"], tuple(one["lrs"]), tuple(one["losses"])) for one in found_before]
        found = suggest(curves, default)
        write_search(folder, curves, found)
        logger.info("  %s", found.sentence())
        return found.lr

    def head_rate(self) -> float:
        """What find_lr suggests for the head; half of it is the default here, as in fastai 2's `fine_tune`."""
        return float(read_checked_json(self.context.root / "reports/find_lr/lr.json")["lr"])

    def tune(self, bn_freeze: bool, lr: Rate, name: str) -> tuple[Classifier, History]:
        """Train a copy of the network, as a tracked run of its own."""
        settings = self.context.params.fine_tune
        network = replace(self.network, model=copy.deepcopy(self.network.model), bn_freeze=bn_freeze, views={})
        checkpoint, train = self.checkpoint(ARMS[bn_freeze]), self.split("train")
        used = settings.model_dump() | {"lr_used": lr, "bn_freeze_used": bn_freeze, "precision_used": network.precision}
        with stage_run(self.context.root, name, used, checkpoint.run_path) as log:
            history = tuning.fine_tune(
                network,
                list(zip(self.stretches(lr), self.feeds, strict=True)),
                y_train=labels(train),
                y_valid=labels(self.split("valid")),
                options=options_of(settings),
                seed=self.context.params.seed,
                log=log,
                name_of=list(train["path"]).__getitem__,
                checkpoint=checkpoint,
                progress=lambda batches, epoch, steps: track(batches, f"{name}, epoch {epoch + 1}", steps, unit="batches"),
            )
        return network.model, history

    def verdict(self, models: Mapping[bool, Classifier]) -> Verdict:
        """Compare the two arms on the validation images; writes reports/fine_tune/bn_freeze.json."""
        y_n, feed = labels(self.split("valid")), self.feeds[-1]
        frozen, moving = (
            predict(replace(self.network, model=models[arm], bn_freeze=arm, views={}).runner(feed), feed.valid())
            .double()
            .softmax(1)
            for arm in (True, False)
        )
        found = choose(frozen, moving, y_n, self.network.model.body, derive_seed(self.context.params.seed, "bn_freeze"))
        write_json(self.context.output("reports/fine_tune/bn_freeze.json"), found.as_json())
        logger.info("  bn_freeze: %s", found.sentence())
        return found


def feed_for(
    context: StageContext,
    network: Network,
    card: Card,
    manifest: pd.DataFrame,
    phase: Phase,
    device: torch.device,
    pixels: Kept,
) -> Feed:
    """A phase's inputs: a cached map, where precompute kept one that nothing below trains; else the images.

    A phase with an `image_size` of its own trains on images of that size; validation is on the full size in all phases,
    so that their scores can be compared.

    Raises:
        InputError: the map is of other weights.
    """
    params, splits = context.params, ("train", "valid")
    frozen, after = network.frozen(phase.unfreeze_from), params.precompute.map_after
    if after in frozen and phase.image_size == "none":
        maps = Activations(context.root / f"data/activations/{after}")
        front, _ = cut_body(network.model.body, network.groups, after)
        if maps.meta["weights"] != state_digest(front):
            raise InputError(f"data/activations/{after} is of other weights", fix="run the whole pipeline")
        logger.info("  training what follows the group %r from its cached map, %s views of each image", after, maps.views)
        rows, held = (activations_of(maps, split_of(manifest, split)) for split in splits)
        return tuning.cached_feed(after, rows, held, device, maps.digest())
    images = ImageSource(
        folder=context.root / params.data.source,
        max_pixels=params.data.max_pixels,
        preprocessing=card.preprocessing,
        augmentation=Augmentation(**params.precompute.augment.model_dump()),
        seed=derive_seed(params.seed, "fine_tune"),
        kept=pixels,
    )
    size = card.preprocessing.image_size if phase.image_size == "none" else phase.image_size
    sized = replace(images, preprocessing=replace(card.preprocessing, image_size=size))
    train, valid = (split_of(manifest, split) for split in splits)
    return tuning.live_feed(
        train=(lambda epoch, row: sized.augmented(train["path"][row], train["key"][row], epoch), labels(train)),
        valid=(lambda row: images.plain(valid["path"][row], valid["key"][row]), labels(valid)),
        preprocessing=card.preprocessing,
        workers=resolve_workers(params.runtime.workers),
        device=device,
    )


def split_of(manifest: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of the training split, or of the validation split, where copies resolve_workers once."""
    return without_copies(manifest, name) if name == "valid" else manifest[manifest["split"] == name].reset_index(drop=True)


def labels(rows: pd.DataFrame) -> torch.Tensor:
    """Class indices [n] int64."""
    return torch.tensor(rows["class_index"].to_numpy(), dtype=torch.int64)


if __name__ == "__main__":
    main("fine_tune", fine_tune)
