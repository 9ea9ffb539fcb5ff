"""Freezing: which layer groups train, and how batch norm behaves in training.

| setting                     | normalises training batches with | running stats move | affine trains |
|-----------------------------|----------------------------------|--------------------|---------------|
| frozen (always)             | running stats                    | no                 | no            |
| unfrozen, bn_freeze: true   | running stats                    | no                 | yes           |
| unfrozen, bn_freeze: false  | batch stats                      | yes                | yes           |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.core.errors import InputError

HEAD = "head"


def layer_groups(groups: Mapping[str, tuple[str, ...]], model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of a `Classifier` by layer group, earliest first, the head last.

    Args:
        groups: the backbone's groups, with names relative to the body.
        model: a module with children `body` and `head`.
    """
    named = dict(model.named_parameters())
    result = {group: [named[f"body.{name}"] for name in names] for group, names in groups.items()}
    result[HEAD] = [parameter for name, parameter in named.items() if name.startswith("head.")]
    return result


def trained_groups(names: list[str], unfreeze_from: str) -> list[str]:
    """Return the layer groups that train.

    Args:
        names: all groups, earliest first.
        unfreeze_from: "all", a group's name (this group and all later ones train), or "last-N".

    Raises:
        InputError: there is no such group, or there are fewer than N groups.
    """
    if unfreeze_from == "all":
        return names
    if unfreeze_from in names:
        return names[names.index(unfreeze_from) :]
    count = re.fullmatch(r"last-(\d+)", unfreeze_from)
    if count and 1 <= int(count[1]) <= len(names):
        return names[-int(count[1]) :]
    raise InputError(
        f"fine_tune.unfreeze_from: {unfreeze_from!r}", wanted=f"all, {', '.join(names)}, or last-1 to last-{len(names)}"
    )


def freeze_except(groups: Mapping[str, list[nn.Parameter]], trained: list[str]) -> None:
    """Let exactly the parameters of the `trained` groups require gradients."""
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(name in trained)


def training_mode(model: nn.Module, bn_freeze: bool) -> None:
    """Put a model into training mode by the table above.

    A module whose parameters are all frozen is in eval mode, with everything inside it: dropout and stochastic depth are
    off, and no buffer changes.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (bn_freeze and isinstance(module, _BatchNorm)):
            module.eval()


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the model has any BatchNorm1d, 2d, 3d or SyncBatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
