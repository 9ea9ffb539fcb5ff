"""The whole pipeline as one Prefect flow: `python -m flows.pipeline [--recipe NAME] [--set key=value …] [--force STAGE …]`.

The stages run in this process. DVC decides which of them are fresh, and records what they write.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.core.errors import InputError, guarded
from headstart.core.files import free_bytes, remove
from headstart.core.param_edits import edit_params
from headstart.core.params import Params, load_params
from headstart.core.stages import Stage, checkpoints, command_line, last_record, load_graph, run_stage
from headstart.data.tree import preflight
from headstart.versioning import Workspace, cache_folders, workspace
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows import PROJECT

logger = logging.getLogger("headstart")
MIN_FREE_BYTES = 300_000_000
FRESH, RESTORED, RAN = "fresh", "restored", "ran"


@dataclass(frozen=True)
class Outcome:
    """What became of one stage in this run: fresh, restored from DVC's cache, or ran, and in how many seconds."""

    stage: str
    how: str
    seconds: float
    summary: Mapping[str, Any]


def run_or_reuse(stage: Stage, space: Workspace, root: Path, params: Params, force: bool) -> Outcome:
    """Run one stage unless DVC knows its outs already; commit them.

    Raises:
        InputError: bad input, or code, params or inputs changed meanwhile.
    """
    if not force:
        how = FRESH if space.is_fresh(stage.name) else RESTORED if space.restore(stage.name) else None
        if how is not None:
            logger.info("%s: %s", stage.name, how)
            record = last_record(root, stage.name)
            return Outcome(stage.name, how, 0.0, record.summary if record else {})
    logger.info("%s: running", stage.name)
    start = time.monotonic()
    # torch and its like are imported by the first stage that needs them, and are its own time
    module = importlib.import_module(f"tasks.{stage.name}")
    record = run_stage(stage, getattr(module, stage.name), root, params)
    gc.collect()
    gc.freeze()  # what was imported stays: the collector need not walk it again (.5 s each time)
    seconds = time.monotonic() - start
    space.commit(stage.name)
    remove(checkpoints(root, stage.name))
    return Outcome(stage.name, RAN, seconds, record.summary)


Runner = Callable[[Stage, Workspace, Path, Params, bool], Outcome]


def execute(
    root: Path,
    params: Params,
    force: Sequence[str] = (),
    *,
    runner: Callable[[str], Runner] = lambda name: run_or_reuse,
    tags: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Every stage in order; then one MLflow run if anything ran.

    Args:
        force: stages to run even if fresh, or "all".
        runner: from a stage's name to what runs it, such as a Prefect task around `run_or_reuse`.
        tags: for the MLflow run.

    Raises:
        InputError: bad input; finished stages are kept.
    """
    outcomes = []
    with workspace(root) as space:
        for stage in load_graph(root, params).values():
            forced = "all" in force or stage.name in force
            outcomes.append(runner(stage.name)(stage, space, root, params, forced))
        if any(outcome.how != FRESH for outcome in outcomes):
            from headstart import tracking

            logger.info("recording the run in MLflow")
            summaries = {outcome.stage: outcome.summary for outcome in outcomes if outcome.how == RAN}
            tracking.record_pipeline(root, params, summaries, tags)
    return outcomes


def as_task(name: str) -> Runner:
    """`run_or_reuse` as the Prefect task of one stage."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)(run_or_reuse)


@flow(name="headstart", persist_result=False)
def headstart(force: list[str] | None = None) -> list[Outcome]:  # built-in types: Prefect resolves them by name
    """The pipeline of the project in the current folder; its stages run in the flow's own process."""
    params = load_params(PROJECT / "params.yaml")
    check_inputs(PROJECT, params, force or [])
    return execute(PROJECT, params, force or [], runner=as_task, tags={"prefect.flow_run": str(flow_run.id)})


def run_here(force: list[str]) -> list[Outcome]:
    """The flow in this process, now.

    Where Prefect starts a server for this process alone, there is nobody to hear the flow's heartbeats, and
    ending their thread would take a second.
    """
    alone = PREFECT_API_URL.value() is None
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if alone else {}):
        return headstart(force)


def check_inputs(root: Path, params: Params, force: Sequence[str]) -> None:
    """Refuse a `--force` that names no stage, a full disk, and a source folder that DVC would hang on or misread.

    Raises:
        InputError: naming it.
    """
    stages = list(load_graph(root, params))
    for name in force:
        if name not in (*stages, "all"):
            raise InputError(f"--force {name}: no such stage", wanted=f"one of: {', '.join(stages)}, all")
    free = free_bytes(root)
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"{root}: {free / 1e6:,.0f} MB free on this disk",
            wanted=f"{MIN_FREE_BYTES / 1e6:,.0f} MB or more (the outs, DVC's copies of them, and the records)",
            fix="free space: `make clean`, `dvc gc -w`, or another disk",
        )
    if root / params.data.source != root / "data" / params.data.builtin:
        preflight(
            root / params.data.source,
            follow_external_links=params.data.follow_external_links,
            trusted=functools.partial(cache_folders, root),
        )


def summary_text(root: Path, outcomes: list[Outcome], total: float) -> str:
    """The short summary a run ends with."""
    by_stage = {outcome.stage: outcome for outcome in outcomes}
    results = json.loads((root / "reports/metrics.json").read_text())
    found = json.loads((root / "reports/find_lr/lr.json").read_text())
    rate = by_stage["precompute"].summary.get("images_per_second")
    own = sum(outcome.seconds for outcome in outcomes)
    lines = ["", f"  {'stage':<12}{'':<10}{'seconds':>8}"]
    lines += [f"  {o.stage:<12}{o.how:<10}{o.seconds:>8.1f}" for o in outcomes]
    lines += [f"  {'all':<12}{'':<10}{total:>8.1f}   of which stages {own:.1f}", ""]
    if rate:
        when = "" if by_stage["precompute"].how == RAN else " (when they were computed)"
        lines.append(f"  activations     {rate:,.0f} images/s{when}")
    abstained = " (default: the search abstained)" if found["abstained"] else ""
    lines.append(f"  suggested LR    {found['lr']:.2g}{abstained}")
    lines.append(f"  test accuracy   of {results['n_test']:,} images")
    names = {
        "head": "frozen head",
        "head_tta": "frozen head, TTA",
        "fine_tuned": "fine-tuned",
        "fine_tuned_tta": "fine-tuned, TTA",
    }
    for key, name in names.items():
        lines.append(f"    {name:<17} {results[key]['accuracy']:.4f}   log-loss {results[key]['log_loss']:.4f}")
    lines += ["", "  report          reports/report.html", "  metrics         reports/metrics.json"]
    lines += ["  compare runs    make ui     (MLflow on http://127.0.0.1:5000, Prefect on http://127.0.0.1:4200)"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run the whole pipeline.")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="edit params.yaml first",
    )
    parser.add_argument(
        "--force",
        nargs="+",
        action="extend",
        default=[],
        metavar="STAGE",
        help="run STAGE even if it is fresh, or `all`",
    )
    parser.add_argument("--recipe", metavar="NAME", help="merge recipes/NAME.yaml into params.yaml first, before --set")
    arguments = parser.parse_args()
    start = time.monotonic()
    recipe = PROJECT / "recipes" / f"{arguments.recipe}.yaml" if arguments.recipe else None
    edit = edit_params(PROJECT / "params.yaml", arguments.set, recipe)
    if recipe is not None:
        logger.info("%s", edit.diff() or f"params.yaml is as {recipe.name} says already")
    params = edit.make()
    check_inputs(PROJECT, params, arguments.force)
    outcomes = run_here(arguments.force)
    print(summary_text(PROJECT, outcomes, time.monotonic() - start))  # noqa: T201
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
