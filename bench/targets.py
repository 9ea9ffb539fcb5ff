"""Compare the kinds of target on the same images: `python -m bench.targets`.

Several labels or a number must not be slower. The three kinds rotate in one process: epochs of the linear head on cached
activations (1,200 images, 2,560 values), and an epoch of the whole EfficientNet-lite0 at 96 px. Each figure is a ratio to one
label an image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from bench.sides import unlogged
from headstart.core.command_line import command_line
from headstart.hardware import choose_precision
from headstart.models.backbones import build_backbone
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.runtime import configure, to_device
from headstart.targets.multi_label import MultiLabel
from headstart.targets.number import Number
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import Target
from headstart.training.activation_dataset import ActivationDataset
from headstart.training.batch_sources import TrainingImages, from_images
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune
from headstart.training.head import train_head
from headstart.training.options import Options

IMAGES, WIDTH, EPOCHS, TUNED = 1200, 2560, 10, 96
NAMES = tuple("0123456789")


def kinds(count: int) -> dict[str, tuple[Target, list[str]]]:
    """Return each kind's target, and labels for `count` images."""
    return {
        "single_label": (SingleLabel(NAMES), [NAMES[n % 10] for n in range(count)]),
        "multi_label": (MultiLabel(NAMES), [f"{min(n % 10, n % 7)} {max(n % 10, n % 7)}" for n in range(count)]),
        "number": (Number(False, count / 2, count / 3), [str(n) for n in range(count)]),
    }


def head_seconds(target: Target, labels: list[str]) -> float:
    """Return the seconds of `EPOCHS` epochs of the head, validation included."""
    x = torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(0))
    data = ActivationDataset(lambda images, views: x[images], 1, target.encode(labels))
    head, start = build_head(HeadSpec("linear", WIDTH, target.outputs), 0), time.monotonic()
    train_head(head, data, data, target, epochs=EPOCHS, lr=1e-3, options=Options(), run=unlogged(0))
    return time.monotonic() - start


def tuning_seconds(target: Target, labels: list[str]) -> float:
    """Return the seconds of an unfrozen epoch, validation included."""
    backbone, cpu = build_backbone("tf_efficientnet_lite0", "random", 96), torch.device("cpu")
    images = torch.randint(0, 256, (TUNED, 3, 96, 96), dtype=torch.uint8)
    y = target.encode(labels)
    source = from_images(
        TrainingImages(lambda epoch, row: images[row], y), (images.__getitem__, TUNED), backbone.preprocessing, 2, cpu
    )
    model = to_device(Classifier(backbone.body, build_head(HeadSpec("linear", backbone.width, target.outputs), 0)), cpu)
    network = Network(model, backbone.groups, True, choose_precision("auto", cpu)[0])
    start = time.monotonic()
    fine_tune(network, [(UnfreezePhase("all", 1, 1e-6), source)], Labels(target, y, y), Options(batch_size=32), unlogged(0))
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.targets", description="Compare the kinds of target.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    command_line()
    configure("auto", "cpu")
    parts: dict[str, tuple[int, Callable[[Target, list[str]], float]]] = {
        "head": (IMAGES, head_seconds),
        "unfrozen": (TUNED, tuning_seconds),
    }
    for what, (count, seconds) in parts.items():
        asked = kinds(count)
        seconds(*asked["single_label"])  # warm
        found: dict[str, list[float]] = {kind: [] for kind in asked}
        for _ in range(repeats):
            for kind, (target, labels) in asked.items():
                found[kind].append(seconds(target, labels))
        for kind in ("multi_label", "number"):
            ratios = [mine / one for mine, one in zip(found[kind], found["single_label"], strict=True)]
            low, high = min(ratios), max(ratios)
            print(f"{what:<10}{kind:<14}{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f}) of single_label's time")


if __name__ == "__main__":
    main()
