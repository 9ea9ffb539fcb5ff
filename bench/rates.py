"""Measure what fine-tuning adds to the trained head, by rate: `python -m bench.rates --seeds 5 > docs/rates.md`.

There are seven sets, from digits to pictures with hardly any signal. Each seed trains one head, and every setting fine-tunes
from it on the same pixels, views and order, as the `fine_tune` stage does: the head is epoch 0, and rates that spoil the
network are lowered.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from bench.data_sets import DIGITS, PHOTOS, divide, write_digits, write_textures
from bench.sides import keyed, numbered, unlogged
from headstart.core.files import sha256_bytes
from headstart.hardware import choose_precision
from headstart.images.preprocessing import Preprocessing, normalise
from headstart.images.transforms import Augmentation, augmented_view, resized
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.cuts import cut_body
from headstart.models.heads import Classifier, HeadSpec, build_head, fit_standardiser
from headstart.runtime import configure
from headstart.seeds import derive_seed, view_generator
from headstart.training.activation_dataset import ActivationDataset, endless
from headstart.training.batch_sources import BatchSource, TrainingImages, from_feature_maps, from_images
from headstart.training.fine_tune import Labels, Network, UnfreezePhase, fine_tune
from headstart.training.head import head_prepare, train_head
from headstart.training.lr_search import range_test, suggest
from headstart.training.options import Options
from headstart.training.validation import collect_logits

VIEWS = 2
CPU = torch.device("cpu")
STAMPS = Path("/usr/share/tuxpaint/stamps")  # real drawings: apt-get install tuxpaint-stamps-default
Splits = dict[str, tuple[torch.Tensor, torch.Tensor]]  # pixels [n, 3, s, s] uint8, classes [n]


@dataclass(frozen=True)
class Setting:
    """The settings of a fine-tuning; the defaults are those of params.yaml."""

    lr: float = 3e-4
    lr_ratio: float = 1.0
    smoothing: float = 0.1

    def says(self) -> str:
        """Describe the setting in words."""
        return f"{self.lr:.2g}, each earlier group's divided by {self.lr_ratio:g}, smoothing {self.smoothing:g}"


@dataclass(frozen=True)
class Task:
    """A data set and what trains on it."""

    name: str
    size: int
    make: Callable[[int, int], Splits]
    augmentation: Augmentation = PHOTOS
    batch_size: int = 32
    unfreeze_from: str = "all"
    head: str = "linear"
    epochs: int = 6


@dataclass(frozen=True)
class Ready:
    """The trained head and the inputs, which all settings share."""

    task: Task
    seed: int
    backbone: Backbone
    head: nn.Module
    batch_source: BatchSource
    y_train: torch.Tensor
    y_valid: torch.Tensor
    y_test: torch.Tensor
    test: list[torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """The result of a fine-tuning: test accuracies of head and network, the epoch kept (0: the head), the rates' scale."""

    head: float
    accuracy: float
    epoch: int
    scale: float


def from_folder(write: Callable[[Path], None], train: int) -> Callable[[int, int], Splits]:
    """Return a maker of a set of `bench.data_sets`, with at most 100 images to validate and 250 to test."""

    def make(size: int, seed: int) -> Splits:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder)
            files = keyed(folder)
            names = sorted({path.split("/")[0] for path, _ in files})
            most = {"train": train, "valid": 100 if train < 1000 else 150, "test": 250}
            chosen = {split: rows[: most[split]] for split, rows in divide(files, train, seed).items()}
            return {
                split: (
                    torch.stack([sized(Image.open(folder / files[i][0]), size) for i in rows]),
                    torch.tensor([names.index(files[i][0].split("/")[0]) for i in rows]),
                )
                for split, rows in chosen.items()
            }

    return make


def sized(picture: Image.Image, size: int) -> torch.Tensor:
    """Return a picture as [3, s, s] uint8, padded to a square; padding and transparent pixels are white."""
    shape = (max(picture.size),) * 2
    square = Image.new("RGBA", shape, "white")
    seen = picture.convert("RGBA")
    square.alpha_composite(seen, tuple((shape[0] - side) // 2 for side in seen.size))  # type: ignore[arg-type]
    return resized(np.array(square.convert("RGB")), Preprocessing(size, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3))  # type: ignore[arg-type]


def shared_out(pixels: torch.Tensor, y: torch.Tensor, counts: dict[str, int]) -> Splits:
    """Assign `counts[split]` images of each class to each split, in their order."""
    found: dict[str, list[int]] = {split: [] for split in counts}
    for label in y.unique().tolist():
        rows = iter(torch.nonzero(y == label).flatten().tolist())
        for split, count in counts.items():
            found[split] += [row for _, row in zip(range(count), rows, strict=False)]
    return {split: (pixels[rows], y[rows]) for split, rows in found.items()}


def few(size: int, seed: int) -> Splits:
    """Make 13 classes of 8 crops of photos and textures (some 20 steps in all). Training and test crops share no pixel."""
    from skimage import data

    names = "astronaut brick camera cat coffee grass gravel hubble_deep_field immunohistochemistry rocket coins moon page"
    rng, splits = np.random.default_rng(seed), {}
    pictures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names.split()]
    for split, each in {"train": 8, "valid": 3, "test": 15}.items():
        crops, y = [], []
        for label, picture in enumerate(pictures):
            middle, height = picture.width // 2, min(picture.height, 120)
            low, high = (0, middle - height) if split == "train" else (middle, picture.width - height)
            for _ in range(each):
                left, top = int(rng.integers(low, max(low, high) + 1)), int(rng.integers(0, picture.height - height + 1))
                crops.append(sized(picture.crop((left, top, left + height, top + height)), size))
                y.append(label)
        splits[split] = torch.stack(crops), torch.tensor(y)
    return splits


@dataclass(frozen=True)
class Shapes:
    """A set of drawings. Shapes and colours make a class; its images rotate, move and tint them a little."""

    classes: int
    counts: dict[str, int]

    def __call__(self, size: int, seed: int) -> Splits:
        return shared_out(*drawings(self.classes, sum(self.counts.values()), size, seed), self.counts)


def drawings(classes: int, each: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels and classes of `Shapes`."""
    pixels, y = [], []
    for label in range(classes):
        own = np.random.default_rng([1, label])
        shapes = own.uniform(-1, 1, (3, 5, 2)) * 0.45 + own.uniform(-1, 1, (3, 1, 2)) * 0.3
        colours, back = own.uniform(0, 255, (3, 3)), own.uniform(0, 255, 3)
        rng = np.random.default_rng([2, seed, label])
        for _ in range(each):
            angle, zoom, moved = rng.uniform(-0.6, 0.6), rng.uniform(0.7, 1.1), rng.uniform(-0.15, 0.15, 2)
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * zoom
            tint = rng.uniform(-60, 60, 3)
            picture = Image.new("RGB", (96, 96), tuple(np.clip(back + tint, 0, 255).astype(int)))
            draw = ImageDraw.Draw(picture)
            for shape, colour in zip(shapes, colours, strict=True):
                corners = ((shape + rng.normal(0, 0.08, shape.shape)) @ turn + moved + 0.5) * 96
                draw.polygon([tuple(corner) for corner in corners], fill=tuple(np.clip(colour + tint, 0, 255).astype(int)))
            pixels.append(sized(picture, size))
            y.append(label)
    return torch.stack(pixels), torch.tensor(y)


def weak(size: int, seed: int, strength: float = 14.0) -> Splits:
    """Make noise that contains a faint pattern of its class."""
    rng = np.random.default_rng([3, seed])
    patterns = np.random.default_rng(3).normal(0, 1, (10, 3, 8, 8)).repeat(size // 8, 2).repeat(size // 8, 3)
    splits = {}
    for split, count in {"train": 1024, "valid": 200, "test": 300}.items():
        y = rng.integers(0, 10, count)
        noise = rng.normal(128, 50, (count, 3, size, size))
        pixels = torch.from_numpy(np.clip(noise + strength * patterns[y], 0, 255).astype(np.uint8))
        splits[split] = pixels, torch.from_numpy(y)
    return splits


def stamps(size: int, seed: int) -> Splits:
    """Read Tux Paint's drawings, by subject: 70 % of each class train, 10 % validate and 20 % test."""
    files = sorted(STAMPS.rglob("*.png"))
    kept = [path for path in files if not path.stem.endswith("_mirror") and not path.stem.endswith("_flip")]
    subjects = [path.relative_to(STAMPS).parts[0] for path in kept]
    names = sorted({one for one in subjects if subjects.count(one) >= 5})
    chosen: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    for name in names:
        own = [path for path, one in zip(kept, subjects, strict=True) if one == name][:60]
        own.sort(key=lambda path: sha256_bytes(f"{seed} {path}".encode()))
        test, valid = max(1, round(0.2 * len(own))), max(1, round(0.1 * len(own)))
        chosen["test"] += own[:test]
        chosen["valid"] += own[test : test + valid]
        chosen["train"] += own[test + valid :]
    return {
        split: (
            torch.stack([sized(Image.open(path), size) for path in paths]),
            torch.tensor([names.index(path.relative_to(STAMPS).parts[0]) for path in paths]),
        )
        for split, paths in chosen.items()
    }


TASKS = {
    "digits": Task("digits, 256 to train", 96, from_folder(write_digits, 256), DIGITS),
    "photos": Task("photos and textures, 256 to train", 64, from_folder(write_textures, 256)),
    "few": Task("13 classes of 8 images", 64, few),
    "shapes": Task("13 classes of 6 drawings", 96, Shapes(13, {"train": 6, "valid": 3, "test": 12})),
    "many": Task("400 classes of 3 drawings", 48, Shapes(400, {"train": 3, "valid": 1, "test": 1})),
    "weak": Task("10 classes, weak signal, 1,024 to train, late half", 32, weak, batch_size=256, unfreeze_from="late"),
    "stamps": Task("drawings of 16 subjects", 64, stamps),
}


def prepare(task: Task, seed: int) -> Ready:
    """Return the inputs and the trained head of a seed."""
    backbone = build_backbone("tf_efficientnet_lite0", "packaged", task.size, crop_pct=1.0)
    splits = task.make(task.size, seed)
    y = {split: labels for split, (_, labels) in splits.items()}
    pixels = {split: images for split, (images, _) in splits.items()}
    views = torch.stack([pixels["train"], *(augmented(task, seed, pixels["train"], "view", v + 1) for v in range(VIEWS))])
    activations = torch.stack([run(backbone.body, view, backbone.preprocessing) for view in views])
    rows = rows_of(activations, y["train"])
    valid = rows_of(run(backbone.body, pixels["valid"], backbone.preprocessing)[None], y["valid"])
    head = trained_head(task, seed, rows, valid, backbone.width, int(y["train"].max()) + 1)
    if task.unfreeze_from == "all":
        batch_source = live(task, seed, backbone.preprocessing, splits)
        test = [normalise(part, backbone.preprocessing) for part in pixels["test"].split(64)]
    else:
        front = cut_body(backbone.body, backbone.groups, "early")[0]
        maps = torch.stack([run(front, view, backbone.preprocessing) for view in views])
        held = {split: run(front, pixels[split], backbone.preprocessing) for split in ("valid", "test")}
        batch_source = from_feature_maps("early", rows_of(maps, y["train"]), rows_of(held["valid"][None], y["valid"]), CPU)
        test = list(held["test"].contiguous(memory_format=torch.channels_last).split(64))
    return Ready(task, seed, backbone, head, batch_source, y["train"], y["valid"], y["test"], test)


def augmented(task: Task, seed: int, pixels: torch.Tensor, kind: str, number: int) -> torch.Tensor:
    """Return an augmented view of every image."""
    shown = Preprocessing(task.size, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    generators = (view_generator(seed, kind, str(row), number) for row in range(len(pixels)))
    return torch.stack([augmented_view(x, shown, task.augmentation, rng) for x, rng in zip(pixels, generators, strict=True)])


@torch.inference_mode()
def run(part: nn.Module, pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Run a frozen part of a network on images."""
    return torch.cat([part(normalise(x, preprocessing)) for x in pixels.split(64)]).clone()


def rows_of(values: torch.Tensor, y: torch.Tensor) -> ActivationDataset:
    """Wrap activations or maps [v, n, ...] as an ActivationDataset."""
    return ActivationDataset(lambda images, views: values[views, images], len(values), y)


def trained_head(
    task: Task, seed: int, rows: ActivationDataset, valid: ActivationDataset, width: int, classes: int
) -> nn.Module:
    """Train a head as the pipeline does, at the rate that the range test finds."""
    options, target = Options(), numbered(rows.y)

    def new(own: int) -> nn.Module:
        head = build_head(HeadSpec(task.head, width, classes), own)
        fit_standardiser(head, rows.base_views())
        return head

    def curve(number: int) -> Any:
        own = derive_seed(seed, "find_lr", number)
        loss, batches = target.loss(options.loss_rule, rows.y), endless(rows, options, own)
        return range_test(
            new(own), head_prepare(options, 3e-3), batches, loss=loss, lr_min=1e-7, lr_max=10, steps=100, seed=own
        )

    lr = suggest([curve(number) for number in range(5)], 3e-3).lr
    head = new(derive_seed(seed, "head"))
    train_head(head, rows, valid, target, epochs=20, lr=lr, options=options, run=unlogged(seed))
    return head


def live(task: Task, seed: int, preprocessing: Preprocessing, splits: Splits) -> BatchSource:
    """Return a batch source of images in memory; it makes an epoch's views once for all settings."""
    (train, y_train), (valid, _) = splits["train"], splits["valid"]
    kept: dict[int, torch.Tensor] = {}

    def load(epoch: int, row: int) -> torch.Tensor:
        if epoch not in kept:
            kept[epoch] = augmented(task, seed, train, "epoch", epoch)
        return kept[epoch][row]

    return from_images(TrainingImages(load, y_train), (lambda row: valid[row], len(valid)), preprocessing, 1, CPU)


def network_of(ready: Ready) -> Network:
    """Return the starting network."""
    model = copy.deepcopy(Classifier(ready.backbone.body, ready.head))
    return Network(model, ready.backbone.groups, True, choose_precision("auto", CPU)[0])


def tune(ready: Ready, setting: Setting) -> Outcome:
    """Fine-tune from the trained head, as the stage does."""
    start, task, network, target = time.monotonic(), ready.task, network_of(ready), numbered(ready.y_train)

    def accuracy() -> float:
        return target.scores(collect_logits(network.runner(ready.batch_source), ready.test), ready.y_test)["accuracy"]

    head = accuracy()
    history = fine_tune(
        network,
        [(UnfreezePhase(task.unfreeze_from, task.epochs, setting.lr, setting.lr_ratio), ready.batch_source)],
        Labels(target, ready.y_train, ready.y_valid),
        Options(batch_size=task.batch_size, label_smoothing=setting.smoothing),
        unlogged(ready.seed),
    )
    found = Outcome(head, accuracy(), int(history.best_epoch()["epoch"]), history.scale)
    name, seconds = f"{task.name}, seed {ready.seed}, {setting.says()}", time.monotonic() - start
    outcome = f"{head:.3f} -> {found.accuracy:.3f}, epoch {found.epoch}, rates x {found.scale:.2g}"
    print(f"{name}: {outcome}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


SETTINGS = (Setting(), Setting(lr=1e-3), Setting(lr=1e-3, lr_ratio=10, smoothing=0))


def table(task: Task, seeds: Sequence[int]) -> None:
    """Print a Markdown table with a row per setting; test accuracy, mean (range)."""
    rows: list[list[Outcome]] = [[] for _ in SETTINGS]
    for seed in seeds:
        ready = prepare(task, seed)
        for row, setting in zip(rows, SETTINGS, strict=True):
            row.append(tune(ready, setting))
    print(f"\n## {task.name.capitalize()}, {task.size} px, batches of {task.batch_size}\n")
    print("| setting | test accuracy | minus head: mean, worst seed | head kept | rates lowered |\n|---|---|---|---|---|")
    print(f"| head alone | {spread([one.head for one in rows[0]])} | | | |")
    for row, setting in zip(rows, SETTINGS, strict=True):
        gains = [one.accuracy - one.head for one in row]
        counts = [sum(one.epoch == 0 for one in row), sum(one.scale < 1 for one in row)]
        cells = [setting.says(), spread([one.accuracy for one in row]), f"{statistics.mean(gains):+.3f}, {min(gains):+.3f}"]
        print(f"| {' | '.join([*cells, *(f'{count} of {len(row)}' for count in counts)])} |", flush=True)


def spread(values: Sequence[float]) -> str:
    """Format mean and range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rates", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    configure("auto", "cpu")
    print("# What fine-tuning adds to the trained head, by rate\n")
    print(f"`python -m bench.rates --seeds {arguments.seeds} > docs/rates.md`. EfficientNet-lite0 with ImageNet weights,")
    print("2 augmented views, 6 epochs; the head is linear and trains at the range test's rate. Rows share each seed's split,")
    print("head, order and views. Test accuracy, mean (range).")
    for name in arguments.sets:
        if name == "stamps" and not STAMPS.is_dir():
            print(
                f"{STAMPS} is missing, so its set is skipped; to do: apt-get install tuxpaint-stamps-default", file=sys.stderr
            )
            continue
        table(TASKS[name], range(arguments.seeds))


if __name__ == "__main__":
    main()
