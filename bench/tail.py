"""An epoch of the late half from cached boundary maps against ones on images: `python -m bench.tail`.

256 photos of 500 x 375, fastai's head, batches of 32, frozen batch norm, augmentation, fine-tuning's precision on this
machine. Images: decoded in every epoch, as where they do not fit into memory; kept as pixels after the first; kept, and
all layers trained. Sides in alternation, medians of rounds. The weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bench.depthwise import BATCH, rounds
from bench.precompute import write_photos
from bench.sides import keyed, said
from headstart.core.parallel import count
from headstart.data.images import KEPT_BYTES, ImageSource, Kept
from headstart.data.transforms import Augmentation
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body
from headstart.models.heads import Classifier, build_head
from headstart.runtime import configure, place, training_precision
from headstart.training.fine_tune import Feed, Network, Stretch, cached_feed, live_feed
from headstart.training.head import Rows
from headstart.training.loop import train_step
from headstart.training.options import Options

PHOTOS = 256
AUGMENTATION = Augmentation("side_on", True, 10, 1.1, 0.05)
NETWORKS = (("tf_efficientnet_lite0", 128), ("tf_efficientnet_lite0", 224), ("resnet50", 128))
SIDES = ("cached maps", "images, decoded each time", "images, pixels kept", "images, all layers")


def sides(folder: Path, name: str, size: int) -> list[Callable[[], object]]:
    """An epoch of each of `SIDES`."""
    device = configure("auto", "cpu")
    backbone = build_backbone(name, "random", size)
    files, y = keyed(folder), torch.arange(PHOTOS) % 10

    def images(kept: int) -> Feed:
        source = ImageSource(folder, 50_000_000, backbone.preprocessing, AUGMENTATION, 0, Kept(kept))
        train, valid = (lambda epoch, row: source.augmented(*files[row], epoch)), (lambda row: source.plain(*files[row]))
        return live_feed((train, y), (valid, y), backbone.preprocessing, count("auto"), device)

    decoded, kept = images(0), images(KEPT_BYTES)
    with torch.no_grad():
        front = cut_body(backbone.body, backbone.groups, "early")[0]
        maps = torch.cat([front(x) for x in kept.valid()])
    rows = Rows(lambda chosen, views: maps[chosen], 1, y)
    options = Options(batch_size=BATCH)

    def side(feed: Feed, unfreeze_from: str) -> Callable[[], object]:
        body = build_backbone(name, "random", size).body
        model = place(Classifier(body, build_head("mlp", backbone.width, 10, 0)), device)
        network = Network(model, backbone.groups, True, training_precision("auto", device)[0])
        optimizer = network.unfreeze(Stretch(unfreeze_from, 1, 1e-4, 10), options)
        network.prepare(feed)
        forward, loss = network.forward(feed), options.loss(y, device)

        def epoch() -> None:
            for x, y_b, _ in feed.batches(0, 0, BATCH, False, 0):
                train_step(forward, optimizer, x, y_b, loss)

        return epoch

    maps_feed = cached_feed("early", rows, rows, device)
    return [side(maps_feed, "late"), side(decoded, "late"), side(kept, "late"), side(kept, "all")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tail", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    number = parser.parse_args().rounds
    print("| an epoch: seconds, and times the cached maps' |", " | ".join(SIDES), "|\n|---|" + "---|" * len(SIDES))
    with tempfile.TemporaryDirectory() as scratch:
        write_photos(Path(scratch), PHOTOS)
        for name, size in NETWORKS:
            columns = list(zip(*rounds(sides(Path(scratch), name, size), number), strict=True))
            ratios = [[other / own for other, own in zip(column, columns[0], strict=True)] for column in columns]
            cells = [f"{said(list(column))}; {said(ratio)}" for column, ratio in zip(columns, ratios, strict=True)]
            print(f"| {name}, {size} px |", " | ".join([cells[0].split(";")[0], *cells[1:]]), "|", flush=True)


if __name__ == "__main__":
    main()
