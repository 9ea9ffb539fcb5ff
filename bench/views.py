"""Compare heads trained on K cached views and on live augmentation, at equal epochs: `python -m bench.views > docs/views.md`.

For live augmentation the engine computes a fresh view of each image in every epoch, with the same augmentations.
A seed has its own split, initial weights, order and views. The test scores the base view of each image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.data_sets import DIGITS, PHOTOS, Set, divide, interval, write_digits, write_textures
from bench.sides import Side, keyed, numbered, set_up, unlogged
from headstart.activations.store import Activations
from headstart.models.heads import HeadSpec, build_head, fit_standardiser
from headstart.seeds import derive_seed
from headstart.training.activation_dataset import ActivationDataset
from headstart.training.head import train_head
from headstart.training.options import Options
from headstart.training.validation import collect_logits

KS, EPOCHS, LR, BATCH = (0, 1, 2, 4, 8), 20, {"linear": 3e-3, "mlp": 1e-3}, 64


INTRODUCTION = """\
`python -m bench.views --seeds {seeds} > docs/views.md`. A head trains on the frozen EfficientNet-lite0 (ImageNet weights)
for {epochs} epochs with AdamW and one-cycle, in batches of {batch}; training keeps the epoch with the lowest validation
log-loss. K cached views: an epoch draws, for each image, the base view or one of K. Live: the same engine computes a fresh
augmented view of each image in every epoch (the last column has its time). Seeds 0 to {last} each have their own split,
initial weights, order and views, and every variant shares them with live. Computing K views takes once as long as 1 + K
live epochs."""


SETS = (
    Set("digits", 96, DIGITS, (1258, 100), write_digits),
    Set("photos and textures", 128, PHOTOS, (200, 50), write_textures),
)


def trained(
    kind: str, x_vnd: torch.Tensor, y_n: torch.Tensor, parts: dict[str, list[int]], views: int | None, seed: int
) -> tuple[float, float]:
    """Return test accuracy and seconds per epoch with K cached views, or (None) with a fresh one every epoch."""
    split = {name: torch.tensor(rows) for name, rows in parts.items()}
    x_train, y_train = x_vnd[:, split["train"]], y_n[split["train"]]
    epoch = [0]

    def take(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        if views is None:
            epoch[0] += 1
            return x_train[epoch[0], images]
        return x_train[drawn, images]

    rows = ActivationDataset(take, 1 + (views or 0), y_train)
    valid = ActivationDataset(lambda images, _: x_vnd[0, split["valid"]][images], 1, y_n[split["valid"]])
    head = build_head(HeadSpec(kind, x_vnd.shape[2], int(y_n.max()) + 1), derive_seed(seed, "head"))
    fit_standardiser(head, [x_train[0]])
    start = time.monotonic()
    target, options = numbered(y_n), Options(batch_size=BATCH)
    train_head(head, rows, valid, target, epochs=EPOCHS, lr=LR[kind], options=options, run=unlogged(seed))
    seconds = (time.monotonic() - start) / EPOCHS
    return target.scores(collect_logits(head, [x_vnd[0, split["test"]]]), y_n[split["test"]])["accuracy"], seconds


def activations(side: Side, files: list[tuple[str, str]], scratch: Path) -> tuple[torch.Tensor, float]:
    """Return the activations of all views [1 + epochs, n, d], and the rate of computing them in images/s."""
    start = time.monotonic()
    side.run(side.cache(scratch / "cache"), scratch / "out", files, EPOCHS)
    rate = len(files) * (1 + EPOCHS) / (time.monotonic() - start)
    return Activations(scratch / "out").all_views([key for _, key in files]), rate


Found = dict[str, dict[str, list[tuple[float, float]]]]


def run(data: Set, seeds: int) -> None:
    """Print the tables of one data set: accuracy and seconds per epoch by head and variant."""
    found: dict[int, Found] = {count: {kind: {} for kind in LR} for count in data.trains}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        data.write(source)
        files = keyed(source)
        classes = sorted({Path(path).parts[0] for path, _ in files})
        y_n = torch.tensor([classes.index(Path(path).parts[0]) for path, _ in files])
        for seed in range(seeds):
            side = set_up(source, "tf_efficientnet_lite0", data.size, "packaged", data.augmentation, seed)
            (scratch := Path(folder, str(seed))).mkdir()
            x_vnd, rate = activations(side, files, scratch)
            print(f"{data.name}, seed {seed}: {rate:,.0f} images/s", file=sys.stderr, flush=True)
            for count, heads in found.items():
                parts = divide(files, count, seed)
                for kind, variants in heads.items():
                    for views in (*KS, None):
                        accuracy, seconds = trained(kind, x_vnd, y_n, parts, views, seed)
                        live = len(parts["train"]) / rate if views is None else 0.0
                        variants.setdefault("live" if views is None else str(views), []).append((accuracy, seconds + live))
    for count, heads in found.items():
        sizes = {name: len(rows) for name, rows in divide(files, count, 0).items()}
        print(f"\n## {data.name.capitalize()}, {data.size} px, {sizes['train']} training images\n")
        print(f"{sizes['valid']} validation and {sizes['test']} test images, {len(classes)} classes.\n")
        table(heads)


def table(found: Found) -> None:
    """Print a Markdown table with a row per head and variant."""
    print("| head | cached views | test accuracy, mean (range) | minus live: mean (95 % paired interval) | seconds per epoch |")
    print("|---|---|---|---|---|")
    for kind, variants in found.items():
        live = [accuracy for accuracy, _ in variants["live"]]
        for variant, runs in variants.items():
            accuracy = [value for value, _ in runs]
            differences = [a - b for a, b in zip(accuracy, live, strict=True)]
            low, high = interval(differences)
            against = "" if variant == "live" else f"{statistics.mean(differences):+.4f} ({low:+.4f} to {high:+.4f})"
            shown = f"{statistics.mean(accuracy):.4f} ({min(accuracy):.4f}-{max(accuracy):.4f})"
            print(f"| {kind} | {variant} | {shown} | {against} | {statistics.median(s for _, s in runs):.3g} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.views", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    print("# Cached views against live augmentation\n")
    print(INTRODUCTION.format(seeds=seeds, last=seeds - 1, epochs=EPOCHS, batch=BATCH))
    for data in SETS:
        run(data, seeds)


if __name__ == "__main__":
    main()
