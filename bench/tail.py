"""Compare an epoch of the late half on cached maps with epochs on images: `python -m bench.tail`.

256 photos of 500 x 375, fastai's head, batches of 32, frozen batch norm, augmentation, fine-tuning's precision on this
machine. Images are decoded in every epoch, as if they did not fit into memory; or their pixels are kept after the first
epoch; or kept with all layers trained. Sides alternate; medians of rounds. Random weights do not change the times.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench.data_sets import PHOTOS
from bench.depthwise import BATCH, rounds, trained
from bench.precompute import write_photos
from bench.sides import keyed, numbered, said
from headstart.hardware import resolve_workers
from headstart.images.loader import RESIZED_CACHE_BYTES, ImageSource, ResizedImageCache
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body
from headstart.runtime import configure
from headstart.training.activation_dataset import ActivationDataset
from headstart.training.batch_sources import BatchSource, TrainingImages, from_feature_maps, from_images
from headstart.training.loop import train_step
from headstart.training.options import Options

IMAGES = 256
NETWORKS = (("tf_efficientnet_lite0", 128), ("tf_efficientnet_lite0", 224), ("resnet50", 128))
SIDES = ("cached maps", "images, decoded each time", "images, pixels kept", "images, all layers")


def sides(folder: Path, name: str, size: int) -> list[Callable[[], object]]:
    """Return a function for each of `SIDES` that trains one epoch."""
    device = configure("auto", "cpu")
    backbone = build_backbone(name, "random", size)
    files, y = keyed(folder), torch.arange(IMAGES) % 10

    def images(kept: int) -> BatchSource:
        source = ImageSource(folder, 50_000_000, backbone.preprocessing, PHOTOS, 0, ResizedImageCache(kept))
        train, valid = (lambda epoch, row: source.augmented(*files[row], epoch)), (lambda row: source.base_view(*files[row]))
        training = TrainingImages(train, y)
        return from_images(training, (valid, IMAGES), backbone.preprocessing, resolve_workers("auto"), device)

    decoded, kept = images(0), images(RESIZED_CACHE_BYTES)
    with torch.no_grad():
        front = cut_body(backbone.body, backbone.groups, "early")[0]
        maps = torch.cat([front(x) for x in kept.valid()])
    rows = ActivationDataset(lambda chosen, views: maps[chosen], 1, y)

    def side(batch_source: BatchSource, unfreeze_from: str) -> Callable[[], object]:
        network, optimizer = trained(replace(backbone, body=copy.deepcopy(backbone.body)), unfreeze_from)
        network.prepare(batch_source)
        forward, loss = network.forward(batch_source), numbered(y).loss(Options().loss_rule, y)

        def epoch() -> None:
            for x, y_b, _ in batch_source.batches(0, 0, BATCH, 0):
                train_step(forward, optimizer, x, y_b, loss)

        return epoch

    map_source = from_feature_maps("early", rows, rows, device)
    return [side(map_source, "late"), side(decoded, "late"), side(kept, "late"), side(kept, "all")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tail", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    number = parser.parse_args().rounds
    print("| an epoch: seconds; as a multiple of the cached maps' |", " | ".join(SIDES), "|\n|---|" + "---|" * len(SIDES))
    with tempfile.TemporaryDirectory() as scratch:
        write_photos(Path(scratch), IMAGES)
        for name, size in NETWORKS:
            maps, *others = zip(*rounds(sides(Path(scratch), name, size), number), strict=True)
            cells = [f"{said(other)}; {said([a / b for a, b in zip(other, maps, strict=True)])}" for other in others]
            print(f"| {name}, {size} px | {said(maps)} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
