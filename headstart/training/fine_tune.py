"""Fine-tuning: the unfrozen network on augmented images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from headstart.core.parallel import chunks
from headstart.data.images import image_map
from headstart.data.transforms import Preprocessing, normalise
from headstart.models.freezing import freeze_except, trained_groups, training_mode
from headstart.training.loop import Batch, History, Log, adamw, derive_seed, fit, predict, scores
from headstart.training.schedules import OneCycle, group_rates, steps_per_epoch

WARM_UP, DIV = 0.3, 5.0


def image_batches(
    items: Sequence[int],
    load: Callable[[int], torch.Tensor],
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Load images in order, in threads, and normalise them in batches.

    Args:
        items: what `load` takes.
        load: from an item to its image [3, s, s] uint8.

    Yields:
        [n, 3, s, s] float32 on `device`.
    """
    images = image_map(load, items, workers, ahead=2 * batch_size)
    for batch in chunks(images, batch_size):
        yield normalise(torch.stack(batch).to(device), preprocessing)


def training_batches(
    load: Callable[[int], torch.Tensor],
    y_n: torch.Tensor,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    device: torch.device,
    seed: int,
) -> Iterator[Batch]:
    """One epoch's batches, in an order that depends on `seed` alone.

    A last batch of one image is left out: batch norm could not normalise it.

    Args:
        load: from row to its augmented image [3, s, s] uint8.
        y_n: class indices.

    Yields:
        x [b, 3, s, s] float32, y [b] int64, both on `device`.
    """
    order = torch.randperm(len(y_n), generator=torch.Generator().manual_seed(seed))
    if len(order) % batch_size == 1 and len(order) > 1:
        order = order[:-1]
    images = image_batches(order.tolist(), load, preprocessing, batch_size, workers, device)
    labels = (y_n[part].to(device) for part in order.split(batch_size))
    return zip(images, labels, strict=True)


def unfreeze(groups: Mapping[str, list[nn.Parameter]], unfreeze_from: str, lr: float, lr_ratio: float) -> torch.optim.AdamW:
    """Freeze the layer groups before `unfreeze_from`; AdamW over the others, each at its own rate."""
    trained = trained_groups(list(groups), unfreeze_from)
    freeze_except(groups, trained)
    rates = group_rates(lr, lr_ratio, len(groups))
    return adamw([(groups[name], rate) for name, rate in zip(groups, rates, strict=True) if name in trained])


def fine_tune(
    model: nn.Module,
    groups: Mapping[str, list[nn.Parameter]],
    *,
    train: tuple[Callable[[int, int], torch.Tensor], torch.Tensor],
    valid: tuple[Callable[[int], torch.Tensor], torch.Tensor],
    preprocessing: Preprocessing,
    epochs: int,
    lr: float,
    lr_ratio: float,
    bn_freeze: bool,
    unfreeze_from: str,
    batch_size: int,
    workers: int,
    label_smoothing: float,
    seed: int,
    log: Log,
    progress: Callable[[Iterator[Batch], int, int], Iterator[Batch]] = lambda batches, epoch, steps: batches,
) -> History:
    """Unfreeze and train by one-cycle AdamW, earlier layer groups at lower rates.

    Args:
        model: body and head, trained in place; the head should have been trained before.
        groups: parameters by layer group, earliest first.
        train: from (epoch, row) to an augmented image [3, s, s] uint8; class indices [n].
        valid: from row to a plain image; class indices [m].
        lr: peak rate of the last group.
        label_smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7.
        progress: wraps an epoch's batches (batches, epoch, steps) to show how far they are.

    Raises:
        InputError: an unknown layer group, an image that changed, a loss that is not finite.
    """
    load_train, y_train = train
    load_valid, y_valid = valid
    device = next(model.parameters()).device
    steps = steps_per_epoch(len(y_train), batch_size)

    def batches(epoch: int) -> Iterator[Batch]:
        order = derive_seed(seed, "order", epoch)
        parts = training_batches(lambda row: load_train(epoch, row), y_train, preprocessing, batch_size, workers, device, order)
        return progress(parts, epoch, steps)

    def validate() -> dict[str, float]:
        rows = range(len(y_valid))
        return scores(predict(model, image_batches(rows, load_valid, preprocessing, batch_size, workers, device)), y_valid)

    return fit(
        model,
        unfreeze(groups, unfreeze_from, lr, lr_ratio),
        OneCycle(epochs * steps, warm_up=WARM_UP, div=DIV),
        epochs=epochs,
        batches=batches,
        prepare=lambda: training_mode(model, bn_freeze),
        validate=validate,
        seed=seed,
        log=log,
        what="fine_tune",
        label_smoothing=label_smoothing,
    )
