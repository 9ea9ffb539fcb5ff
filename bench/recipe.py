"""Compare the whole recipe with fastai's: `make bench`, or in its environment `python -m bench.recipe [--seeds 5]`.

The recipe: search a learning rate, train the head, unfreeze, search again, fine-tune, test with augmentation. Both sides
use the same images, splits, backbone, weights, batch size, epochs, number of test views, and fastai's head. They rotate,
each in a fresh process; importing and building the network do not count. fastai follows its documentation
(`vision_learner`, `lr_find` with the valley rule, `fit_one_cycle`, `tta`) and decodes and augments in two workers. Ours are
the stages of this project from link_data on, including scan, checks, MLflow and report, in five variants: the whole network
unfrozen on images, or its late half on cached maps of the early half; each with a second search, and at a given rate
without one; and the whole network at that rate, on smaller images before the last epoch.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.data_sets import divide, interval, write_textures
from bench.sides import keyed, said

NAME, BATCH, HEAD_EPOCHS, EPOCHS, VIEWS = "tf_efficientnet_lite0", 32, 5, 4, 2
Times = dict[str, float]


def write_labels(folder: Path, seed: int, train: int, most: dict[str, int] | None = None) -> None:
    """Write a labels.csv beside class folders that holds a seed's splits.

    Args:
        most: the most images of each split; the others are deleted.
    """
    files = keyed(folder)
    divided = divide(files, train, seed)
    splits = {i: split for split, rows in divided.items() for i in rows[: (most or {}).get(split)]}
    for i in set(range(len(files))) - set(splits):
        (folder / files[i][0]).unlink()
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows([files[i][0], files[i][0].split("/")[0], split] for i, split in sorted(splits.items()))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fastai(folder: Path, seed: int, size: int) -> Times:
    """Return the seconds of each step, and test accuracies."""
    import pandas as pd
    import torch._dynamo  # noqa: F401
    from fastai.vision.all import (
        CategoryBlock,
        ColReader,
        DataBlock,
        ImageBlock,
        Normalize,
        Resize,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    from headstart.models.backbones import build_backbone

    set_seed(seed, reproducible=True)
    rows = pd.DataFrame(rows_of(folder))
    learn = rows[rows["split"] != "test"].reset_index(drop=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path", pref=folder),
        get_y=ColReader("label"),
        splitter=lambda table: (
            table.index[table["split"] == "train"].tolist(),
            table.index[table["split"] == "valid"].tolist(),
        ),
        item_tfms=Resize(size),
        batch_tfms=[
            *aug_transforms(max_rotate=10, max_zoom=1.1, max_lighting=0.05, max_warp=0),
            Normalize.from_stats([0.5] * 3, [0.5] * 3),  # as these weights expect
        ],
    )
    data = block.dataloaders(learn, bs=BATCH, num_workers=2)
    learner = vision_learner(data, NAME, pretrained=False, normalize=False)
    weights = build_backbone(NAME, "packaged", size).body.get_submodule("stages.model").state_dict()
    missing = learner.model[0].model.load_state_dict(weights, strict=False).missing_keys
    assert not missing, missing
    learner.freeze()
    test = data.test_dl(rows[rows["split"] == "test"], with_labels=True)
    times: Times = {}

    def timed(name: str, function: Any, *arguments: Any, **options: Any) -> Any:
        start = time.monotonic()
        result = function(*arguments, **options)
        times[name] = time.monotonic() - start
        return result

    def accuracy(p: Any, y: Any) -> float:
        return float((p.argmax(1) == y).float().mean())

    with learner.no_bar(), learner.no_logging():
        lr = timed("search", learner.lr_find, show_plot=False).valley
        timed("head", learner.fit_one_cycle, HEAD_EPOCHS, lr)
        times["head accuracy"] = accuracy(*learner.get_preds(dl=test))
        learner.unfreeze()
        start = time.monotonic()
        try:
            lr = learner.lr_find(show_plot=False).valley
        except IndexError:  # the loss quadrupled within ten steps and left the rules nothing: half the rate, as in fine_tune
            lr, times["searches failed"] = lr / 2, 1.0
        times["search unfrozen"] = time.monotonic() - start
        timed("fine-tune", learner.fit_one_cycle, EPOCHS, slice(lr / 100, lr), pct_start=0.3, div=5.0)
        times["tuned accuracy"] = accuracy(*timed("test", learner.tta, dl=test, n=VIEWS))
    times["all"] = sum(times[name] for name in ("search", "head", "search unfrozen", "fine-tune", "test"))
    return times


SETTINGS = {
    "data.source": "data/photos", "data.near_duplicates": "keep", "backbone.name": NAME,
    "backbone.crop_pct": "1.0", "precompute.views": str(VIEWS), "precompute.augment.flip": "true",
    "precompute.augment.lighting": "0.05", "train_head.head": "mlp", "train_head.epochs": str(HEAD_EPOCHS),
    "train_head.batch_size": str(BATCH), "fine_tune.epochs": str(EPOCHS), "fine_tune.batch_size": str(BATCH),
    "fine_tune.lr": "auto", "fine_tune.lr_ratio": "10", "fine_tune.label_smoothing": "0",
}  # fmt: skip
TAIL = {"precompute.cache_map_after": "early", "fine_tune.unfreeze_from": "late"}
GIVEN = {"fine_tune.lr": "1.0e-3"}


def smaller_first(epochs: int) -> dict[str, str]:
    """Return settings for `epochs` epochs on images of three quarters of the side (see `sized`) and one on the full side."""
    phase = f"{{unfreeze_from: all, epochs: {epochs}, lr: 1.0e-3, image_size: SMALLER}}"
    return {"fine_tune.gradual": f"[{phase}]", "fine_tune.epochs": "1"}


def sized(settings: dict[str, str], size: int) -> dict[str, str]:
    """Return settings for images of a size."""
    side = {"backbone.image_size": str(size)}
    return side | {key: value.replace("SMALLER", str(size * 3 // 4)) for key, value in settings.items()}


WAYS: dict[str, tuple[str, dict[str, str]]] = {  # our variants: a description, and settings besides the common ones
    "whole": ("all layers", {}),
    "tail": ("late half", TAIL),
    "given": ("all layers, rate given", GIVEN),
    "tail given": ("late half, rate given", TAIL | GIVEN),
    "smaller first": ("all layers, rate given, smaller images first", GIVEN | smaller_first(EPOCHS - 1)),
}
SIDES = ("fastai", *WAYS)


Run = Callable[[dict[str, str]], tuple[Times, dict[str, Any]]]


@contextmanager
def scratch_project(folder: Path) -> Iterator[Run]:
    """Make a project whose images are in `folder`; yield a function that runs all stages but fetch_data with settings.

    That function returns each stage's seconds (and those of training within fine_tune), and metrics.json.
    """
    from flows.param_edits import set_params
    from headstart.core.graph import load_graph
    from headstart.core.stages import run_stage
    from headstart.tracking.store import store

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        root = Path(scratch)
        for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
            shutil.copy(name, root)
        (root / "data").mkdir()
        (root / "data/photos").symlink_to(folder)
        store(root)  # a project makes its database only once

        def run(settings: dict[str, str]) -> tuple[Times, dict[str, Any]]:
            shutil.copy("params.yaml", root)
            params = set_params(root / "params.yaml", [f"{key}={value}" for key, value in settings.items()])
            stages = list(load_graph(root, params).values())[1:]
            modules = [importlib.import_module(f"tasks.{stage.name}") for stage in stages]  # importing does not count
            records = [
                run_stage(stage, getattr(module, stage.name), root, params)
                for stage, module in zip(stages, modules, strict=True)
            ]
            times = {record.stage: record.seconds for record in records}
            times |= {"all": sum(times.values()), "training": float(records[-2].summary["training_seconds"])}
            return times, json.loads((root / "reports/metrics.json").read_text())

        yield run


def ours(folder: Path, seed: int, size: int, settings: dict[str, str]) -> Times:
    """Return the seconds of each stage, and test accuracies."""
    import torch._dynamo  # noqa: F401 (the first optimizer of a process imports it, 1.5 s)

    from headstart.activations.engine import openvino_core

    openvino_core()

    with scratch_project(folder) as run:
        times, found = run(sized(settings, size) | {"seed": str(seed)})
    return times | {
        "head accuracy": found["head"]["accuracy"],
        "head with TTA": found["head_tta"]["accuracy"],
        "tuned accuracy": found["fine_tuned_tta"]["accuracy"],
    }


def measure(side: str, folder: str, seed: int, size: int) -> Times:
    """Run one side in a fresh process."""
    command = [sys.executable, "-m", "bench.recipe", "--side", side, folder, str(seed), str(size)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr[-3000:])
    found: Times = json.loads(run.stdout.splitlines()[-1])
    print(f"seed {seed}, {side}: { ({name: round(value, 3) for name, value in found.items()}) }", file=sys.stderr, flush=True)
    return found


def one_side(side: str, folder: Path, seed: int, size: int) -> Times:
    """Run one side in this process, the child's."""
    return fastai(folder, seed, size) if side == "fastai" else ours(folder, seed, size, SETTINGS | WAYS[side][1])


def show(rounds: list[dict[str, Times]]) -> None:
    """Print the ratios and the accuracies."""

    def ratio(title: str, peer: Any, side: str, own: Any) -> None:
        values = [peer(one["fastai"]) / own(one[side]) for one in rounds]
        sides = said([peer(one["fastai"]) for one in rounds]), said([own(one[side]) for one in rounds])
        print(f"| {title} | {sides[0]} | {sides[1]} | {said(values, '.1f')} |")

    def head(t: Times) -> float:
        return t["search"] + t["head"]

    def unfrozen(t: Times) -> float:
        return t["search unfrozen"] + t["fine-tune"]

    print("| seconds | fastai | ours | ratio |\n|---|---|---|---|")
    before = ("link_data", "precompute", "find_lr", "train_head")
    for side, (name, _) in WAYS.items():
        ratio(f"search and head, with precompute, {name}", head, side, lambda t: sum(t[stage] for stage in before))
        ratio(f"search and head without precompute, {name}", head, side, lambda t: t["find_lr"] + t["train_head"])
        ratio(f"an unfrozen epoch, {name}", lambda t: t["fine-tune"] / EPOCHS, side, lambda t: t["training"] / EPOCHS)
        ratio(
            f"second search and fine-tuning, {name}",
            lambda t: t["search unfrozen"] + t["fine-tune"],
            side,
            lambda t: t["fine_tune"],
        )
        ratio(f"whole recipe, {name}", lambda t: t["all"], side, lambda t: t["all"])
    print("\n| test accuracy | mean (range) | minus fastai's: mean (95 % paired interval) |\n|---|---|---|")
    for key, peer in (
        ("head accuracy", "head accuracy"),
        ("head with TTA", "head accuracy"),
        ("tuned accuracy", "tuned accuracy"),
    ):
        for side in SIDES:
            if key not in rounds[0][side]:
                continue
            values = [one[side][key] for one in rounds]
            differences = [one[side][key] - one["fastai"][peer] for one in rounds]
            low, high = interval(differences) if len(rounds) > 1 and side != "fastai" else (0.0, 0.0)
            against = "" if side == "fastai" else f"{statistics.mean(differences):+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"| {key}, {side} | {statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f}) | {against} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", type=int, default=256, help="training images")
    parser.add_argument("--size", type=int, default=224, help="input side, pixels")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, seed, size = arguments.side
        print(json.dumps(one_side(side, Path(folder), int(seed), int(size))))
        return
    rounds = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            write_textures(Path(folder))
            write_labels(Path(folder), seed, arguments.train)
            rounds.append({side: measure(side, folder, seed, arguments.size) for side in SIDES})
    print(
        f"{arguments.train} training images of 160 x 160, {NAME} at {arguments.size} px, fastai's head, batches of {BATCH}: ",
        end="",
    )
    print(f"{HEAD_EPOCHS} epochs frozen, {EPOCHS} unfrozen, {VIEWS} augmented test views.")
    print(f"{arguments.seeds} seeds; medians and ranges.\n")
    show(rounds)


if __name__ == "__main__":
    main()
