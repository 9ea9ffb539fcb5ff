"""Run the stages in order, in this process and without Prefect, except those whose outs DVC has; then record and register."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from headstart.core.errors import InputError
from headstart.core.files import free_bytes, remove
from headstart.core.graph import Stage, load_graph
from headstart.core.liveness import dead
from headstart.core.params import NO_BACKBONE, Backbone, Params
from headstart.core.stages import checkpoints, run_stage
from headstart.datasets.builtin import is_source, refuse_foreign
from headstart.ingest.tree import preflight
from headstart.tracking import pending
from headstart.versioning import Workspace, cache_folders, workspace

logger = logging.getLogger("headstart")
MIN_FREE_BYTES = 300_000_000
BEFORE_THE_NETWORK = ("fetch_data", "link_data", "precompute")  # these may run for long before a wrong image size shows
FRESH, RESTORED, RAN = "fresh", "restored", "ran"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one stage in this run: fresh, restored from DVC's cache, or ran, and in how many seconds."""

    stage: str
    how: str
    seconds: float


def run_or_reuse(
    stage: Stage,
    space: Workspace,
    root: Path,
    params: Params,
    force: bool,
    watched: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Outcome:
    """Run one stage unless DVC already has its outs; commit them.

    Args:
        watched: returns, for the stage's name, a context manager that is entered while the stage runs.

    Raises:
        InputError: bad input, or code, parameters or inputs changed while the stage ran.
    """
    if not force and space.is_fresh(stage.name):
        logger.info("%s: %s", stage.name, FRESH)
        return Outcome(stage.name, FRESH, 0.0)
    if not force and space.restore(stage.name):
        logger.info("%s: %s", stage.name, RESTORED)
        outcome = Outcome(stage.name, RESTORED, 0.0)
    else:
        logger.info("%s: running", stage.name)
        start = time.monotonic()
        if stage.name in BEFORE_THE_NETWORK and params.backbone.name != NO_BACKBONE:
            check_network(params.backbone, params.seed, tuple(params.fine_tune.own_sizes().items()))
        # the first stage that needs torch imports it, and its seconds include that
        module = importlib.import_module(f"tasks.{stage.name}")
        with watched(stage.name):
            run_stage(stage, getattr(module, stage.name), root, params)
        gc.collect()
        gc.freeze()  # imported modules stay: the collector need not visit them again (0.5 s each time)
        outcome = Outcome(stage.name, RAN, time.monotonic() - start)
    pending.note(root, "record")  # before dvc.lock says that the stage is fresh: a kill in between loses nothing
    space.commit(stage.name)
    if outcome.how == RAN:
        remove(checkpoints(root, stage.name))
    return outcome


@functools.lru_cache(maxsize=1)
def check_network(backbone: Backbone, seed: int, sizes: tuple[tuple[str, int], ...]) -> None:
    """Refuse weights that cannot be loaded and image sizes that the network cannot take, before any image is read.

    Args:
        sizes: (parameter, image size) of each phase that sets its own.

    Raises:
        InputError: weights or a size is refused; the message names the parameter.
    """
    from headstart.models.backbones import build_backbone
    from headstart.models.sizes import refuse_size

    built = build_backbone(**backbone.model_dump(), seed=seed)
    for key, size in sizes:
        refuse_size(built, size, key)


Runner = Callable[[Stage, Workspace, Path, Params, bool], Outcome]


@dataclass(frozen=True)
class Execution:
    """The outcome of each stage, the run's page in MLflow, and the decision about its model (None if nothing ran)."""

    outcomes: Sequence[Outcome]
    mlflow_run: str | None
    verdict: str | None


def execute(
    root: Path,
    params: Params,
    force: Sequence[str] = (),
    *,
    runner: Callable[[str], Runner] = lambda name: run_or_reuse,
    tags: Mapping[str, str] | None = None,
) -> Execution:
    """Run every stage in order; then, if anything ran, record one MLflow run and register the model.

    It also records and registers what an earlier run that died left undone.

    Args:
        force: stages to run even if fresh, or "all".
        runner: returns what runs the stage of a name, such as a Prefect task around `run_or_reuse`.
        tags: of the MLflow run.

    Raises:
        InputError: bad input; finished stages are kept.
    """
    started = time.time()
    with workspace(root) as space:
        if dead(root, "mlflow"):
            from headstart.tracking.store import close_dead_runs

            close_dead_runs(root)
        outcomes = []
        for stage in load_graph(root, params).values():
            forced = "all" in force or stage.name in force
            outcomes.append(runner(stage.name)(stage, space, root, params, forced))
        mlflow_run = verdict = None
        if pending.is_due(root, "record"):
            from headstart.tracking.record import record_pipeline

            logger.info("recording the run in MLflow")
            mlflow_run = record_pipeline(root, params, tags, started).address
        if pending.is_due(root, "register"):
            from flows.register import register

            logger.info("registering the model")
            verdict = register(root, params).sentence()
    return Execution(outcomes, mlflow_run, verdict)


def check_inputs(root: Path, params: Params, force: Sequence[str]) -> None:
    """Check, before any stage runs, what would stop one later or lose files.

    Raises:
        InputError: `--force` names no stage, the disk is full, DVC would hang on the source folder or misread it, or files
            of the user's lie where the built-in set would be written.
    """
    stages = list(load_graph(root, params))
    for name in force:
        if name not in (*stages, "all"):
            raise InputError(f"--force {name}: no such stage", wanted=f"one of: {', '.join(stages)}, all")
    free = free_bytes(root)
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"{root}: only {free / 1e6:,.0f} MB free on this disk",
            wanted=f"{MIN_FREE_BYTES / 1e6:,.0f} MB or more, for what the stages write, DVC's copies of it, and the records",
            fix="free space, for example with `dvc gc -w` (docs/operations.md, Free disk), or use another disk",
        )
    refuse_foreign(root, params.data.builtin)  # DVC would move them aside, too, when it restores the stage
    if not is_source(root, params.data.source, params.data.builtin):
        preflight(
            root / params.data.source,
            follow_external_links=params.data.follow_external_links,
            trusted=functools.partial(cache_folders, root),
        )
