"""The whole pipeline as one Prefect flow: `python -m flows.pipeline [--recipe NAME] [--set key=value …] [--force STAGE …]`.

The stages run in this process. DVC decides which of them are fresh, and records what they write.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import logging
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from headstart.core import offspring
from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError, OfTheMachine, Unavailable, is_transient
from headstart.core.files import free_bytes, read_checked_json, remove
from headstart.core.graph import Stage, load_graph
from headstart.core.liveness import alive, dead, forget
from headstart.core.params import Backbone, Params, load_params
from headstart.core.stages import checkpoints, last_record, run_stage
from headstart.datasets.builtin import is_source, refuse_foreign
from headstart.ingest.tree import preflight
from headstart.tracking import pending
from headstart.versioning import Workspace, cache_folders, workspace
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Completed, Crashed

from flows import PROJECT, artifacts
from flows.param_edits import Edit, edit_params

logger = logging.getLogger("headstart")
MIN_FREE_BYTES = 300_000_000
SECONDS_TO_ANSWER = 4.0
BEFORE_THE_NETWORK = ("fetch_data", "link_data", "precompute")  # stages that may take long before a wrong size would show
FRESH, RESTORED, RAN = "fresh", "restored", "ran"


@dataclass(frozen=True)
class Outcome:
    """What became of one stage in this run: fresh, restored from DVC's cache, or ran, and in how many seconds."""

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
            sizes = tuple(
                (f"fine_tune.gradual[{i}].image_size", one.image_size) for i, one in enumerate(params.fine_tune.gradual)
            )
            check_network(params.backbone, params.seed, sizes)
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
def check_network(backbone: Backbone, seed: int, sizes: tuple[tuple[str, int | str], ...]) -> None:
    """Refuse weights that cannot be had and image sizes that the network does not take before any image is read.

    Args:
        sizes: (parameter, size) of phases with an image size of their own.

    Raises:
        InputError: naming the parameter.
    """
    from headstart.models.backbones import build_backbone, refuse_size

    built = build_backbone(**backbone.model_dump(), seed=seed)
    for key, size in sizes:
        if isinstance(size, int):
            refuse_size(built, size, key)


Runner = Callable[[Stage, Workspace, Path, Params, bool], Outcome]


@dataclass(frozen=True)
class Execution:
    """What became of each stage; where MLflow's pages show the run and what became of its model (None: nothing ran)."""

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
    """Every stage in order; then, if anything ran, one MLflow run and the model's registration.

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


def as_task(name: str, timeout: float) -> Runner:
    """`run_or_reuse` as the Prefect task of one stage.

    How often a transient fault is tried again and how long it waits are Prefect's settings (prefect.yaml has them for
    deployments); bad input is never tried again.
    """

    def worth_another_try(task: object, run: object, state: State[Any]) -> bool:
        return is_transient(state.result(raise_on_failure=False))

    @task(
        name=name,
        timeout_seconds=timeout,
        retry_condition_fn=worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(stage: Stage, space: Workspace, root: Path, params: Params, force: bool) -> Outcome:
        return run_or_reuse(stage, space, root, params, force, watched=functools.partial(artifacts.stage, root))

    return run


@flow(name="headstart", persist_result=False)
def headstart(force: list[str] | None = None) -> Any:  # built-in types: Prefect resolves them by name
    """The pipeline of the project in the current folder; its stages run in the flow's own process."""
    logger.setLevel(logging.INFO)
    offspring.guard(PROJECT)
    params = load_params(PROJECT / "params.yaml")
    run_id = str(flow_run.id)
    with alive(PROJECT, "prefect", run_id):
        check_inputs(PROJECT, params, force or [])
        close_dead_flow_runs(PROJECT)
        timeout = params.runtime.stage_timeout
        done = execute(
            PROJECT, params, force or [], runner=lambda name: as_task(name, timeout), tags={"prefect.flow_run": run_id}
        )
        rows = [{"stage": o.stage, "": o.how, "seconds": round(o.seconds, 1)} for o in done.outcomes]
        artifacts.run_summary(PROJECT, rows, done.mlflow_run, done.verdict)
    nothing = done.mlflow_run is None and done.verdict is None
    return Completed(data=done.outcomes, name="Nothing to do" if nothing else None)


def close_dead_flow_runs(root: Path) -> None:
    """Mark the flow runs of this project whose process died as crashed; without a worker nobody else does."""
    names = dead(root, "prefect")
    if not names:
        return
    with get_client(sync_client=True) as client:
        for name in names:
            with contextlib.suppress(ObjectNotFound):
                if client.read_flow_run(uuid.UUID(name)).state_type == StateType.RUNNING:
                    client.set_flow_run_state(uuid.UUID(name), Crashed(message="its process died"), force=True)
            forget(root, "prefect", name)


def run_here(force: list[str]) -> list[Outcome]:
    """The flow in this process, now.

    Where Prefect starts a server for this process alone, there is nobody to hear the flow's heartbeats, and
    ending their thread would take a second.
    """
    alone = PREFECT_API_URL.value() is None
    if alone:
        start_server()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if alone else {}):
        outcomes: Any = headstart(force)
        return list(outcomes)


def start_server() -> None:
    """Start the server that Prefect would start for this process, deaf to Ctrl-C: a terminal sends that to both.

    A run that is interrupted reports so to the server; where that had ended too, it tried for a minute.
    """
    from prefect.server.api.server import SubprocessASGIServer  # a second to import

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def summary_text(root: Path, params: Params, outcomes: Sequence[Outcome], total: float) -> str:
    """The short summary a run ends with."""
    how = {outcome.stage: outcome.how for outcome in outcomes}
    results = json.loads((root / "reports/metrics.json").read_text())
    found = read_checked_json(root / "reports/find_lr/lr.json")
    computed = last_record(root, load_graph(root, params)["precompute"])
    rate = computed.summary.get("images_per_second") if computed else None
    own = sum(outcome.seconds for outcome in outcomes)
    lines = ["", f"  {'stage':<12}{'':<10}{'seconds':>8}"]
    lines += [f"  {o.stage:<12}{o.how:<10}{o.seconds:>8.1f}" for o in outcomes]
    lines += [f"  {'all':<12}{'':<10}{total:>8.1f}   of which stages {own:.1f}", ""]
    if computed and rate:
        views = computed.summary.get("views_per_second")
        when = "" if how["precompute"] == RAN else " (when they were computed)"
        lines.append(f"  activations     {rate:,.0f} images/s, {views:,.0f} views/s{when}")
    abstained = " (default: the search abstained)" if found["abstained"] else ""
    lines.append(f"  suggested LR    {found['lr']:.2g}{abstained}")
    lines.append(f"  fine-tuning     {json.loads((root / 'reports/fine_tune/kept.json').read_text())['sentence']}")
    lines.append(f"  test accuracy   of {results['n_test']:,} images")
    for key, name in artifacts.MODELS.items():
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
    recipe = None if arguments.recipe is None else recipe_file(arguments.recipe)
    edit = edit_params(PROJECT / "params.yaml", arguments.set, recipe)
    if recipe is not None:
        logger.info("%s", edit.diff() or f"params.yaml is as {recipe.name} says already")
    check_inputs(PROJECT, edit.params, arguments.force)
    check_server()
    with undone_if_refused(edit, "--set" if arguments.set else "--recipe"), server_there():
        params = make_alone(edit)
        outcomes = run_here(arguments.force)
    print(summary_text(PROJECT, params, outcomes, time.monotonic() - start))  # noqa: T201
    return 0


def make_alone(edit: Edit) -> Params:
    """Change params.yaml, but not under a run that reads it: that would be refused at the end of its stage.

    Raises:
        Unavailable: another run holds DVC's lock; params.yaml is as it was.
    """
    if edit.after == edit.before:
        return edit.params
    with workspace(PROJECT):
        return edit.make()


def recipe_file(name: str) -> Path:
    """Where a recipe of this name is to be.

    Raises:
        InputError: a path instead of a name.
    """
    if not name or name != Path(name).name:
        raise InputError(f"--recipe {name}: no name of a recipe", wanted="a name: that of a file in recipes/, without .yaml")
    return PROJECT / "recipes" / f"{name}.yaml"


@contextlib.contextmanager
def undone_if_refused(edit: Edit, by: str) -> Iterator[None]:
    """Put params.yaml back where what it was changed to is refused on the way; not for a fault of the machine's.

    Raises:
        InputError: what was raised inside, and that params.yaml was put back.
    """
    try:
        yield
    except OfTheMachine:
        raise  # the same command will do once that is over
    except InputError as error:
        if edit.undo():
            raise InputError(f"{error}\n  {edit.path.name} is as it was before {by}") from None
        raise


def check_server() -> None:
    """Refuse to begin where PREFECT_API_URL names a server and none answers there.

    Raises:
        Unavailable: naming it.
    """
    address = PREFECT_API_URL.value()
    if address is None:
        return
    patience = {PREFECT_API_REQUEST_TIMEOUT: SECONDS_TO_ANSWER, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(patience), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise _no_server(address, error)


@contextlib.contextmanager
def server_there() -> Iterator[None]:
    """Prefect's ways of saying that its server went away, or did not start, in ours.

    Raises:
        Unavailable: it did.
    """
    try:
        yield
    except httpx.TransportError as error:
        raise _no_server(str(PREFECT_API_URL.value() or "the one of this run"), error) from None
    except RuntimeError as error:
        if "ephemeral" not in str(error):
            raise
        raise Unavailable(f"Prefect's own server did not start: {error}", fix="run again; a busy machine may be slow") from None


def _no_server(address: str, error: Exception) -> Unavailable:
    parts = urlsplit(address)  # without the password that may be in it
    shown = (
        f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}" if parts.hostname else address
    )
    if isinstance(error, httpx.HTTPStatusError):
        said = f"answers {error.response.status_code}: no API of Prefect's, or one that asks for a password"
    else:
        said = f"does not answer: {(str(error) or type(error).__name__).splitlines()[0]}"
    return Unavailable(
        f"Prefect's server {shown} (PREFECT_API_URL) {said}",
        fix="start it (make schedule); or run without: unset PREFECT_API_URL, and where a profile sets it"
        " `prefect config unset PREFECT_API_URL`",
    )


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
