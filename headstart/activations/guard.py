"""Proof that cached activations are valid: below the cut no weight or buffer changes, and nothing is random.

Shape legend: n images in a batch, s the network's input side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headstart.core.errors import InputError
from headstart.models.weights import state_digest

NEIGHBOUR_TOLERANCE = 1e-4  # relative change of a row when the rest of its batch changes; batch statistics change it far more
FIX = "choose a backbone whose frozen part is deterministic in eval mode; activations of others cannot be cached"


def refuse_moving(body: nn.Module, x_nchw: torch.Tensor) -> str:
    """Refuse a body whose output for an image depends on anything but the image and the frozen weights.

    It checks every parameter and module, then watches forward passes: no parameter or buffer may change, no random number
    may be drawn, equal input must give equal output, and no row may depend on the other rows.

    Args:
        x_nchw: a batch of at least two normalised images.

    Returns:
        The digest of the body's parameters and buffers.

    Raises:
        InputError: the body fails a check; the message names the parameter, module or buffer.
    """
    _refuse([name for name, value in body.named_parameters() if value.requires_grad], "would train", "parameters")
    _refuse([name or "the body" for name, module in body.named_modules() if module.training], "are in training mode", "modules")
    before = {name: value.detach().clone() for name, value in _tensors(body)}
    drawn = torch.get_rng_state()
    with torch.inference_mode():
        first, again = body(x_nchw), body(x_nchw)
        others = body(torch.cat([x_nchw[:1], x_nchw[1:].flip(3).mul(0.5)]))
    _refuse(
        [name for name, value in _tensors(body) if not torch.equal(value, before[name])], "changed", "parameters or buffers"
    )
    if not torch.equal(torch.get_rng_state(), drawn):
        raise InputError(
            "the frozen body draws random numbers (dropout or stochastic depth that is active in eval mode)", fix=FIX
        )
    if not first.isfinite().all():
        raise InputError("the frozen body's activations are not finite", fix="check backbone.weights")
    if not torch.equal(first, again):
        raise InputError("the frozen body gives different outputs for equal inputs: it is random or keeps a state", fix=FIX)
    if (first[0] - others[0]).abs().max() > NEIGHBOUR_TOLERANCE * first.abs().max():
        raise InputError("the frozen body's output for an image depends on the rest of its batch (batch statistics)", fix=FIX)
    return state_digest(body)


def _tensors(body: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and buffers, including buffers that are not saved with the weights."""
    yield from body.named_parameters()
    yield from body.named_buffers()


def refuse_moved(body: nn.Module, digest: str) -> None:
    """Refuse activations that were computed while the body's weights or buffers changed.

    Raises:
        InputError: the weights and buffers do not match `digest`.
    """
    if state_digest(body) != digest:
        raise InputError("the frozen body's weights or buffers changed while its activations were computed", fix=FIX)


def refuse_other(
    forward: Callable[[Sequence[tuple[str, int]]], NDArray[np.uint8]],
    wanted: Sequence[tuple[str, int]],
    stored: NDArray[np.uint8],
) -> None:
    """Compare stored rows, bit for bit, with the same rows computed again.

    Args:
        forward: computes rows as bytes [n, b] from (key, view) pairs.
        wanted: the sample's (key, view) pairs.
        stored: the stored rows of these pairs, [n, b].

    Raises:
        InputError: a row differs; the message names the first one.
    """
    different = (forward(wanted) != stored).any(axis=1)
    if different.any():
        key, view = wanted[int(different.argmax())]
        raise InputError(
            f"the cached activations of image {key[:12]}…, view {view}, differ from those computed again"
            f" ({int(different.sum())} of a sample of {len(wanted)} rows differ)",
            fix="delete the folder runtime.cache_dir and run again; if it happens again, this machine computes unreliably",
        )


def _refuse(names: list[str], what: str, kind: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(f"below the cut, {kind} {what}: {', '.join(names[:3])}{more}", fix=FIX)
