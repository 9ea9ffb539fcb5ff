"""Measure the test accuracy of params.yaml over seeds: `python -m bench.seeds [--seeds 5]`.

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

from flows.param_edits import set_params
from headstart.core.command_line import command_line
from headstart.core.graph import load_graph
from headstart.core.stages import run_stage

KEYS = ("head", "head_tta", "fine_tuned", "fine_tuned_tta")


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
    count = parser.parse_args().seeds
    command_line()
    (scratch := Path(".headstart/tmp").resolve()).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
            shutil.copy(name, folder)
        runs = [run_seed(Path(folder), seed) for seed in range(count)]
    print(f"\n{'seed':<6}{'test':>6}" + "".join(f"{key:>16}" for key in KEYS))
    for seed, run in enumerate(runs):
        print(f"{seed:<6}{run['n_test']:>6}" + "".join(f"{run[key]['accuracy']:>16.4f}" for key in KEYS))
    columns = [[run[key]["accuracy"] for run in runs] for key in KEYS]
    print(f"{'mean':<12}" + "".join(f"{statistics.mean(column):>16.4f}" for column in columns))
    print(f"{'range':<12}" + "".join(f"{f'{min(c):.4f}-{max(c):.4f}':>16}" for c in columns))


if __name__ == "__main__":
    main()
