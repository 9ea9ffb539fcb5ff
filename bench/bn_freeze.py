"""Compare fine-tuning with frozen and with moving batch-norm statistics: `python -m bench.bn_freeze > docs/bn_freeze.md`.

Both variants of a seed share split, head, order, views and schedule. The test scores the base view of each image.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.data_sets import DIGITS, PHOTOS, Set, divide, interval, write_digits, write_textures
from bench.sides import Side, keyed, numbered, set_up, unlogged
from headstart.activations.store import Activations
from headstart.hardware import resolve_workers
from headstart.models.heads import Classifier, HeadSpec, build_head, fit_standardiser
from headstart.runtime import to_device
from headstart.seeds import derive_seed
from headstart.training.activation_dataset import ActivationDataset
from headstart.training.batch_sources import TrainingImages, from_images, image_batches
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune
from headstart.training.head import train_head
from headstart.training.options import Options
from headstart.training.validation import collect_logits

NAMES, SIZES = tuple(f"tf_efficientnet_lite{n}" for n in range(3)), (64, 96)
SETS = (
    Set("digits", 0, DIGITS, (256,), write_digits),
    Set("photos and textures", 0, PHOTOS, (256,), write_textures),
)
HEAD_EPOCHS, EPOCHS, LR, LR_RATIO, BATCH = 20, 5, 5e-4, 3.0, 32
MOST = {"valid": 100, "test": 300}
CPU = torch.device("cpu")

INTRODUCTION = """\
# Batch norm: frozen or moving statistics while fine-tuning

`python -m bench.bn_freeze --seeds {seeds} > docs/bn_freeze.md`. From the same head (linear, {head} epochs on cached
activations), the whole network trains {epochs} epochs on {train} images (AdamW, one-cycle, LR {lr:g}, each earlier
layer group a third of the next, batches of {batch}, label smoothing 0.1). Frozen: batch norm keeps its running
statistics (`bn_freeze: true`). Moving: it normalises by the batch's, and the running ones move by a tenth in each step
(`false`). Its affine parameters train in both. The weights are the packaged ImageNet weights. Training keeps the epoch
with the lowest validation log-loss ({valid} images); the test scores the base view (centre crop) of up to {test} images.
Seeds 0 to {last} each have their own split, initial weights, order and views, and both variants share them. Differences
are paired by seed, with their 95 % t-interval."""


@dataclass(frozen=True)
class Found:
    """The test scores of one seed: of the head, and of the variants with frozen and with moving statistics."""

    head: dict[str, float]
    frozen: dict[str, float]
    moving: dict[str, float]


def one_seed(
    side: Side, files: list[tuple[str, str]], y_n: torch.Tensor, parts: dict[str, list[int]], seed: int, scratch: Path
) -> Found:
    """Train the head, then both variants from it."""
    chosen = [files[i] for rows in parts.values() for i in rows]
    side.run(side.cache(scratch / "cache"), scratch / "out", sorted(chosen, key=lambda file: file[1]), 1)
    stored = Activations(scratch / "out")
    x_vnd = {name: stored.all_views([files[i][1] for i in rows]) for name, rows in parts.items()}
    y = {name: y_n[rows] for name, rows in parts.items()}
    head = build_head(HeadSpec("linear", side.backbone.width, int(y_n.max()) + 1), derive_seed(seed, "head"))
    fit_standardiser(head, [x_vnd["train"][0]])
    rows, held = (in_memory(x_vnd[name], y[name]) for name in ("train", "valid"))
    target, run = numbered(y_n), unlogged(seed)
    train_head(head, rows, held, target, epochs=HEAD_EPOCHS, lr=3e-3, options=Options(), run=run)
    at = {name: [files[i] for i in rows] for name, rows in parts.items()}
    batch_source = from_images(
        TrainingImages(lambda epoch, row: side.images.augmented(*at["train"][row], epoch), y["train"]),
        (lambda row: side.images.base_view(*at["valid"][row]), len(at["valid"])),
        side.backbone.preprocessing,
        resolve_workers("auto"),
        CPU,
    )

    def tune(bn_freeze: bool) -> dict[str, float]:
        model = to_device(Classifier(copy.deepcopy(side.backbone.body), copy.deepcopy(head)), CPU)
        network = Network(model, side.backbone.groups, bn_freeze)
        fine_tune(
            network,
            [(UnfreezePhase("all", EPOCHS, LR, LR_RATIO), batch_source)],
            Labels(target, y["train"], y["valid"]),
            Options(batch_size=BATCH, label_smoothing=0.1),
            run,
        )
        batches = image_batches(
            range(len(at["test"])), lambda row: side.images.base_view(*at["test"][row]), side.backbone.preprocessing, 64, 2, CPU
        )
        return target.scores(collect_logits(model, batches), y["test"])

    return Found(target.scores(collect_logits(head, [x_vnd["test"][0]]), y["test"]), tune(True), tune(False))


def in_memory(x_vnd: torch.Tensor, y_n: torch.Tensor) -> ActivationDataset:
    """Wrap activations [v, n, d] and their classes as an ActivationDataset."""
    return ActivationDataset(lambda images, views: x_vnd[views, images], len(x_vnd), y_n)


def run_cell(data: Set, name: str, size: int, seeds: int) -> list[Found]:
    """Run all seeds of one backbone, data set and size."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        data.write(source)
        files = keyed(source)
        classes = sorted({Path(path).parts[0] for path, _ in files})
        y_n = torch.tensor([classes.index(Path(path).parts[0]) for path, _ in files])
        for seed in range(seeds):
            start = time.monotonic()
            side = set_up(source, name, size, "packaged", data.augmentation, seed)
            parts = divide(files, data.trains[0], seed)
            parts = {name: rows[: MOST.get(name)] for name, rows in parts.items()}
            (scratch := Path(folder, str(seed))).mkdir()
            found.append(one_seed(side, files, y_n, parts, seed, scratch))
            took = time.monotonic() - start
            print(f"{data.name}, {name}, {size} px, seed {seed}: {found[-1]} in {took:.0f} s", file=sys.stderr, flush=True)
    return found


def row(data: Set, backbone: str, size: int, found: list[Found]) -> str:
    """Format a cell as a line of the table."""

    def spread(values: list[float], form: str = ".4f") -> str:
        return f"{statistics.mean(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    head, frozen, moving = ([getattr(one, variant) for one in found] for variant in ("head", "frozen", "moving"))
    accuracy = [spread([one["accuracy"] for one in scored]) for scored in (head, frozen, moving)]
    paired = [difference(frozen, moving, key) for key in ("accuracy", "log_loss")]
    cells = [data.name, backbone.removeprefix("tf_efficientnet_"), str(size), *accuracy, *paired]
    return f"| {' | '.join(cells)} |"


def difference(a: list[dict[str, float]], b: list[dict[str, float]], key: str) -> str:
    """Format A minus B, paired by seed, with its interval."""
    values = [x[key] - y[key] for x, y in zip(a, b, strict=True)]
    low, high = interval(values)
    return f"{statistics.mean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bn_freeze", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    facts = {"seeds": seeds, "last": seeds - 1, "head": HEAD_EPOCHS, "epochs": EPOCHS, "train": 256, "lr": LR}
    print(INTRODUCTION.format(**facts, batch=BATCH, **MOST))
    print("\n| set | backbone | px | head alone | frozen | moving | frozen minus moving: accuracy | log-loss |")
    print("|---|---|---|---|---|---|---|---|")
    for data in SETS:
        for name in NAMES:
            for size in SIZES:
                print(row(data, name, size, run_cell(data, name, size, seeds)), flush=True)


if __name__ == "__main__":
    main()
