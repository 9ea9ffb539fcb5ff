"""`python -m flows.backbones NAME`: show the parameters, layer groups and cost of an architecture."""

from __future__ import annotations

import argparse
import sys

import torch
from headstart.core.command_line import guarded
from headstart.models.backbones import Backbone, build_backbone
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flows.arguments import whole


def giga_flops(body: nn.Module, image_size: int) -> float:
    """Count the multiply-adds of one image's forward pass in billions, as torchvision's tables do."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() / 2e9


def describe(backbone: Backbone) -> Table:
    """Return the table of one backbone: where its parameters are, its layer groups, width and cost."""
    size = backbone.preprocessing.image_size
    numbers = dict(backbone.body.named_parameters())
    table = Table(title=backbone.name, show_header=False, title_justify="left")
    body, classifier = backbone.body_parameters, backbone.classifier_parameters
    share = classifier / (body + classifier)
    table.add_row("parameters in the body", f"{body:,}")
    table.add_row("parameters in fully connected layers", f"{classifier:,} ({share:.0%}; cut off: the head replaces them)")
    for name, parameters in backbone.groups.items():
        count = sum(numbers[parameter].numel() for parameter in parameters)
        span = f"{_stage(parameters[0])} … {_stage(parameters[-1])}" if parameters else "empty"
        table.add_row(f"layer group {name}", f"{count:,} parameters, {span}")
    table.add_row("layer group head", "the layers that train on the activations")
    table.add_row("activation width", f"{backbone.width:,}")
    table.add_row("GFLOPs of the body", f"{giga_flops(backbone.body, size):.2f} (multiply-adds) at {size} px")
    p = backbone.preprocessing
    table.add_row("preprocessing", f"{p.interpolation}, crop {p.crop_pct:.3f}, mean {p.mean}, std {p.std}")
    return table


def _stage(parameter: str) -> str:
    return ".".join(parameter.removeprefix("stages.").removeprefix("model.").split(".")[:2])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.backbones", description="Show backbones' architectures.")
    parser.add_argument("names", nargs="+", metavar="NAME", help="any torchvision classification or timm model")
    parser.add_argument("--image-size", type=whole(16, 2048), default=224, help="side of the input in pixels (default 224)")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    for name in arguments.names:
        console.print(describe(build_backbone(name, "random", arguments.image_size)))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
