"""The engine: a frozen body's forward pass, as fast as eager PyTorch goes at equal results.

Three things make it fast, all of them functions of the backbone and the parameters alone: batch norms
folded into the convolutions before them, channels-last memory, bfloat16 where the CPU has it natively
and gains by it. A batch is padded to one fixed shape, so that an image's activations do not depend, to
the bit, on what else is in its batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from headstart.data.transforms import Preprocessing, normalise
from headstart.runtime import place

FOLD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plan:
    """How activations are computed, and why."""

    precision: str
    folded: int
    batch_size: int
    reason: str


def plan_precision(wanted: str, body: nn.Module, device: torch.device) -> tuple[str, str]:
    """Resolve `auto` from what CPU and architecture are, never from timing.

    Returns:
        The precision, "float32" or "bfloat16", and the reason in words.
    """
    if wanted != "auto":
        return wanted, "as params say"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "this GPU has bfloat16") if native else ("float32", "this GPU has no bfloat16")
    if device.type == "mps":
        return "float32", "on MPS"
    if torch.cpu._is_amx_tile_supported():
        return "bfloat16", "this CPU has AMX"
    if not torch.cpu._is_avx512_bf16_supported():
        return "float32", "this CPU has no native bfloat16"
    if has_depthwise(body):
        return "float32", "depthwise convolutions gain nothing from AVX512-BF16 (docs/decisions.md)"
    return "bfloat16", "this CPU has AVX512-BF16"


def has_depthwise(body: nn.Module) -> bool:
    """Whether any convolution works on each channel by itself."""
    return any(isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 for module in body.modules())


class Engine:
    """A frozen body made fast. Call it with uint8 images; it returns float32 activations.

    Args:
        body: in eval mode, not changed: the engine works on a copy.
        preprocessing: mean and std are applied here.
        precision: "float32" or "bfloat16", or "auto".
        batch_size: the fixed batch shape.
        device: where to compute.
    """

    def __init__(
        self, body: nn.Module, preprocessing: Preprocessing, precision: str, batch_size: int, device: torch.device
    ) -> None:
        resolved, reason = plan_precision(precision, body, device)
        example = torch.randn(
            2, 3, preprocessing.image_size, preprocessing.image_size, generator=torch.Generator().manual_seed(0)
        )
        folded, count = fold_batch_norms(body, example)
        self.body = place(folded, device)
        self.preprocessing = preprocessing
        self.device = device
        self.plan = Plan(resolved, count, batch_size, reason)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Activations of up to `batch_size` images.

        Args:
            images: [n, 3, s, s] uint8, n at most the batch size.

        Returns:
            [n, d] float32 on the CPU; each row the same to the bit whatever the other rows are.
        """
        n, size = len(images), self.plan.batch_size
        if n > size:
            raise ValueError(f"{n} images, wanted at most the batch size {size}")
        if n < size:
            images = torch.cat([images, images.new_zeros(size - n, *images.shape[1:])])
        if self.device.type == "cuda":
            images = images.pin_memory()
        x_nchw = normalise(images.to(self.device, non_blocking=True), self.preprocessing)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            x_nd: torch.Tensor = self.body(x_nchw)
        return x_nd.float().cpu()[:n]


@torch.inference_mode(False)
@torch.no_grad()
def fold_batch_norms(body: nn.Module, example: torch.Tensor) -> tuple[nn.Module, int]:
    """A copy of `body` with each batch norm folded into the convolution whose output it alone reads.

    Pairs are found by watching one forward pass of `example`; the copy's output is compared with the
    original's, and the original is kept when they differ.

    Returns:
        The body to use, and how many batch norms were folded.
    """
    body = copy.deepcopy(body).eval()
    expected = body(example)
    pairs = _conv_norm_pairs(body, example)
    folded = copy.deepcopy(body)
    for conv_name, norm_name in pairs:
        _fold(folded, conv_name, norm_name)
    difference = (folded(example) - expected).abs().max()
    if not pairs or not difference <= FOLD_TOLERANCE * expected.abs().max():
        return body, 0
    return folded, len(pairs)


def _conv_norm_pairs(body: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    calls: dict[str, int] = {}
    made: dict[int, tuple[str, torch.Tensor, int]] = {}  # the tensor is kept, so that its id stays its own
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
    parent, _, leaf = norm_name.rpartition(".")
    # timm's BatchNormAct2d carries its dropout and activation; a plain batch norm leaves nothing behind
    rest = [getattr(norm, part) for part in ("drop", "act") if isinstance(getattr(norm, part, None), nn.Module)]
    setattr(body.get_submodule(parent), leaf, nn.Sequential(*rest))


def fidelity(engine: Engine, body: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Compare the engine with the plain float32 body on a sample.

    Args:
        images: [n, 3, s, s] uint8.

    Returns:
        `cosine_min` over the rows, `max_error` and `max_value` over all activations.
    """
    with torch.inference_mode():
        plain = body.to(engine.device).eval()(normalise(images.to(engine.device), engine.preprocessing)).float().cpu()
    fast = engine(images)
    return {
        "cosine_min": float(torch.cosine_similarity(fast, plain).min()),
        "max_error": float((fast - plain).abs().max()),
        "max_value": float(plain.abs().max()),
    }
