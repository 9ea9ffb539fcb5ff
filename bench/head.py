"""Compare head training on cached activations with fastai's frozen epoch: `make bench`, or in its environment
`python -m bench.head`.

Both sides rotate in one run, each in a fresh process, on the same photos (500 x 375, EfficientNet-lite0 at 224 px), with the
same head (fastai's) and batches of 64. fastai decodes, augments and runs the frozen body in every epoch. We compute the
base view and two augmented views once, and an epoch draws one of them for each image. The break-even is the number of
fastai's epochs that our precompute takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.precompute import write_photos

NAME, SIZE, COUNT, VIEWS, EPOCHS = "tf_efficientnet_lite0", 224, 128, 2, 50


def fastai(folder: Path) -> dict[str, float]:
    """Return the seconds of a frozen epoch, including its validation (2 images)."""
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, get_image_files, vision_learner

    files = get_image_files(folder)
    labels = [str(i % 5) for i in range(len(files))]
    augment = aug_transforms(max_warp=0)
    data = ImageDataLoaders.from_lists(
        folder, files, labels, item_tfms=Resize(256), batch_tfms=[*augment], bs=64, num_workers=2, valid_pct=2 / len(files)
    )
    learner = vision_learner(data, NAME, pretrained=False, n_out=5)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
        start = time.monotonic()
        learner.fit(1)
        return {"epoch": time.monotonic() - start}


def ours(folder: Path) -> dict[str, float]:
    """Return the seconds of precompute, and of an epoch of the head on its activations."""
    import torch

    from bench.data_sets import PHOTOS
    from bench.sides import keyed, numbered, set_up, unlogged
    from headstart.activations.store import Activations
    from headstart.models.heads import HeadSpec, build_head
    from headstart.training.activation_dataset import activations_of
    from headstart.training.head import train_head
    from headstart.training.options import Options

    side, files = set_up(folder, NAME, SIZE, augmentation=PHOTOS), keyed(folder)
    with tempfile.TemporaryDirectory() as scratch:
        side.run(side.cache(Path(scratch, "warm")), Path(scratch, "warm-out"), files[:16])
        start = time.monotonic()
        side.run(side.cache(Path(scratch, "cache")), Path(scratch, "out"), files, VIEWS)
        precompute = time.monotonic() - start
        keys, y_n, stored = [key for _, key in files], torch.arange(len(files)) % 5, Activations(Path(scratch, "out"))
        train, valid = activations_of(stored, keys[2:], y_n[2:]), activations_of(stored, keys[:2], y_n[:2])
        head = build_head(HeadSpec("mlp", side.backbone.width, 5), seed=0)
        options = {"lr": 1e-3, "options": Options(batch_size=64), "run": unlogged(0)}
        train_head(head, train, valid, numbered(y_n), epochs=1, **options)  # type: ignore[arg-type]
        start = time.monotonic()
        train_head(head, train, valid, numbered(y_n), epochs=EPOCHS, **options)  # type: ignore[arg-type]
        return {"precompute": precompute, "epoch": (time.monotonic() - start) / EPOCHS}


def measure(side: str, folder: str) -> dict[str, float]:
    """Run one side in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-m", "bench.head", "--side", side, folder], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.head", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"fastai": fastai, "ours": ours}[arguments.side[0]](Path(arguments.side[1]))))
        return
    from bench.sides import said

    with tempfile.TemporaryDirectory() as scratch:
        write_photos(Path(scratch), COUNT)
        rounds = [(measure("fastai", scratch), measure("ours", scratch)) for _ in range(arguments.repeats)]
    ratios = [peer["epoch"] / own["epoch"] for peer, own in rounds]
    even = [own["precompute"] / (peer["epoch"] - own["epoch"]) for peer, own in rounds]
    print(f"{COUNT} photos, {VIEWS} augmented views and the base view, {NAME} at {SIZE} px, fastai's head")
    peer, own, precompute = (
        statistics.median(values)
        for values in ([p["epoch"] for p, _ in rounds], [o["epoch"] for _, o in rounds], [o["precompute"] for _, o in rounds])
    )
    print(f"  fastai's frozen epoch {peer:.2f} s; ours on cached activations {own:.4f} s: {said(ratios, ',.0f')} times")
    print(f"  precompute {precompute:.2f} s: break-even after {said(even)} of fastai's epochs")


if __name__ == "__main__":
    main()
