"""What many tests begin with, made once for all of pytest's processes: a project, MLflow's database, a pipeline that has run.

Whoever needs one first makes it in the folder that the processes share, under a lock; the others wait and then use it.
Nobody writes to what is kept here: tests copy it.
"""

from __future__ import annotations

import atexit
import compileall
import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "gc.auto=0")
LEFT_OUT = ("tests/", "reports/", "docs/", "dvc.lock")


_kept_in: list[Path] = []


def keep_in(factory: pytest.TempPathFactory) -> None:
    """Keep what is made once in pytest's temporary folder: with xdist, in the one that all its workers share."""
    base = factory.getbasetemp()
    _kept_in[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def _folder() -> Path:
    if not _kept_in:  # no pytest runs, as in bench/: a folder that goes with this process
        _kept_in.append(Path(tempfile.mkdtemp()))
        atexit.register(shutil.rmtree, _kept_in[0], ignore_errors=True)
    return _kept_in[0]


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which `make` fills if no process has done so.

    Args:
        make: gets the empty folder. Where it raises, the next who asks begins anew.
    """
    folder = _folder() / "made-once" / name
    folder.parent.mkdir(exist_ok=True)
    finished = folder.with_name(f"{name}.finished")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder


def git(project: Path, *words: str) -> None:
    subprocess.run([*GIT, *words], cwd=project, check=True)


def commit_all(project: Path) -> None:
    """Commit everything that git does not ignore."""
    git(project, "add", "-A")
    git(project, "commit", "-qm", "start")


def new_project(folder: Path, configure: Callable[[Path], object]) -> None:
    """Make this repository's tracked files a project of its own, committed.

    Args:
        configure: gets params.yaml before the commit.
    """
    words = ["git", "ls-files", "-co", "--exclude-standard"]
    files = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in files:
        if not name.startswith(LEFT_OUT) and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    configure(folder / "params.yaml")
    git(folder, "init", "-q")
    commit_all(folder)
    git(folder, "gc", "-q")  # one file to copy instead of 250
    for package in ("headstart", "tasks", "flows"):  # so that commands in a copy need not compile them; git ignores it
        compileall.compile_dir(folder / package, quiet=1)


def add_mlflow(project: Path) -> Path:
    """Give a folder MLflow's database with all its tables and nothing in them; MLflow takes 2 to 5 seconds to make it."""
    shutil.copyfile(made_once("mlflow", _make_mlflow) / "mlflow.db", project / "mlflow.db")
    return project


def copy_project(original: Path, copy: Path) -> Path:
    """Copy a project that has run; MLflow's records in the copy lead to the copy's artifacts."""
    shutil.copytree(original, copy, symlinks=True)
    file = copy / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        content = "\n".join(database.iterdump()).replace(f"{original}/", f"{copy}/")
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(f"PRAGMA synchronous = OFF;\n{content}")
    return copy


def _make_mlflow(folder: Path) -> None:
    from headstart.tracking.store import store

    store(folder)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table in ("experiment_tags", "experiments"):  # they hold this folder's path; the next `store` makes them again
            database.execute(f"DELETE FROM {table}")


def digits(place: Path) -> None:
    """The built-in digits, as `fetch_data` writes them; hard links, which a test may remove but not write to."""

    def write(folder: Path) -> None:
        from headstart.datasets.builtin import write_digits

        write_digits(folder / "digits")

    shutil.copytree(made_once("digits", write) / "digits", place, copy_function=os.link)
