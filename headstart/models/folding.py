"""Fold batch norms into the convolutions before them: the same function, with fewer passes over memory.

A frozen body is folded once. A network that trains with frozen statistics is folded in every step, from its present weights.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger("headstart")
FOLD_TOLERANCE = 1e-3


class FoldedConv(nn.Module):
    """A convolution and the following batch norm with frozen statistics, computed as one convolution.

    With s = weight / sqrt(running_var + eps), norm(conv(x)) is the convolution with s times the weights and the bias
    norm.bias - s x running_mean. Gradients reach the parameters of both modules through this formula.
    """

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        if conv.bias is not None:
            shift = shift + conv.bias * scale
        weights = {"weight": conv.weight * scale.view(-1, 1, 1, 1), "bias": shift}
        y: torch.Tensor = torch.func.functional_call(conv, weights, (x,))  # a subclass pads as it always does
        return y


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model, but keep its own parameters and buffers."""
    own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, own)  # deepcopy does not copy what its memo already has


def training_view(model: nn.Module, example: Any) -> nn.Module:
    """Return `model` with folded batch norms, for training with frozen statistics: the same function in fewer passes.

    Only the modules are new; parameters and buffers are the model's own, so that an optimizer over them trains both. Nothing
    is folded if that would change the function, as when a shortcut also reads a convolution's output.

    Args:
        example: an input [n, ...] for the forward pass that finds pairs of convolution and batch norm.
    """
    view = shared_copy(model).eval()
    with torch.no_grad():
        pairs = _conv_norm_pairs(view, example)
        trial = copy.deepcopy(view)
        for module in trial.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean -= module.running_var.sqrt() / 2  # a new network's are nearly the identity
        expected = trial(example)
        _fold_live(trial, pairs)
        if not _agree(trial(example), expected):
            logger.info(
                "  training is somewhat slower: batch norms are not folded, because other layers also read the convolutions'"
                " outputs"
            )
            return view
    _fold_live(view, pairs)
    return view


def _fold_live(view: nn.Module, pairs: list[tuple[str, str]]) -> None:
    for conv_name, norm_name in pairs:
        conv, norm = view.get_submodule(conv_name), view.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, _BatchNorm)
        replace(view, conv_name, FoldedConv(conv, norm))
        replace(view, norm_name, _rest(norm))


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= FOLD_TOLERANCE * expected.abs().max())  # false for NaN


@torch.inference_mode(False)
@torch.no_grad()
def fold_batch_norms(body: nn.Module, example: torch.Tensor) -> tuple[nn.Module, int]:
    """Copy `body` with each batch norm folded into its convolution, if nothing else reads that convolution's output.

    Pairs are found by watching one forward pass of `example`. If the folded body's output differs from the original's,
    the unfolded copy is returned.

    Returns:
        The body to use, and the number of batch norms that were folded.
    """
    body = copy.deepcopy(body).eval()
    expected = body(example)
    pairs = _conv_norm_pairs(body, example)
    folded = copy.deepcopy(body)
    for conv_name, norm_name in pairs:
        _fold(folded, conv_name, norm_name)
    if not pairs or not _agree(folded(example), expected):
        return body, 0
    return folded, len(pairs)


def _conv_norm_pairs(body: nn.Module, example: Any) -> list[tuple[str, str]]:
    calls: dict[str, int] = {}
    made: dict[int, tuple[str, torch.Tensor, int]] = {}  # the tensor is kept so that its id is not reused
    pairs: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def after_conv(_: nn.Module, __: object, output: torch.Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = (name, output, output._version)

        def before_norm(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            conv, _tensor, version = made.get(id(inputs[0]), ("", None, -1))
            if version == inputs[0]._version:
                pairs.append((conv, name))

        if isinstance(module, nn.Conv2d):
            return module.register_forward_hook(after_conv)
        return module.register_forward_pre_hook(before_norm)

    handles = [watch(n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d) or _foldable(m)]
    body(example)
    for handle in handles:
        handle.remove()
    convs = [conv for conv, _ in pairs]
    return [(c, n) for c, n in pairs if calls[c] == calls[n] == 1 and convs.count(c) == 1]


def _foldable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.affine


def _fold(body: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    replace(body, norm_name, _rest(norm))


def _rest(norm: nn.Module) -> nn.Module:
    """Return the remaining parts of timm's BatchNormAct2d, dropout and activation; a plain batch norm has none."""
    return nn.Sequential(*(part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)))


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` of a model."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
