"""Fine-tuning: train the unfrozen network phase by phase, on augmented images or on a cached map of its frozen front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from headstart.models.cuts import cut_body
from headstart.models.depthwise import fast_grouped
from headstart.models.folding import shared_copy, training_view
from headstart.models.freezing import HEAD, freeze_except, layer_groups, trained_groups, training_mode
from headstart.models.heads import Classifier
from headstart.runtime import autocast
from headstart.seeds import derive_seed
from headstart.targets.target import Target
from headstart.training.batch_sources import BatchSource, Input
from headstart.training.loop import Batch, Forward, History, Phase, Trainer, TrainingRun
from headstart.training.options import Options
from headstart.training.schedules import OneCycle, group_rates, steps_per_epoch
from headstart.training.validation import collect_logits

WARM_UP, DIV = 0.3, 25.0
Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class UnfreezePhase:
    """One phase of gradual unfreezing: which layers train, for how long, at which rates.

    Args:
        unfreeze_from: see `trained_groups`.
        lr: the last group's peak rate, or a list with a rate for every layer group.
        lr_ratio: each earlier group gets the next group's rate divided by this.
    """

    unfreeze_from: str
    epochs: int
    lr: float | Sequence[float]
    lr_ratio: float = 1.0


@dataclass(frozen=True)
class Network:
    """A classifier and how it trains.

    Args:
        model: body and head; training changes its state.
        groups: the body's parameter names by layer group, earliest first.
        bn_freeze: see `training_mode`.
        precision: "float32" or "bfloat16", for the forward and backward passes. Weights are always float32. On a CPU, grouped
            convolutions that are not depthwise also use float32, because their backward pass is slower in bfloat16.
        folded: the modules that `runner` has made, by the layer group after which they start.
    """

    model: Classifier
    groups: Groups
    bn_freeze: bool
    precision: str = "float32"
    folded: dict[str | None, nn.Module] = field(default_factory=dict)

    def trained(self, unfreeze_from: str) -> list[str]:
        """Return the layer groups that train, earliest first."""
        return trained_groups([*self.groups, HEAD], unfreeze_from)

    def frozen(self, unfreeze_from: str) -> list[str]:
        """Return the layer groups that do not train, earliest first."""
        trained = self.trained(unfreeze_from)
        return [name for name in self.groups if name not in trained]

    def runner(self, source: BatchSource) -> nn.Module:
        """Return the part of the model that a source's inputs pass through, with frozen batch norms folded."""
        if source.after not in self.folded:
            body = cut_body(self.model.body, self.groups, source.after)[1] if source.after else self.model.body
            part = Classifier(body, self.model.head)
            module = training_view(part, source.example()) if self.bn_freeze else shared_copy(part)
            on_cpu = next(part.parameters()).device.type == "cpu"
            self.folded[source.after] = fast_grouped(module, mixed=self.precision == "bfloat16") if on_cpu else module
        return self.folded[source.after]

    def forward(self, source: BatchSource) -> Forward:
        """Return the forward pass in the chosen precision, [n, ...] to logits [n, c] float32."""
        runner = self.runner(source)

        def run(x: Input) -> torch.Tensor:
            with autocast((x[0] if isinstance(x, tuple) else x).device, self.precision):
                logits: torch.Tensor = runner(x)
            return logits.float()

        return run

    def unfreeze(self, phase: UnfreezePhase, options: Options) -> Optimizer:
        """Freeze the layer groups before `phase.unfreeze_from`; return an optimizer over the others, each at its own rate."""
        groups = layer_groups(self.groups, self.model)
        trained = self.trained(phase.unfreeze_from)
        freeze_except(groups, trained)
        rates = group_rates(phase.lr, phase.lr_ratio, list(groups))
        return options.optimize([(groups[name], rate) for name, rate in zip(groups, rates, strict=True) if name in trained])

    def prepare(self, source: BatchSource) -> None:
        """Put the network into training mode; see the table of `freezing` for batch norm."""
        training_mode(self.runner(source), self.bn_freeze)


@dataclass(frozen=True)
class Labels:
    """The labels that a training learns from, and those that choose its epoch.

    Args:
        target: what the labels are.
        train, valid: encoded labels.
    """

    target: Target
    train: torch.Tensor
    valid: torch.Tensor


def fine_tune(
    network: Network,
    phases: Sequence[tuple[UnfreezePhase, BatchSource]],
    labels: Labels,
    options: Options,
    run: TrainingRun,
) -> History:
    """Unfreeze and train phase by phase, with lower rates for earlier layer groups.

    Args:
        network: trained in place. Its head is already trained: the network as given is epoch 0, kept if no epoch is better.
        phases: what trains for how long, and the source of its batches.

    Raises:
        InputError: the layer group is unknown, an image changed, or the loss is not finite.
    """
    objective = options.objective(labels.target, labels.train)
    trainer = Trainer(network.model, objective, run, what="fine_tune", patience=options.patience)
    return trainer.fit([phase_of(network, phase, source, labels, options, run) for phase, source in phases])


def phase_of(
    network: Network, phase: UnfreezePhase, source: BatchSource, labels: Labels, options: Options, run: TrainingRun
) -> Phase:
    """Return an unfreezing phase in the form that the training loop runs; see `fine_tune`."""
    steps = steps_per_epoch(len(labels.train), options.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        order = derive_seed(run.seed, "order", epoch)
        return run.progress(source.batches(epoch, order, options.batch_size, first), epoch, steps)

    return Phase(
        name=phase.unfreeze_from,
        epochs=phase.epochs,
        steps=steps,
        begin=lambda: network.unfreeze(phase, options),
        schedule=options.over(steps, OneCycle(phase.epochs * steps, warm_up=WARM_UP, div=DIV)),
        prepare=lambda: network.prepare(source),
        forward=network.forward(source),
        batches=batches,
        validate=lambda: labels.target.scores(collect_logits(network.runner(source), source.valid()), labels.valid),
    )


def network_prepare(
    network: Network, phase: UnfreezePhase, source: BatchSource, options: Options
) -> Callable[[nn.Module], tuple[Forward, Optimizer]]:
    """Return the function that readies a copy of the unfrozen network for the range test, with `fine_tune`'s rate ratios."""

    def prepare(model: nn.Module) -> tuple[Forward, Optimizer]:
        assert isinstance(model, Classifier)
        trial = Network(model, network.groups, network.bn_freeze, network.precision)
        optimizer = trial.unfreeze(phase, options)
        trial.prepare(source)
        return trial.forward(source), optimizer

    return prepare
