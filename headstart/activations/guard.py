"""Proof that cached activations are valid: nothing below the cut moves, and nothing there is random.

Shape legend: n images of a batch, s the network's input side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.core.errors import InputError
from headstart.models.weights import state_digest

NEIGHBOUR_TOLERANCE = 1e-4  # relative, of a row when the rest of its batch changes; batch statistics move it far more
FIX = "take a backbone whose frozen part is in eval mode and deterministic; its activations cannot be cached otherwise"


def refuse_moving(body: nn.Module, x_nchw: torch.Tensor) -> str:
    """Refuse a body whose output is not a function of each image and its frozen weights alone.

    Looks at every parameter and module, then watches forward passes: no parameter or buffer may move, no random
    number be drawn, equal input must give equal output, and no row may depend on the others.

    Args:
        x_nchw: a batch of at least two normalised images.

    Returns:
        The digest of its parameters and buffers.

    Raises:
        InputError: naming the parameter, module or buffer.
    """
    _refuse([name for name, value in body.named_parameters() if value.requires_grad], "would train", "parameters")
    _refuse([name or "the body" for name, module in body.named_modules() if module.training], "in training mode", "modules")
    before = {name: value.detach().clone() for name, value in _tensors(body)}
    drawn = torch.get_rng_state()
    with torch.inference_mode():
        first, again = body(x_nchw), body(x_nchw)
        others = body(torch.cat([x_nchw[:1], x_nchw[1:].flip(3).mul(0.5)]))
    _refuse([name for name, value in _tensors(body) if not torch.equal(value, before[name])], "moved", "parameters or buffers")
    if not torch.equal(torch.get_rng_state(), drawn):
        raise InputError("the frozen body draws random numbers (dropout or stochastic depth that eval mode leaves on)", fix=FIX)
    if not first.isfinite().all():
        raise InputError("the frozen body's activations are not finite", fix="check backbone.weights")
    if not torch.equal(first, again):
        raise InputError("the frozen body gives two outputs for one input: something in it is random or counts", fix=FIX)
    if (first[0] - others[0]).abs().max() > NEIGHBOUR_TOLERANCE * first.abs().max():
        raise InputError("the frozen body's output for an image depends on the rest of its batch (batch statistics)", fix=FIX)
    return state_digest(body)


def _tensors(body: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, those too that are not saved with the weights."""
    yield from body.named_parameters()
    yield from body.named_buffers()


def refuse_moved(body: nn.Module, digest: str) -> None:
    """Refuse what was computed while the body's weights or buffers changed.

    Raises:
        InputError: they are not what `digest` says.
    """
    if state_digest(body) != digest:
        raise InputError("the frozen body's weights or buffers moved while its activations were computed", fix=FIX)


def refuse_other(
    forward: Callable[[Sequence[tuple[str, int]]], NDArray[np.uint8]],
    wanted: Sequence[tuple[str, int]],
    stored: NDArray[np.uint8],
) -> None:
    """Compare stored rows with the same rows computed afresh, to the bit.

    Args:
        forward: from (key, view) pairs to rows as bytes [n, b].
        wanted: the sample's (key, view) pairs.
        stored: what is stored of them, [n, b].

    Raises:
        InputError: naming the first row that is not the same.
    """
    different = (forward(wanted) != stored).any(axis=1)
    if different.any():
        key, view = wanted[int(different.argmax())]
        raise InputError(
            f"the activations kept of image {key[:12]}…, view {view}, are not those computed afresh"
            f" ({int(different.sum())} of a sample of {len(wanted)})",
            fix="delete the folder runtime.cache_dir names, and run again; if it comes back, this machine computes unreliably",
        )


def _refuse(names: list[str], what: str, kind: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(f"below the cut, {kind} {what}: {', '.join(names[:3])}{more}", fix=FIX)
