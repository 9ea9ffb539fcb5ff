"""Compare fine-tuning's step with our gradients of depthwise convolutions and with PyTorch's: `python -m bench.depthwise`.

EfficientNet-lite0 with frozen batch norm, fastai's head, batches of 32, in fine-tuning's precision on this machine.
PyTorch's side computes depthwise convolutions in float32, where PyTorch is fastest. Sides alternate; medians of rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from bench.sides import numbered, said
from headstart.hardware import choose_precision
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.cuts import cut_body
from headstart.models.depthwise import Depthwise, Float32, weight_gradient
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.runtime import configure, to_device
from headstart.training.batch_sources import BatchSource
from headstart.training.fine_tune import Network, UnfreezePhase
from headstart.training.loop import train_step
from headstart.training.options import Options

NAME, BATCH = "tf_efficientnet_lite0", 32
LAYERS = ((144, 32, 2), (240, 16, 1), (480, 8, 1), (672, 8, 1), (672, 8, 2), (1152, 4, 1))  # channels, side at 128 px, stride


def seconds(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds(sides: list[Callable[[], object]], number: int) -> list[list[float]]:
    """Return the seconds of each side in each round, after two rounds that do not count."""
    return [[seconds(side) for side in sides] for _ in range(number + 2)][2:]


def show(what: str, found: list[list[float]], unit: float, form: str) -> None:
    """Print a row: both sides' medians, and the median and range of the ratios."""
    cells = [format(statistics.median(column) * unit, form) for column in zip(*found, strict=True)]
    print(f"| {what} | {' | '.join(cells)} | {said([torchs / ours for torchs, ours in found], '.2f')} |")


def kernels(number: int) -> None:
    """Measure the weight gradients of the network's 5 x 5 convolutions at 128 px."""
    for dtype in (torch.float32, torch.bfloat16):
        for channels, side, stride in LAYERS:
            conv = nn.Conv2d(channels, channels, 5, stride, 2, groups=channels).to(dtype)
            x = torch.randn(BATCH, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
            gradient = torch.randn_like(conv(x))
            pair = (stride, stride), (2, 2)

            def own(x=x, gradient=gradient, weight=conv.weight, pair=pair) -> object:  # type: ignore[no-untyped-def]
                arguments = (gradient, x, weight, None, *pair, (1, 1), False, (0, 0), len(weight), [False, True, False])
                return torch.ops.aten.convolution_backward(*arguments)

            def ours(x=x, gradient=gradient, weight=conv.weight, pair=pair) -> object:  # type: ignore[no-untyped-def]
                return weight_gradient(gradient, x, weight, *pair)

            with torch.no_grad():
                found = rounds([own, ours], number)
            show(f"{channels} channels, {side} x {side}, stride {stride}, {str(dtype)[6:]}, ms", found, 1e3, ".2f")


def trained(backbone: Backbone, unfreeze_from: str) -> tuple[Network, torch.optim.Optimizer]:
    """Return a network with fastai's head and frozen batch norm, in fine-tuning's precision here, and its optimizer."""
    device = configure("auto", "cpu")
    model = to_device(Classifier(backbone.body, build_head(HeadSpec("mlp", backbone.width, 10), 0)), device)
    network = Network(model, backbone.groups, True, choose_precision("auto", device)[0])
    return network, network.unfreeze(UnfreezePhase(unfreeze_from, 1, 1e-4, 10), Options())


def step(size: int, after: str | None) -> Callable[[bool], Callable[[], object]]:
    """Return a maker of a training step of what follows `after`, or of all layers; its flag chooses our gradients."""
    configure("auto", "cpu")
    backbone = build_backbone(NAME, "packaged", size)
    x = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    if after:
        with torch.no_grad():
            x = cut_body(backbone.body, backbone.groups, after)[0].eval()(x).contiguous(memory_format=torch.channels_last)
    y = torch.arange(BATCH) % 10
    batch_source = BatchSource(after, lambda *_: iter(()), lambda: iter(()), lambda: x[:1])

    def side(fast: bool) -> Callable[[], object]:
        network, optimizer = trained(backbone, "late" if after else "all")
        runner = network.runner(batch_source)
        if not fast:
            for name, module in list(runner.named_modules()):
                if isinstance(module, Depthwise):
                    parent, _, leaf = name.rpartition(".")
                    setattr(runner.get_submodule(parent), leaf, Float32(module.inner))
        network.prepare(batch_source)
        forward = network.forward(batch_source)
        return lambda: train_step(forward, optimizer, x, y, numbered(y).loss(Options().loss_rule, y))

    return side


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.depthwise", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    number = parser.parse_args().rounds
    configure("auto", "cpu")
    print("| | PyTorch | ours | ratio: median (range) |\n|---|---|---|---|")
    kernels(number)
    for size in (128, 224):
        for after, name in ((None, "all layers"), ("early", "late half")):
            side = step(size, after)
            show(f"a training step, {name}, {size} px, ms", rounds([side(False), side(True)], number), 1e3, ".0f")


if __name__ == "__main__":
    main()
