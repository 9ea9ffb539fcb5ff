"""What the flow costs beside its stages: `python -m bench.overhead`.

In a scratch project with a small network on the digits: Prefect's server is started first by an empty flow;
then the pipeline runs from nothing, then with one parameter changed, then with nothing changed. Overhead is
the flow's total minus the stages' own seconds (imports of torch and MLflow included in them):
Prefect's tasks, DVC's status and commits, MLflow's record.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = (
    "backbone.name=test_efficientnet",
    "backbone.weights=random",
    "backbone.image_size=32",
    "precompute.views=0",
    "find_lr.seeds=1",
    "train_head.epochs=1",
    "fine_tune.epochs=1",
)
INSIDE = """
import logging, time, sys
start = time.monotonic()
from flows.pipeline import run_here
from headstart.core.params import set_params
from prefect import flow
from pathlib import Path
@flow
def empty(): pass
print(f"{'imports of flow and Prefect':<44}{time.monotonic() - start:>8.1f} s")
start = time.monotonic()
empty()
print(f"{'Prefect server, started':<44}{time.monotonic() - start:>8.1f} s")
cases = (("from nothing", "seed=0"), ("one parameter changed", "evaluate.tta=blend"), ("nothing changed", "seed=0"))
for what, change in cases:
    set_params(Path("params.yaml"), [change])
    start = time.monotonic()
    outcomes = run_here([])
    total, own = time.monotonic() - start, sum(outcome.seconds for outcome in outcomes)
    print(f"{what:<24}flow {total:6.1f}  stages {own:6.1f}  overhead {total - own:6.1f} s")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch, "project")
        files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
        for name in files:
            if not name.startswith(("tests/", "docs/")) and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, project / name)
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
        from headstart.core.params import set_params

        set_params(project / "params.yaml", SETTINGS)
        subprocess.run([sys.executable, "-c", INSIDE], cwd=project, check=True)


if __name__ == "__main__":
    main()
