"""Measure what each step of the recipe adds: `python -m bench.steps > docs/recipe.md`.

Every row is a whole run of this project's stages with one thing changed. A seed has its own split, initial weights,
order and views, which all rows share, so that rows are compared in pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.data_sets import DIGITS, PHOTOS, Set, interval, write_digits, write_textures
from bench.recipe import TAIL, scratch_project, sized, smaller_first, write_labels

SETS = (
    Set("digits", 96, DIGITS, (256,), write_digits),
    Set("photos and textures", 128, PHOTOS, (256,), write_textures),
)
MOST = {"valid": 100, "test": 300}
COMMON = {
    "data.source": "data/photos", "data.near_duplicates": "keep", "backbone.crop_pct": "1.0", "precompute.views": "2",
    "fine_tune.lr": "1.0e-3", "fine_tune.lr_ratio": "10", "fine_tune.label_smoothing": "0",
}  # fmt: skip

INTRODUCTION = """\
# What each step of the recipe adds

`python -m bench.steps --seeds {seeds} > docs/recipe.md`. EfficientNet-lite0 with ImageNet weights; 256 training images, up to
100 for validation and 300 for the test; 20 epochs for the head, 6 for fine-tuning. A row that begins with … repeats the row
it is compared with and changes one thing. Parameters that no row names are those of params.yaml, except an `lr_ratio` of 10
and no label smoothing. Rows share each seed's split, initial weights, order and views. A log-loss below 0 is better."""


@dataclass(frozen=True)
class Step:
    """A row of the table.

    Args:
        says: what the step does.
        read: the model in metrics.json whose scores the row shows.
        changes: parameters besides the common ones.
        less: the row that this one is compared with.
    """

    says: str
    read: str
    changes: dict[str, str] = field(default_factory=dict)
    less: int = 0


NO_VIEWS = {"precompute.views": "0", "fine_tune.unfreeze_from": "head", "fine_tune.epochs": "1"}
HEAD = {"fine_tune.unfreeze_from": "head", "fine_tune.epochs": "1"}
STEPS = (
    Step("linear head on cached activations, no views, LR 3e-3", "head", NO_VIEWS | {"train_head.lr": "3.0e-3"}),
    Step("… LR by the range test", "head", NO_VIEWS, 0),
    Step("… 2 augmented views", "head", HEAD, 1),
    Step("… TTA", "head_tta", HEAD, 2),
    Step("fastai's head instead of the linear one", "head", HEAD | {"train_head.head": "mlp"}, 2),
    Step("late half unfrozen, from the cached map, LR 1e-3", "fine_tuned", TAIL, 2),
    Step("… LR by the second range test", "fine_tuned", TAIL | {"fine_tune.lr": "auto"}, 5),
    Step("all layers unfrozen, from the images, each earlier group at a tenth, LR 1e-3", "fine_tuned", {}, 5),
    Step("… LR by the second range test", "fine_tuned", {"fine_tune.lr": "auto"}, 7),
    Step("… all groups at one rate, LR 1e-3", "fine_tuned", {"fine_tune.lr_ratio": "1"}, 7),
    Step("… label smoothing 0.1", "fine_tuned", {"fine_tune.label_smoothing": "0.1"}, 7),
    Step("… the late half first, for 2 of the 6 epochs", "fine_tuned", {
        "fine_tune.gradual": "[{unfreeze_from: late, epochs: 2, lr: 1.0e-3}]", "fine_tune.epochs": "4"}, 7),
    Step("… TTA", "fine_tuned_tta", {}, 7),
    Step("… images of three quarters of the side for 5 of the 6 epochs", "fine_tuned", smaller_first(5), 7),
)  # fmt: skip


def run_seed(data: Set, seed: int, rows: list[int]) -> dict[int, dict[str, float]]:
    """Return the test scores by row."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, scratch_project(Path(folder)) as run:
        data.write(Path(folder))
        write_labels(Path(folder), seed, data.trains[0], MOST)
        augment = {f"precompute.augment.{key}": str(value).lower() for key, value in data.augmentation.__dict__.items()}
        for step in (STEPS[row] for row in rows):
            key = json.dumps(step.changes)
            if key not in found:
                start = time.monotonic()
                settings = sized(COMMON | augment | {"seed": str(seed)} | step.changes, data.size)
                found[key] = run(settings)[1]
                took = time.monotonic() - start
                print(f"{data.name}, seed {seed}, {step.says}: {took:.0f} s", file=sys.stderr, flush=True)
    return {row: found[json.dumps(STEPS[row].changes)][STEPS[row].read] for row in rows}


def table(rounds: list[dict[int, dict[str, float]]]) -> None:
    """Print a Markdown table with a row per step."""
    print("| | step | test accuracy, mean (range) | minus row | accuracy: mean (95 % paired interval) | log-loss |")
    print("|---|---|---|---|---|---|")
    for i in rounds[0]:
        step = STEPS[i]
        own = [one[i]["accuracy"] for one in rounds]
        compared = i > 0 and step.less in rounds[0]
        cells = [
            str(i),
            step.says,
            f"{statistics.mean(own):.4f} ({min(own):.4f}-{max(own):.4f})",
            str(step.less) if compared else "",
        ]
        for key in ("accuracy", "log_loss"):
            values = [one[i][key] - one[step.less][key] for one in rounds] if compared else [0.0, 0.0]
            low, high = interval(values)
            cells.append(f"{statistics.mean(values):+.4f} ({low:+.4f} to {high:+.4f})" if compared else "")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=range(len(STEPS)),
        help="only these rows; a row is compared if its counterpart is among them",
    )
    arguments = parser.parse_args()
    seeds, rows = arguments.seeds, sorted(arguments.rows)
    print(INTRODUCTION.format(seeds=seeds))
    for data in SETS:
        print(f"\n## {data.name.capitalize()}, {data.size} px\n")
        table([run_seed(data, seed, rows) for seed in range(seeds)])


if __name__ == "__main__":
    main()
