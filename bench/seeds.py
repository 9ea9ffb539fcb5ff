"""Measure test results over seeds: `python -m bench.seeds [--seeds 5] [--recipe NAME] [--set key=value …]`.

Without a recipe it measures params.yaml.
Each seed has its own split, initial weights and order. Stages run as in the pipeline, in a scratch project.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from flows.param_edits import edit_params, set_params
from headstart.core.command_line import command_line
from headstart.core.graph import load_graph
from headstart.core.stages import run_stage
from headstart.hardware import describe_processor
from headstart.targets.tables import METRICS

MODELS = ("head", "head_tta", "fine_tuned", "fine_tuned_tta", "boosting", "network")


def run_seed(root: Path, seed: int) -> dict[str, Any]:
    """Run one seed and return its metrics.json."""
    params = set_params(root / "params.yaml", [f"seed={seed}"])
    for stage in load_graph(root, params).values():
        module = importlib.import_module(f"tasks.{stage.name}")
        run_stage(stage, getattr(module, stage.name), root, params)
    metrics: dict[str, Any] = json.loads((root / "reports/metrics.json").read_text())
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.seeds", description="Measure the test accuracy of params.yaml over seeds."
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", help="of recipes/, merged into params.yaml first")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="then set these")
    options = parser.parse_args()
    command_line()
    (scratch := Path(".headstart/tmp").resolve()).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
            shutil.copy(name, folder)
        recipe = Path("recipes").resolve() / f"{options.recipe}.yaml" if options.recipe else None
        edit_params(Path(folder) / "params.yaml", options.set, recipe).make()
        runs = [run_seed(Path(folder), seed) for seed in range(options.seeds)]
        words = METRICS[json.loads((Path(folder) / "data/target.json").read_text())["kind"]]
    print(f"\n{describe_processor('cpu')}; test results of {options.seeds} seeds, mean (range)")
    for key in (key for key in MODELS if key in runs[0]):
        columns = {text: [run[key][metric] for run in runs] for metric, text in words.items() if metric in runs[0][key]}
        figures = (
            f"{text} {statistics.mean(found):.4f} ({min(found):.4f}-{max(found):.4f})" for text, found in columns.items()
        )
        print(f"{key:<16}" + "   ".join(figures))


if __name__ == "__main__":
    main()
