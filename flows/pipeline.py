"""Run the whole pipeline as one Prefect flow: `python -m flows.pipeline [--recipe NAME] [--set key=value …] [--force STAGE …]`.

The stages run in this process. DVC decides which of them are fresh, and records what they write.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.core import offspring
from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError, OfTheMachine, is_transient
from headstart.core.graph import Stage
from headstart.core.liveness import alive
from headstart.core.params import Params, load_params
from headstart.versioning import Workspace, workspace
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed

from flows import PROJECT, artifacts
from flows.execution import Outcome, Runner, check_inputs, execute, run_or_reuse
from flows.param_edits import Edit, edit_params
from flows.prefect_client import check_server, close_dead_flow_runs, server_there, start_server
from flows.summary import summary_text

logger = logging.getLogger("headstart")


def as_task(name: str, timeout: float) -> Runner:
    """Return `run_or_reuse` as the Prefect task of one stage.

    Prefect's settings say how often a task is tried again after a transient fault, and after how long (prefect.yaml sets
    them for deployments). A task is never tried again after bad input.
    """

    def should_retry(task: object, run: object, state: State[Any]) -> bool:
        return is_transient(state.result(raise_on_failure=False))

    @task(
        name=name,
        timeout_seconds=timeout,
        retry_condition_fn=should_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(stage: Stage, space: Workspace, root: Path, params: Params, force: bool) -> Outcome:
        return run_or_reuse(stage, space, root, params, force, watched=functools.partial(artifacts.stage, root))

    return run


@flow(name="headstart", persist_result=False)
def headstart(force: list[str] | None = None) -> Any:  # built-in types: Prefect resolves them by name
    """Run the pipeline of the project in the current folder; its stages run in the flow's own process."""
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


def run_here(force: list[str]) -> list[Outcome]:
    """Run the flow in this process, now.

    If Prefect starts a server for this process alone, nobody listens to the flow's heartbeats, and ending their thread
    would take a second.
    """
    alone = PREFECT_API_URL.value() is None
    if alone:
        start_server()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if alone else {}):
        outcomes: Any = headstart(force)
        return list(outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run the whole pipeline.")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="set parameters in params.yaml before the run",
    )
    parser.add_argument(
        "--force",
        nargs="+",
        action="extend",
        default=[],
        metavar="STAGE",
        help="run STAGE (or `all` stages) even if nothing it depends on has changed",
    )
    parser.add_argument("--recipe", metavar="NAME", help="merge recipes/NAME.yaml into params.yaml before --set")
    arguments = parser.parse_args()
    start = time.monotonic()
    recipe = None if arguments.recipe is None else recipe_file(arguments.recipe)
    edit = edit_params(PROJECT / "params.yaml", arguments.set, recipe)
    if recipe is not None:
        logger.info("%s", edit.diff() or f"params.yaml already has the settings of {recipe.name}")
    check_inputs(PROJECT, edit.params, arguments.force)
    check_server()
    with undone_if_refused(edit, "--set" if arguments.set else "--recipe"), server_there():
        params = make_alone(edit)
        outcomes = run_here(arguments.force)
    print(summary_text(PROJECT, params, outcomes, time.monotonic() - start))  # noqa: T201
    return 0


def make_alone(edit: Edit) -> Params:
    """Edit params.yaml while no other run reads it: a stage fails at its end if params.yaml changed while it ran.

    Raises:
        Unavailable: another run holds DVC's lock; params.yaml is unchanged.
    """
    if edit.after == edit.before:
        return edit.params
    with workspace(PROJECT):
        return edit.make()


def recipe_file(name: str) -> Path:
    """Return the path of the recipe of this name.

    Raises:
        InputError: the name is a path or empty.
    """
    if not name or name != Path(name).name:
        raise InputError(f"--recipe {name}: not a recipe's name", wanted="a name: that of a file in recipes/, without .yaml")
    return PROJECT / "recipes" / f"{name}.yaml"


@contextlib.contextmanager
def undone_if_refused(edit: Edit, by: str) -> Iterator[None]:
    """Restore params.yaml if the run refuses its new settings, but not after a fault of the machine.

    Raises:
        InputError: the error that was raised inside, and that params.yaml was restored.
    """
    try:
        yield
    except OfTheMachine:
        raise  # the same command works once the fault is over
    except InputError as error:
        if edit.undo():
            raise InputError(f"{error}\n  {edit.path.name} is as it was before {by}") from None
        raise


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
