"""Small real projects for the soak to damage, and checks of what must be the same afterwards."""

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
    """A result that must never occur."""


def check(truth: bool, what: str) -> None:
    """Check that `truth` holds.

    Raises:
        Failure: it does not; the message is `what`.
    """
    if not truth:
        raise Failure(what)


def new(folder: Path, **settings: str) -> Path:
    """Make a project with 60 small images and a small network, in which nothing has run."""
    folder.mkdir(parents=True, exist_ok=True)
    return make_project(folder / "project", **settings)


def outs(root: Path) -> Digests:
    """Return the SHA-256 of every file of every out, by path."""
    stages = load_graph(root, load_params(root / "params.yaml")).values()
    files = (file for stage in stages for out in stage.outs for file in _files(root / out))
    return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def _files(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.exists() else []


def from_scratch(root: Path, *assignments: str) -> tuple[Digests, bytes]:
    """Run a project with nothing cached; return its outs and its dvc.lock."""
    forget(root)
    set_params(root / "params.yaml", assignments)
    how(root, *assignments, force=("all",))
    return outs(root), (root / "dvc.lock").read_bytes()


def forget(root: Path) -> None:
    """Delete what would save a run its work: cached activations, DVC's run cache, checkpoints, the scan state."""
    for name in (".headstart/cache", ".headstart/checkpoints", ".headstart/scan.sqlite", ".dvc/cache/runs"):
        remove(root / name)


def run(root: Path, command: tuple[str, ...], api: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a project, with Prefect's server at `api`."""
    return subprocess.run(command, cwd=root, env=environment(api), capture_output=True, text=True, check=False)


def environment(api: str | None = None) -> dict[str, str]:
    return ENVIRONMENT | ({"PREFECT_API_URL": api} if api else {})


def clean(root: Path) -> bool:
    """Return whether `dvc status` reports that everything is up to date."""
    done = run(root, ("dvc", "status"))
    check(done.returncode == 0, f"dvc status failed: {done.stdout}{done.stderr}")
    return "up to date" in done.stdout


def leftovers(root: Path) -> list[str]:
    """List half-written files beside the outs, and those that stages left."""
    names = [*root.glob("data/.*.tmp"), *root.glob("models/.*"), *root.glob("reports/.*"), *root.glob(".headstart/tmp/*")]
    return [path.relative_to(root).as_posix() for path in names]


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Run Prefect's server for all rounds; yield the address of its API."""
    port = free_port(4500)
    with Servers() as servers:
        servers.start("prefect", prefect_command(port), port, PREFECT_HOME=str(folder / "prefect"))
        yield f"http://127.0.0.1:{port}/api"


def copy(root: Path, target: Path) -> Path:
    """Copy a project as it is; the copies share its images."""
    shutil.copytree(root, target, symlinks=True)
    return target
