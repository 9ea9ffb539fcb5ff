"""The whole recipe against fastai's: `make bench`, or in its environment `python -m bench.recipe [--seeds 5]`.

Search a learning rate, train the head, unfreeze, search again, fine-tune, test with augmentation: both sides on the same
images and splits, with the same backbone and weights, fastai's head, the same batch size, epochs and number of test views,
in rotation, each in a fresh process; importing and building the network are apart on both sides. fastai: as its
documentation has it (`vision_learner`, `lr_find` with the valley rule, `fit_one_cycle`, `tta`), decoding and augmenting in
two workers. Ours: the stages of this project from link_data on, scan, checks, MLflow and report included, in two ways: the
whole network unfrozen on live images, and its late half from the cached map of the early one.
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
from pathlib import Path
from typing import Any

from bench.data_sets import divide, interval, write_textures
from bench.sides import keyed, said

NAME, SIZE, BATCH, HEAD_EPOCHS, EPOCHS, VIEWS = "tf_efficientnet_lite0", 128, 32, 5, 4, 4
SIDES = ("fastai", "whole", "tail")
Times = dict[str, float]


def write_set(folder: Path, seed: int, train: int) -> None:
    """Crops of photos and textures with a labels.csv that holds the splits."""
    write_textures(folder)
    files = keyed(folder)
    splits = {i: split for split, rows in divide(files, train, seed).items() for i in rows}
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows([files[i][0], files[i][0].split("/")[0], split] for i, split in sorted(splits.items()))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fastai(folder: Path, seed: int) -> Times:
    """Seconds of each step, and test accuracy."""
    import pandas as pd
    from fastai.vision.all import (
        CategoryBlock,
        ColReader,
        DataBlock,
        ImageBlock,
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
        item_tfms=Resize(SIZE),
        batch_tfms=[*aug_transforms(max_rotate=10, max_zoom=1.1, max_lighting=0.05, max_warp=0)],
    )
    data = block.dataloaders(learn, bs=BATCH, num_workers=2)
    learner = vision_learner(data, NAME, pretrained=False, normalize=False)
    weights = build_backbone(NAME, "packaged", SIZE).body.get_submodule("stages.model").state_dict()
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
        lr = timed("search unfrozen", learner.lr_find, show_plot=False).valley
        timed("fine-tune", learner.fit_one_cycle, EPOCHS, slice(lr / 100, lr), pct_start=0.3, div=5.0)
        times["tuned accuracy"] = accuracy(*timed("test", learner.tta, dl=test, n=VIEWS))
    times["all"] = sum(times[name] for name in ("search", "head", "search unfrozen", "fine-tune", "test"))
    return times


SETTINGS = {
    "data.source": "data/photos", "data.near_duplicates": "keep", "backbone.name": NAME, "backbone.image_size": str(SIZE),
    "backbone.crop_pct": "1.0", "precompute.views": str(VIEWS), "precompute.augment.flip": "true",
    "precompute.augment.lighting": "0.05", "train_head.head": "mlp", "train_head.epochs": str(HEAD_EPOCHS),
    "train_head.batch_size": str(BATCH), "fine_tune.epochs": str(EPOCHS), "fine_tune.batch_size": str(BATCH),
    "fine_tune.lr": "auto", "fine_tune.lr_ratio": "3",
}  # fmt: skip
TAIL = {"precompute.map_after": "early", "fine_tune.unfreeze_from": "late"}


def ours(folder: Path, seed: int, settings: dict[str, str]) -> Times:
    """Seconds of each stage, and test accuracy."""
    from headstart import tracking
    from headstart.core.params import set_params
    from headstart.core.stages import load_graph, run_stage

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        root = Path(scratch)
        for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
            shutil.copy(name, root)
        (root / "data").mkdir()
        (root / "data/photos").symlink_to(folder)
        params = set_params(root / "params.yaml", [f"{key}={value}" for key, value in (settings | {"seed": str(seed)}).items()])
        modules = {name: importlib.import_module(f"tasks.{name}") for name in load_graph(root, params)}
        tracking.store(root)  # a database is made once in a project's life
        import openvino  # noqa: F401

        times: Times = {}
        for stage in list(load_graph(root, params).values())[1:]:
            times[stage.name] = run_stage(stage, getattr(modules[stage.name], stage.name), root, params).seconds
        found = json.loads((root / "reports/metrics.json").read_text())
        epochs = json.loads((root / ".headstart/records/fine_tune.json").read_text())["summary"]
        times |= {"head accuracy": found["head"]["accuracy"], "tuned accuracy": found["fine_tuned_tta"]["accuracy"]}
        times |= {"head with TTA": found["head_tta"]["accuracy"], "training": epochs["training_seconds"]}
    times["all"] = sum(times[stage.name] for stage in list(load_graph(Path.cwd(), params).values())[1:])
    return times


def measure(side: str, folder: str, seed: int) -> Times:
    """One side in a fresh process."""
    command = [sys.executable, "-m", "bench.recipe", "--side", side, folder, str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr[-3000:])
    found: Times = json.loads(run.stdout.splitlines()[-1])
    print(f"seed {seed}, {side}: { ({name: round(value, 3) for name, value in found.items()}) }", file=sys.stderr, flush=True)
    return found


def one_side(side: str, folder: Path, seed: int) -> Times:
    """The child's work."""
    return fastai(folder, seed) if side == "fastai" else ours(folder, seed, SETTINGS | (TAIL if side == "tail" else {}))


def show(rounds: list[dict[str, Times]]) -> None:
    """The ratios and the accuracies."""

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
    for side, name in (("whole", "all layers"), ("tail", "late half")):
        ratio("search and head, precompute counted", head, side, lambda t: sum(t[stage] for stage in before))
        ratio("search and head without precompute", head, side, lambda t: t["find_lr"] + t["train_head"])
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
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, seed = arguments.side
        print(json.dumps(one_side(side, Path(folder), int(seed))))
        return
    rounds = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            write_set(Path(folder), seed, arguments.train)
            rounds.append({side: measure(side, folder, seed) for side in SIDES})
    print(f"{arguments.train} training images of 160 x 160, {NAME} at {SIZE} px, fastai's head, batches of {BATCH}: ", end="")
    print(f"{HEAD_EPOCHS} epochs frozen, {EPOCHS} unfrozen, {VIEWS} augmented test views.")
    print(f"{arguments.seeds} seeds; medians and ranges.\n")
    show(rounds)


if __name__ == "__main__":
    main()
