"""Small real projects to maltreat, and what must be the same in them afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.param_edits import set_params
from flows.servers import Servers, free_port, prefect_command
from headstart.core.files import remove
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from tests.conftest import make_project
from tests.projects import ENVIRONMENT, how

FLOW = (sys.executable, "-m", "flows.pipeline")
REPRO = ("dvc", "repro")
Digests = dict[str, str]


class Failure(AssertionError):
    """What must never happen."""


def check(truth: bool, what: str) -> None:
    """Say what happened that must not.

    Raises:
        Failure: `truth` is false.
    """
    if not truth:
        raise Failure(what)


def new(folder: Path, **settings: str) -> Path:
    """A project with 60 small images and a small network; nothing has run in it."""
    folder.mkdir(parents=True, exist_ok=True)
    return make_project(folder / "project", **settings)


def outs(root: Path) -> Digests:
    """SHA-256 of every file of every out, by path."""
    stages = load_graph(root, load_params(root / "params.yaml")).values()
    files = (file for stage in stages for out in stage.outs for file in _files(root / out))
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def _files(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.exists() else []


def from_scratch(root: Path, *assignments: str) -> tuple[Digests, bytes]:
    """Run a project with nothing cached: its outs, and its dvc.lock."""
    forget(root)
    set_params(root / "params.yaml", assignments)
    how(root, *assignments, force=("all",))
    return outs(root), (root / "dvc.lock").read_bytes()


def forget(root: Path) -> None:
    """Delete what would spare a run its work: activations, DVC's record of runs, checkpoints, the scan's memory."""
    for name in (".headstart/cache", ".headstart/checkpoints", ".headstart/scan.sqlite", ".dvc/cache/runs"):
        remove(root / name)


def run(root: Path, command: tuple[str, ...], api: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a project, with Prefect's server at `api`."""
    return subprocess.run(command, cwd=root, env=environment(api), capture_output=True, text=True, check=False)


def environment(api: str | None = None) -> dict[str, str]:
    return ENVIRONMENT | ({"PREFECT_API_URL": api} if api else {})


def clean(root: Path) -> bool:
    """Whether `dvc status` says that nothing is to be done."""
    done = run(root, ("dvc", "status"))
    check(done.returncode == 0, f"dvc status failed: {done.stdout}{done.stderr}")
    return "up to date" in done.stdout


def leftovers(root: Path) -> list[str]:
    """Half-written files where outs are, and of stages."""
    names = [*root.glob("data/.*.tmp"), *root.glob("models/.*"), *root.glob("reports/.*"), *root.glob(".headstart/tmp/*")]
    return [path.relative_to(root).as_posix() for path in names]


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Prefect's server for all rounds; yields the address of its API."""
    port = free_port(4500)
    with Servers() as servers:
        servers.start("prefect", prefect_command(port), port, PREFECT_HOME=str(folder / "prefect"))
        yield f"http://127.0.0.1:{port}/api"


def copy(root: Path, target: Path) -> Path:
    """A project copied as it is; its images are shared."""
    shutil.copytree(root, target, symlinks=True)
    return target
