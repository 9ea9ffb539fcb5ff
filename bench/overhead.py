"""Measure what the flow costs beside its stages: `python -m bench.overhead`.

It uses scratch projects with a small network on the digits, each in a fresh process. First an empty flow starts
Prefect's server. Then the pipeline runs from nothing, with one parameter changed, and with nothing changed. Overhead
is the flow's total minus the stages' own seconds (including their imports of torch): DVC's status and commits,
MLflow's record, and the rest, which is Prefect's.

The scratch projects are deleted only at the end: ext4 is slow to create files for minutes after a deletion of
thousands, and DVC's first commit creates 1,797.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = (
    "backbone.name=test_efficientnet",
    "backbone.weights=random",
    "backbone.image_size=32",
    "precompute.views=0",
    "find_lr.seeds=1",
    "train_head.epochs=1",
    "fine_tune.epochs=1",
)
CASES = (("from nothing", "seed=0"), ("one parameter changed", "evaluate.tta=blend"), ("nothing changed", "seed=0"))
COLUMNS = ("total", "stages", "overhead", "dvc", "mlflow", "rest")


def measure() -> dict[str, dict[str, float]]:
    """Return the seconds of each case in the project in the current folder."""
    from flows import pipeline  # isort: split
    import prefect  # after flows, which sets what Prefect reads when it is imported

    from flows.param_edits import set_params
    from headstart.tracking import record
    from headstart.versioning import Workspace

    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, tool: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            start = time.monotonic()
            try:
                return original(*arguments, **options)
            finally:
                spent[tool] = spent.get(tool, 0.0) + time.monotonic() - start

        setattr(owner, name, wrapper)

    def empty() -> None:
        pass

    for name in ("is_fresh", "restore", "commit"):
        timed(Workspace, name, "dvc")
    timed(record, "record_pipeline", "mlflow")
    start = time.monotonic()
    prefect.flow(empty)()
    seconds = {"Prefect's server, started": {"total": time.monotonic() - start}}
    for what, change in CASES:
        set_params(Path("params.yaml"), [change])
        spent.update(dvc=0.0, mlflow=0.0)
        start = time.monotonic()
        outcomes = pipeline.run_here([])
        total, stages = time.monotonic() - start, sum(outcome.seconds for outcome in outcomes)
        rest = total - stages - sum(spent.values())
        seconds[what] = {"total": total, "stages": stages, "overhead": total - stages, **spent, "rest": rest}
    return seconds


def scratch_project(folder: Path) -> Path:
    """Copy this repository's tracked files into a project with a small network."""
    from flows.param_edits import set_params

    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    set_params(folder / "params.yaml", SETTINGS)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(measure()))
        return
    with tempfile.TemporaryDirectory() as scratch:
        runs = []
        for number in range(arguments.repeats):
            project = scratch_project(Path(scratch, str(number)))
            command = [sys.executable, "-m", "bench.overhead", "--inside"]
            runs.append(json.loads(subprocess.run(command, cwd=project, check=True, stdout=subprocess.PIPE).stdout))
        print(f"{'seconds, medians of ' + str(len(runs)):<28}" + "".join(f"{column:>10}" for column in COLUMNS))
        for what in runs[0]:
            values = [statistics.median(run[what].get(column, 0.0) for run in runs) for column in COLUMNS]
            print(f"{what:<28}" + "".join(f"{value:>10.1f}" for value in values if value or what in dict(CASES)))


if __name__ == "__main__":
    main()
