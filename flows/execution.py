"""Run every stage in order, in this process and without Prefect, unless DVC knows its outs; then record and register."""

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
from headstart.core.params import Backbone, Params
from headstart.core.stages import checkpoints, run_stage
from headstart.datasets.builtin import is_source, refuse_foreign
from headstart.ingest.tree import preflight
from headstart.tracking import pending
from headstart.versioning import Workspace, cache_folders, workspace

logger = logging.getLogger("headstart")
MIN_FREE_BYTES = 300_000_000
BEFORE_THE_NETWORK = ("fetch_data", "link_data", "precompute")  # stages that may take long before a wrong size would show
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
    """Run one stage unless DVC knows its outs already; commit them.

    Args:
        watched: entered with the stage's name when it is to run.

    Raises:
        InputError: bad input, or code, params or inputs changed meanwhile.
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
        if stage.name in BEFORE_THE_NETWORK:
            check_network(params.backbone, params.seed, tuple(params.fine_tune.own_sizes().items()))
        # torch and its like are imported by the first stage that needs them, and are its own time
        module = importlib.import_module(f"tasks.{stage.name}")
        with watched(stage.name):
            run_stage(stage, getattr(module, stage.name), root, params)
        gc.collect()
        gc.freeze()  # what was imported stays: the collector need not walk it again (.5 s each time)
        outcome = Outcome(stage.name, RAN, time.monotonic() - start)
    pending.note(root, "record")  # before dvc.lock says that the stage is fresh: a death in between loses nothing
    space.commit(stage.name)
    if outcome.how == RAN:
        remove(checkpoints(root, stage.name))
    return outcome


@functools.lru_cache(maxsize=1)
def check_network(backbone: Backbone, seed: int, sizes: tuple[tuple[str, int], ...]) -> None:
    """Refuse weights that cannot be loaded and image sizes that the network refuses, before any image is read.

    Args:
        sizes: (parameter, size) of phases with an image size of their own.

    Raises:
        InputError: naming the parameter.
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

    What an execution that died had still to record or register is done too.

    Args:
        force: stages to run even if fresh, or "all".
        runner: from a stage's name to what runs it, such as a Prefect task around `run_or_reuse`.
        tags: for the MLflow run.

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
    """Refuse a `--force` that names no stage, a full disk, a source folder that DVC would hang on or misread, and
    files of the user's where the built-in set would be written.

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
            fix="free space (docs/operations.md, Free disk): `dvc gc -w`, or another disk",
        )
    refuse_foreign(root, params.data.builtin)  # DVC, too, would put it aside when it restores the stage
    if not is_source(root, params.data.source, params.data.builtin):
        preflight(
            root / params.data.source,
            follow_external_links=params.data.follow_external_links,
            trusted=functools.partial(cache_folders, root),
        )
