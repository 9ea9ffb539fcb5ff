"""Depthwise convolutions whose gradients on a CPU use oneDNN's fast kernels.

oneDNN has fast weight gradients of depthwise convolutions for kernels of up to three columns; wider kernels take about twice
the time in float32 and ten times in bfloat16. A weight's gradient depends only on its own column of the kernel, so the gradient
of a wide kernel is joined from slices of three columns. In bfloat16 the input's gradient has no fast kernel for strides
above one, and is computed in float32. The forward pass is PyTorch's own, in the weights' precision. docs/decisions.md has
the measurements.

Shape legend: n images, c channels, h x w input, p x q output, i x j kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from headstart.models.folding import FoldedConv, replace

FAST_COLUMNS = 3
Pair = tuple[int, int]
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward


class Depthwise(nn.Module):
    """A depthwise convolution of any class, with the fast gradients."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with _FastGradients():
            y: torch.Tensor = self.inner(x)
        return y


class Float32(nn.Module):
    """A module that computes in float32, even under autocast."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: torch.Tensor = self.inner(x.float())
        return y


def fast_grouped(view: nn.Module, mixed: bool) -> nn.Module:
    """Give the depthwise convolutions of `view`, folded or not, fast gradients, in place.

    Args:
        view: the modules that train; see `folding.training_view`.
        mixed: compute other grouped convolutions in float32 under autocast, because they are slow in bfloat16.
    """
    grouped = {
        name: conv
        for name, module in view.named_modules()
        if isinstance(conv := module.conv if isinstance(module, FoldedConv) else module, nn.Conv2d) and conv.groups > 1
    }
    for name, conv in grouped.items():
        if any(name.startswith(f"{outer}.") for outer in grouped):  # the convolution within a folded one
            continue
        if is_depthwise(conv):
            replace(view, name, Depthwise(view.get_submodule(name)))
        elif mixed:
            replace(view, name, Float32(view.get_submodule(name)))
    return view


class _FastGradients(TorchFunctionMode):
    """A context in which F.conv2d is `_Convolution`; a convolution class keeps its other behaviour, such as padding."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        usual = func is F.conv2d and len(args) >= 5 and not kwargs and all(isinstance(part, tuple) for part in args[3:5])
        if not usual:  # not as nn.Conv2d calls it
            return func(*args, **(kwargs or {}))
        x, weight, bias, stride, padding = args[:5]
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return _Convolution.apply(x, weight, bias, stride, padding)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether each output channel depends on one input channel, and each input channel has one output channel."""
    return conv.groups == conv.in_channels == conv.out_channels and conv.dilation == (1, 1)


class _Convolution(torch.autograd.Function):
    """x [n, c, h, w], weight [c, 1, i, j] and bias [c] or None to [n, c, p, q]."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Pair, padding: Pair) -> torch.Tensor:
        return F.conv2d(x.to(weight.dtype), weight, bias, stride, padding, 1, len(weight)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_weight, of_bias, _, _ = ctx.needs_input_grad
        return (
            input_gradient(gradient, x, weight, ctx.stride, ctx.padding) if of_x else None,
            weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if of_weight else None,
            gradient.sum((0, 2, 3), dtype=weight.dtype) if of_bias else None,
            None,
            None,
        )


def input_gradient(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
    """Return the gradient of a depthwise convolution's input, [n, c, h, w].

    Args:
        gradient: of its output, [n, c, p, q].
    """
    if max(stride) == 1 or x.dtype != torch.bfloat16:
        return _backward(gradient, x, weight.to(x.dtype), stride, padding, 0)
    like_x = torch.empty_like(x, dtype=torch.float32)  # only its shape and layout matter
    return _backward(gradient.float(), like_x, weight.float(), stride, padding, 0).to(x.dtype)


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
    """Return the gradient of a depthwise convolution's weight, [c, 1, i, j].

    Args:
        gradient: of its output, [n, c, p, q].
    """
    columns = weight.shape[3]
    if x.shape[2] < weight.shape[2] or x.shape[3] < columns:  # in bfloat16 oneDNN reads beyond such maps, at stride 2
        return _backward(gradient.to(weight.dtype), x.to(weight.dtype), weight, stride, padding, 1)
    like_weight = weight.to(x.dtype)
    if columns <= FAST_COLUMNS:
        return _backward(gradient, x, like_weight, stride, padding, 1).to(weight.dtype)
    parts = []
    for first in range(0, columns, FAST_COLUMNS):
        part = like_weight[..., first : first + FAST_COLUMNS]
        seen = _columns_seen(x, first, (gradient.shape[3] - 1) * stride[1] + part.shape[3], padding)
        parts.append(_backward(gradient, seen, part, stride, (0, 0), 1))
    return torch.cat(parts, 3).to(weight.dtype)


def _columns_seen(x: torch.Tensor, first: int, count: int, padding: Pair) -> torch.Tensor:
    """Return `count` columns of x, padded with zeros on all sides, starting at column `first`; channels-last."""
    n, c, h, w = x.shape
    above, start = padding[0], first - padding[1]
    padded = x.new_zeros(n, h + 2 * above, count, c)
    low = max(start, 0)
    high = max(min(start + count, w), low)  # no columns, if the map is narrower than half the kernel
    padded[:, above : above + h, low - start : high - start] = x.permute(0, 2, 3, 1)[:, :, low:high]
    return padded.permute(0, 3, 1, 2)


def _backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair, of: int
) -> torch.Tensor:
    """Return PyTorch's gradient of the input (`of` = 0) or of the weight (`of` = 1)."""
    wanted = [of == 0, of == 1, False]
    found: torch.Tensor = CONVOLUTION_BACKWARD(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )[of]
    return found
