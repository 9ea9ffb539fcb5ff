"""Image sizes that a network takes: multiples of its patch size that are large enough for its strides.

Shape legend: n images, d activation width, s input side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from headstart.core.errors import InputError

if TYPE_CHECKING:
    from headstart.models.backbones import Backbone


def refuse_size(backbone: Backbone, image_size: int, key: str = "backbone.image_size") -> None:
    """Refuse an image size that the built network cannot take, or whose edge it would not see.

    Args:
        key: the parameter that sets the size.

    Raises:
        InputError: naming the parameter and the size.
    """
    refuse_part_of_a_patch(patch_side(backbone.body), backbone.name, image_size, key)
    forward_once(backbone.body, backbone.name, image_size, key)


def refuse_part_of_a_patch(patch: int, name: str, size: int, key: str = "backbone.image_size") -> None:
    """Refuse an image size that is not a multiple of the network's patch size, as it would never see the remaining pixels.

    Raises:
        InputError: naming the nearest sizes.
    """
    if size % patch:
        below = size - size % patch
        near = [str(one) for one in (below, below + patch) if one > 0]
        raise InputError(
            f"{key}: {name} cuts its input into patches of {patch} x {patch} pixels;"
            f" of {size} pixels the last {size % patch} are never seen",
            wanted=f"a multiple of {patch}, such as {' or '.join(near)}",
            fix=f"--set {key}={near[0]}" if key == "backbone.image_size" else f"set it to {near[0]}",
        )


def patch_side(model: nn.Module) -> int:
    """Return the side in pixels of the patches that a network's first convolution cuts; 1 if the patches overlap."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3), None)
    if first is None or first.kernel_size != first.stride or first.padding not in ((0, 0), "valid"):
        return 1
    return int(first.stride[0])


def unseen_edge(body: nn.Module, size: int) -> int:
    """Return how many pixels at the right or lower edge affect no output, because the strides do not divide the size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, size, size, generator=generator).requires_grad_()
    with torch.enable_grad():
        y = body(x)
        weights = torch.rand(y.shape, generator=generator)  # an unweighted sum after a layer norm is constant
        (slope,) = torch.autograd.grad((y * weights).sum(), x)
    seen_hw = slope.abs().amax((0, 1)) > 0
    if not seen_hw.any():  # a dead network: its edge is unknown
        return 0
    return max(size - 1 - int(seen_hw.any(dim).nonzero().max()) for dim in (0, 1))


@torch.no_grad()
def forward_once(module: nn.Module, name: str, size: int, key: str = "backbone.image_size") -> torch.Tensor:
    """Return the output [1, d] for one black image of `size` pixels.

    Raises:
        InputError: the network refuses the size; the message names `key`, the parameter that sets it.
    """
    try:
        output: torch.Tensor = module(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise size_error(name, size, error, key) from None
    return output


def size_error(name: str, size: int, error: Exception, key: str = "backbone.image_size") -> InputError:
    """Return the error for a size that a network refuses with an error of its own."""
    why = str(error).strip().partition("\n")[0] or "its own check of the size fails"
    return InputError(
        f"{key}: {name} refuses {size} pixels: {why[:200]}",
        fix=f"set {key} to the size that its weights were trained at (224 for most)",
    )
