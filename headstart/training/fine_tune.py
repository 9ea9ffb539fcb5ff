"""Fine-tuning: the unfrozen network, phase by phase, on augmented images or on a cached map of its frozen front."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from headstart.core.parallel import chunks
from headstart.images.loader import image_map
from headstart.images.transforms import Preprocessing, normalise
from headstart.models.cuts import cut_body
from headstart.models.depthwise import fast_grouped
from headstart.models.folding import shared_copy, training_view
from headstart.models.freezing import HEAD, freeze_except, layer_groups, trained_groups, training_mode
from headstart.models.heads import Classifier
from headstart.runtime import autocast
from headstart.seeds import derive_seed
from headstart.training.checkpoints import Checkpoint
from headstart.training.head import Rows, epoch_batches
from headstart.training.loop import Batch, Forward, History, Log, Phase, Trainer
from headstart.training.optimizers import epoch_order
from headstart.training.options import Options
from headstart.training.schedules import OneCycle, group_rates, steps_per_epoch
from headstart.training.validation import predict, scores

WARM_UP, DIV = 0.3, 25.0
Groups = Mapping[str, tuple[str, ...]]
Progress = Callable[[Iterator[Batch], int, int], Iterator[Batch]]


@dataclass(frozen=True)
class Stretch:
    """What trains for how long: one phase of gradual unfreezing.

    Args:
        unfreeze_from: see `trained_groups`.
        lr: the last group's peak rate, or a rate for every layer group.
        lr_ratio: each earlier group gets the next one's rate divided by this.
    """

    unfreeze_from: str
    epochs: int
    lr: float | Sequence[float]
    lr_ratio: float = 1.0


@dataclass(frozen=True)
class Feed:
    """Where a phase's inputs come from.

    Args:
        after: the layer group whose cached map the inputs are; None for images.
        batches: from an epoch, the seed of its order, the batch size, whether to balance classes, and the number of
            the first batch wanted, to the batches.
        valid: the validation inputs in order.
        example: an input or two.
        digest: of cached maps.
    """

    after: str | None
    batches: Callable[[int, int, int, bool, int], Iterator[Batch]]
    valid: Callable[[], Iterator[torch.Tensor]]
    example: Callable[[], torch.Tensor]
    digest: str = ""


@dataclass(frozen=True)
class Network:
    """A classifier and how it trains.

    Args:
        model: body and head; its state is what training changes.
        groups: the body's parameter names by layer group, earliest first.
        bn_freeze: see `training_mode`.
        precision: "float32" or "bfloat16", of the forward and backward passes. Weights are float32 always, and so are,
            on a CPU, grouped convolutions that are not depthwise: PyTorch's run backwards slower in bfloat16.
    """

    model: Classifier
    groups: Groups
    bn_freeze: bool
    precision: str = "float32"
    views: dict[str | None, nn.Module] = field(default_factory=dict)

    def trained(self, unfreeze_from: str) -> list[str]:
        """The layer groups that train, earliest first."""
        return trained_groups([*self.groups, HEAD], unfreeze_from)

    def frozen(self, unfreeze_from: str) -> list[str]:
        """The layer groups that do not."""
        trained = self.trained(unfreeze_from)
        return [name for name in self.groups if name not in trained]

    def runner(self, feed: Feed) -> nn.Module:
        """The part of the model that a feed's inputs go through, its batch norms folded where they are frozen."""
        if feed.after not in self.views:
            body = cut_body(self.model.body, self.groups, feed.after)[1] if feed.after else self.model.body
            part = Classifier(body, self.model.head)
            view = training_view(part, feed.example()) if self.bn_freeze else shared_copy(part)
            on_cpu = next(part.parameters()).device.type == "cpu"
            self.views[feed.after] = fast_grouped(view, mixed=self.precision == "bfloat16") if on_cpu else view
        return self.views[feed.after]

    def forward(self, feed: Feed) -> Forward:
        """Forward in the chosen precision."""
        runner = self.runner(feed)

        def run(x: torch.Tensor) -> torch.Tensor:
            with autocast(x.device, self.precision):
                logits: torch.Tensor = runner(x)
            return logits.float()

        return run

    def unfreeze(self, stretch: Stretch, options: Options) -> Optimizer:
        """Freeze the layer groups before; an optimizer over the others, each at its own rate."""
        groups = layer_groups(self.groups, self.model)
        trained = self.trained(stretch.unfreeze_from)
        freeze_except(groups, trained)
        rates = group_rates(stretch.lr, stretch.lr_ratio, list(groups))
        return options.optimize([(groups[name], rate) for name, rate in zip(groups, rates, strict=True) if name in trained])

    def prepare(self, feed: Feed) -> None:
        """Into training mode, by the batch-norm table."""
        training_mode(self.runner(feed), self.bn_freeze)


def image_batches(
    items: Sequence[int],
    load: Callable[[int], torch.Tensor],
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Load images in order, in threads, and normalise them in batches.

    A GPU trains while the next images are loaded. On a CPU the two take turns: both want all cores, and an operation
    that waits for one that is loading takes longer than both one after the other.

    Args:
        items: what `load` takes.
        load: from an item to its image [3, s, s] uint8.

    Yields:
        [n, 3, s, s] float32 on `device`.
    """
    batches: Iterator[Iterable[torch.Tensor]]
    if device.type == "cpu":
        batches = (image_map(load, part, workers, ahead=len(part)) for part in chunks(items, batch_size))
    else:
        batches = chunks(image_map(load, items, workers, ahead=2 * batch_size), batch_size)
    for batch in batches:
        yield normalise(torch.stack(list(batch)).to(device), preprocessing)


def live_feed(
    train: tuple[Callable[[int, int], torch.Tensor], torch.Tensor],
    valid: tuple[Callable[[int], torch.Tensor], torch.Tensor],
    preprocessing: Preprocessing,
    workers: int,
    device: torch.device,
) -> Feed:
    """Images decoded and augmented as they are needed.

    A last batch of one image is left out: batch norm could not normalise it.

    Args:
        train: from (epoch, row) to an augmented image [3, s, s] uint8; class indices [n].
        valid: from row to a plain image; class indices [m].
    """
    (load, y_n), (load_valid, y_valid) = train, valid

    def batches(epoch: int, seed: int, batch_size: int, balance: bool, first: int) -> Iterator[Batch]:
        order = epoch_order(y_n, balance, torch.Generator().manual_seed(seed))
        order = order[first * batch_size : batch_size * steps_per_epoch(len(y_n), batch_size)]
        images = image_batches(order.tolist(), lambda row: load(epoch, row), preprocessing, batch_size, workers, device)
        parts = order.split(batch_size) if len(order) else ()
        return ((x, y_n[part].to(device), part) for x, part in zip(images, parts, strict=True))

    def plain() -> Iterator[torch.Tensor]:
        return image_batches(range(len(y_valid)), load_valid, preprocessing, 64, workers, device)

    return Feed(None, batches, plain, lambda: next(image_batches([0], load_valid, preprocessing, 1, 1, device)))


def cached_feed(after: str, train: Rows, valid: Rows, device: torch.device, digest: str = "") -> Feed:
    """Cached maps [n, f, h, w] of the frozen front, each epoch one of every image's views."""

    def to(x: torch.Tensor) -> torch.Tensor:
        x = x.to(device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def batches(epoch: int, seed: int, batch_size: int, balance: bool, first: int) -> Iterator[Batch]:
        for x, y, rows in epoch_batches(train, batch_size, seed, balance=balance, first=first):
            yield to(x), y.to(device), rows

    def plain() -> Iterator[torch.Tensor]:
        return (to(part) for x in valid.plain() for part in x.split(64))

    first = torch.zeros(1, dtype=torch.int64)
    return Feed(after, batches, plain, lambda: to(train.take(first, first)), digest)


def fine_tune(
    network: Network,
    stretches: Sequence[tuple[Stretch, Feed]],
    *,
    y_train: torch.Tensor,
    y_valid: torch.Tensor,
    options: Options,
    seed: int,
    log: Log,
    name_of: Callable[[int], str] = str,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda batches, epoch, steps: batches,
) -> History:
    """Unfreeze and train, phase by phase, earlier layer groups at lower rates.

    Args:
        network: trained in place; its head is a trained one. As it comes it is epoch 0, and what is left if none is better.
        stretches: phases, and what each is fed with.
        y_train, y_valid: class indices.
        name_of, checkpoint: see `Trainer`.
        progress: wraps an epoch's batches (batches, epoch, steps) to show how far they are.

    Raises:
        InputError: an unknown layer group, an image that changed, a loss that is not finite.
    """

    def phase(stretch: Stretch, feed: Feed) -> Phase:
        return phase_of(network, stretch, feed, y_train=y_train, y_valid=y_valid, options=options, seed=seed, progress=progress)

    trainer = Trainer(
        model=network.model,
        loss=options.loss(y_train, next(network.model.parameters()).device),
        seed=seed,
        log=log,
        what="fine_tune",
        name_of=name_of,
        patience=options.patience,
        checkpoint=checkpoint,
        guess=options.guess(y_train),
    )
    return trainer.fit([phase(*stretch) for stretch in stretches])


def phase_of(
    network: Network,
    stretch: Stretch,
    feed: Feed,
    *,
    y_train: torch.Tensor,
    y_valid: torch.Tensor,
    options: Options,
    seed: int,
    progress: Progress,
) -> Phase:
    """The loop's phase of a stretch on a feed; see `fine_tune`."""
    steps = steps_per_epoch(len(y_train), options.batch_size)

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        order = derive_seed(seed, "order", epoch)
        return progress(feed.batches(epoch, order, options.batch_size, options.balance == "sampling", first), epoch, steps)

    return Phase(
        name=stretch.unfreeze_from,
        epochs=stretch.epochs,
        steps=steps,
        begin=lambda: network.unfreeze(stretch, options),
        schedule=options.over(steps, OneCycle(stretch.epochs * steps, warm_up=WARM_UP, div=DIV)),
        prepare=lambda: network.prepare(feed),
        forward=network.forward(feed),
        batches=batches,
        validate=lambda: scores(predict(network.runner(feed), feed.valid()), y_valid),
    )


def endless(feed: Feed, options: Options, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of a feed, for the range test; its views are those of no training epoch."""
    balance = options.balance == "sampling"
    return itertools.chain.from_iterable(
        feed.batches(-1 - epoch, derive_seed(seed, "order", epoch), options.batch_size, balance, 0)
        for epoch in itertools.count()
    )


def network_prepare(
    network: Network, stretch: Stretch, feed: Feed, options: Options
) -> Callable[[nn.Module], tuple[Forward, Optimizer]]:
    """How the range test trains a copy of the unfrozen network: in the groups' own ratios, as `fine_tune` will."""

    def prepare(model: nn.Module) -> tuple[Forward, Optimizer]:
        assert isinstance(model, Classifier)
        trial = Network(model, network.groups, network.bn_freeze, network.precision)
        optimizer = trial.unfreeze(stretch, options)
        trial.prepare(feed)
        return trial.forward(feed), optimizer

    return prepare
