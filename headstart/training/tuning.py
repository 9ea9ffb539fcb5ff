"""The fine_tune stage's work: choose each phase's source of batches, search a learning rate, compare batch norm's variants.

With `bn_freeze: auto` two variants train from the same head: one keeps batch norm's running statistics, one updates them.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.params import FineTune, PhaseParams, RangeTest
from headstart.core.progress import track
from headstart.hardware import choose_precision
from headstart.images.loader import ImageSource
from headstart.models.backbones import Backbone
from headstart.models.cuts import cut_body
from headstart.models.freezing import has_batch_norm
from headstart.models.heads import Classifier
from headstart.models.sizes import refuse_size
from headstart.models.trained import ModelCard
from headstart.models.weights import state_digest
from headstart.runtime import to_device
from headstart.seeds import derive_seed
from headstart.targets.target import Answered, DecisionRule, Target
from headstart.training import batch_sources
from headstart.training.activation_dataset import activations_of
from headstart.training.batch_sources import BatchSource, TrainingImages
from headstart.training.bn_choice import BatchNormChoice, choose
from headstart.training.checkpoints import Checkpoint
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune, network_prepare
from headstart.training.loop import History, Log, TrainingRun
from headstart.training.lr_search import Curve, Suggestion, range_test, suggest
from headstart.training.options import options_of
from headstart.training.validation import collect_logits

logger = logging.getLogger("headstart")
NOTHING_TO_UNFREEZE = "There is nothing to unfreeze: the model learned from columns alone. The trained network is kept."
NOTHING_KEPT = {"epoch": 0, "rate_scale": 1.0, "sentence": NOTHING_TO_UNFREEZE}
VARIANTS = {True: "frozen", False: "moving"}  # of batch norm's running statistics, by bn_freeze
Rate = float | Sequence[float]
# Opens a tracked run, given a training's name, its parameters and the file that keeps the run's id.
OpenRun = Callable[[str, Mapping[str, Any], Path], AbstractContextManager[Log]]


def open_network(backbone: Backbone, head: nn.Module, card: ModelCard, device: torch.device, settings: FineTune) -> Network:
    """Join the backbone and its trained head into one network on `device`, in a precision that suits the hardware.

    Raises:
        InputError: the head was trained on another backbone, or this one cannot take a phase's own image size.
    """
    if state_digest(backbone.body) != card.provenance["weights"] or dict(backbone.options) != dict(card.options):
        raise InputError(
            "models/head.safetensors was trained on another backbone than params.yaml names", fix="run the whole pipeline"
        )
    for key, size in settings.own_sizes().items():
        refuse_size(backbone, size, key)
    model = to_device(Classifier(backbone.body, head), device)
    if not has_batch_norm(model):
        logger.info("  %s has no batch norm, so bn_freeze has no effect", backbone.name)
    precision, why = choose_precision(settings.precision, device)
    logger.info("  training in %s (%s)", precision, why)
    return Network(model, backbone.groups, settings.bn_freeze is not False, precision)


@dataclass(frozen=True)
class TuningData:
    """The data that fine-tuning learns from.

    Args:
        images: the source's images, at the network's image size.
        target: what the labels are.
        train, valid: the manifest's rows to train on, and those that choose an epoch (copies count once).
        balanced: whether images are drawn so that classes are equal.
        maps: the folder of the cached maps, and their layer group (`precompute.cache_map_after`); None without them.
        workers: threads that decode.
        columns: encoded columns of the images; None without columns.
    """

    images: ImageSource
    target: Target
    train: pd.DataFrame
    valid: pd.DataFrame
    balanced: bool
    maps: tuple[Path, str] | None
    workers: int
    columns: Activations | None = None

    @functools.cached_property
    def labels(self) -> Labels:
        """The encoded labels."""
        return Labels(self.target, self.target.encode(self.train["label"]), self.target.encode(self.valid["label"]))

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the encoded columns [n, m + k] of the training and the validation images."""
        if self.columns is None:
            return None
        return self.columns.rows(list(self.train["key"])), self.columns.rows(list(self.valid["key"]))

    def _weights(self) -> torch.Tensor | None:
        return self.target.sampling_weights(self.labels.train) if self.balanced else None

    def source(self, network: Network, phase: PhaseParams, device: torch.device) -> BatchSource:
        """Return a phase's source of batches: the cached map if the phase trains nothing before it, else the images.

        A phase with an `image_size` of its own trains on images of that size. Validation uses the full size in all phases,
        so that their scores can be compared.

        Raises:
            InputError: the map was computed with other weights.
        """
        if self.maps is not None and self.maps[1] in network.frozen(phase.unfreeze_from) and phase.image_size == "none":
            return self._from_map(*self.maps, network, device)
        preprocessing, train, valid = self.images.preprocessing, self.train, self.valid
        size = preprocessing.image_size if phase.image_size == "none" else phase.image_size
        sized = replace(self.images, preprocessing=replace(preprocessing, image_size=size))
        return batch_sources.from_images(
            train=TrainingImages(
                lambda epoch, row: sized.augmented(train["path"][row], train["key"][row], epoch),
                self.labels.train,
                self._weights(),
            ),
            valid=(lambda row: self.images.base_view(valid["path"][row], valid["key"][row]), len(valid)),
            preprocessing=preprocessing,
            workers=self.workers,
            device=device,
            columns=self._columns(),
        )

    def _from_map(self, folder: Path, after: str, network: Network, device: torch.device) -> BatchSource:
        maps = Activations(folder)
        front, _ = cut_body(network.model.body, network.groups, after)
        if maps.meta["weights"] != state_digest(front):
            raise InputError(f"{folder} was computed with weights that differ from the network's", fix="run the whole pipeline")
        logger.info("  training the layers after group %r on its cached maps, %s views of each image", after, maps.views)
        labels = self.labels
        train = activations_of(maps, self.train["key"], labels.train, self._weights())
        valid = activations_of(maps, self.valid["key"], labels.valid)
        return batch_sources.from_feature_maps(after, train, valid, device, maps.digest(), self._columns())


@dataclass(frozen=True)
class Tuned:
    """The result of fine-tuning.

    Args:
        answered: the kept model's answers for the validation images, with the target whose decision is fitted to them.
        choice: why this variant of batch norm was kept; None if only one was trained.
        seconds: that the training took.
    """

    model: Classifier
    history: History
    answered: Answered
    choice: BatchNormChoice | None
    seconds: float


@dataclass(frozen=True)
class Tuner:
    """Fine-tuning from one trained head.

    Args:
        network: the starting point; each variant trains a copy of it.
        data, sources: the data, and a source of batches for each of `settings.phases()`.
        settings: params.yaml, section fine_tune.
        seed: seeds the order, dropout and the search.
        checkpoint: returns the checkpoint of a training by its name.
        open_run: opens the tracked run of a training.
    """

    network: Network
    data: TuningData
    sources: Sequence[BatchSource]
    settings: FineTune
    seed: int
    checkpoint: Callable[[str], Checkpoint]
    open_run: OpenRun

    def variants(self) -> list[bool]:
        """Return the values of bn_freeze to train with: both for `auto`, if the network has batch norm."""
        both = self.settings.bn_freeze == "auto" and has_batch_norm(self.network.model)
        return [True, False] if both else [self.network.bn_freeze]

    def phases(self, lr: Rate) -> list[UnfreezePhase]:
        """Return the phases of params.yaml; those whose rate is `auto` get `lr`."""
        return [
            UnfreezePhase(one.unfreeze_from, one.epochs, lr if one.lr == "auto" else one.lr, self.settings.lr_ratio)
            for one in self.settings.phases()
        ]

    def search(self, search: RangeTest, default: float) -> tuple[list[Curve], Suggestion]:
        """Search the last phase's learning rate by range tests on the unfrozen network.

        Args:
            search: params.yaml, section find_lr.unfrozen.
            default: the rate to use if rules or seeds disagree.
        """
        options, phase, source = options_of(self.settings), self.phases(default)[-1], self.sources[-1]
        labels = self.data.labels
        loss = options.objective(labels.target, labels.train).loss

        def curve(number: int) -> Curve:
            seed = derive_seed(self.seed, "find_lr unfrozen", number)
            return range_test(
                self.network.model,
                network_prepare(self.network, phase, source, options),
                batch_sources.endless(source, options, seed),
                loss=loss,
                lr_min=search.lr_min,
                lr_max=search.lr_max,
                steps=search.steps,
                seed=seed,
            )

        logger.info("  searching a learning rate for the unfrozen network")
        found = self.checkpoint("search").remember(lambda: [asdict(curve(number)) for number in range(search.seeds)])
        curves = [Curve(one["steps"], tuple(one["lrs"]), tuple(one["losses"])) for one in found]
        return curves, suggest(curves, default)

    def train(self, bn_freeze: bool, lr: Rate, name: str) -> tuple[Classifier, History]:
        """Train a copy of the network as a tracked run of its own, called `name`."""
        network = replace(self.network, model=copy.deepcopy(self.network.model), bn_freeze=bn_freeze, folded={})
        checkpoint, data = self.checkpoint(VARIANTS[bn_freeze]), self.data
        used = {"lr_used": lr, "bn_freeze_used": bn_freeze, "precision_used": network.precision}
        with self.open_run(name, self.settings.model_dump() | used, checkpoint.run_path) as log:
            run = TrainingRun(
                seed=self.seed,
                log=log,
                name_of=list(data.train["path"]).__getitem__,
                checkpoint=checkpoint,
                progress=lambda batches, epoch, steps: track(batches, f"{name}, epoch {epoch + 1}", steps, unit="batches"),
            )
            phases = list(zip(self.phases(lr), self.sources, strict=True))
            history = fine_tune(network, phases, data.labels, options_of(self.settings), run)
        return network.model, history

    def tune(self, lr: Rate, rule: DecisionRule) -> Tuned:
        """Train each variant of batch norm and, if there are two, keep the one that is better on the validation images."""
        variants, start = self.variants(), time.monotonic()
        names = {one: f"fine_tune {VARIANTS[one]}" if len(variants) > 1 else "fine_tune" for one in variants}
        tuned = {one: self.train(one, lr, names[one]) for one in variants}
        seconds = round(time.monotonic() - start, 3)
        answered = {one: self.valid_answers(model, one, rule) for one, (model, _) in tuned.items()}
        kept, choice = variants[0], None
        if len(variants) > 1:
            truth, body = self.data.target.truth(self.data.valid["label"]), self.network.model.body
            choice = choose(answered[True], answered[False], truth, body, derive_seed(self.seed, "bn_freeze"))
            kept = choice.bn_freeze
            logger.info("  bn_freeze: %s", choice.sentence())
        return Tuned(*tuned[kept], answered[kept], choice, seconds)

    def valid_answers(self, model: Classifier, bn_freeze: bool, rule: DecisionRule) -> Answered:
        """Return a trained model's answers for the validation images, and the target whose decision is fitted to them."""
        runner = replace(self.network, model=model, bn_freeze=bn_freeze, folded={}).runner(self.sources[-1])
        target = self.data.target
        answers = target.answers(collect_logits(runner, self.sources[-1].valid()))
        return Answered(answers, target.fitted(answers, target.truth(self.data.valid["label"]), rule))


def what_was_kept(history: History, target: Target) -> dict[str, str | int | float]:
    """Return the content of kept.json: whether validation preferred the fine-tuned network or the trained head, and why."""
    head, *tuned = history.epochs
    chosen_by, headline = f"valid_{target.chosen_by}", f"valid_{target.headline}"
    best = min(tuned, key=lambda row: row[chosen_by])
    kept, words = history.best_epoch()["epoch"], target.scores_in_words
    figures = (
        f"validation {words[target.chosen_by]} {best[chosen_by]:.4f} after epoch {best['epoch']}, {head[chosen_by]:.4f} before"
        f" fine-tuning; {words[target.headline]} {best[headline]:.4f}, {head[headline]:.4f} before"
    )
    lowered = f" The learning rate was lowered to {history.scale:.2g} of the set rate, which had spoilt the network."
    lowered = lowered if history.scale < 1 else ""
    if kept:
        sentence = f"The fine-tuned network of epoch {kept} is kept: {figures}.{lowered}"
    else:
        sentence = f"The trained head is kept without fine-tuning, which made it no better: {figures}.{lowered}"
    return {"epoch": kept, "rate_scale": history.scale, "sentence": sentence}
