"""DVC owns the graph and freshness: is a stage fresh, restore it from the run cache, commit its outs."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from headstart.core.errors import InputError, Unavailable
from headstart.core.files import remove, write_json

if TYPE_CHECKING:
    from dvc.repo import Repo

logger = logging.getLogger("headstart")
CLOCKS_DIFFER = 2.0  # seconds: the start of a process and the time of a file come from different clocks


class Workspace:
    """A project's DVC repository, its lock held. Make it with `workspace`."""

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo

        self.root = root
        self.repo = Repo(str(root))
        self.has_run_cache = Path(self.repo.stage_cache.cache_dir).is_dir()  # before this run adds to it

    def is_fresh(self, stage: str) -> bool:
        """Whether dvc.lock, inputs, parameters, code and outs of a stage all agree."""
        return not self.repo.status(targets=[stage])

    def restore(self, stage: str) -> bool:
        """Take a stage's outs from DVC's run cache, as `dvc repro` would, if it ran before with these inputs.

        They are to be committed.
        """
        from dvc.stage.cache import RunCacheNotFoundError

        if not self.has_run_cache:
            return False
        (found,) = self.repo.stage.collect(stage)
        try:
            self.repo.stage_cache.restore(found)
        except RunCacheNotFoundError:
            return False
        return True

    def commit(self, stage: str) -> None:
        """Record a stage's inputs and outs in dvc.lock and the outs in DVC's cache."""
        self.repo.commit(stage, force=True)


def cache_folders(root: Path) -> list[Path]:
    """Where this project's DVC cache is; links into it are DVC's own."""
    from dvc.config import Config

    dvc_dir = root / ".dvc"
    if not dvc_dir.is_dir():
        return []
    configured = Config(str(dvc_dir)).get("cache", {}).get("dir")  # as DVC resolves it: relative to its config file
    return [dvc_dir / "cache", *([dvc_dir / configured] if configured else [])]


def copy_into_dvc(root: Path, source: Path, name: str) -> Path:
    """Put a copy of a folder's content under DVC as data/NAME: `dvc add -o data/NAME SOURCE`.

    Returns:
        The .dvc file, which git is to keep; `dvc push` and `dvc pull` move the content.

    Raises:
        InputError: something else is at data/NAME, or a copy that somebody changed.
    """
    target, record = root / "data" / name, root / "data" / f"{name}.dvc"
    if target.is_symlink() or (target.exists() and not record.exists()):
        raise InputError(f"{target} is there already and is no copy in DVC's care", fix="choose another --name")
    aside = root / ".headstart" / "tmp" / f"copy-{name}"  # DVC would put the copy *into* a folder that is there
    aside.parent.mkdir(parents=True, exist_ok=True)
    with workspace(root) as space:
        remove(aside)
        if target.exists():
            if space.repo.status(targets=[str(record)]):
                raise InputError(f"{target} was changed since it was copied into DVC", fix=f"keep that: dvc commit {record}")
            target.rename(aside)
        with ExitStack() as undo:
            undo.callback(_put_back, aside, target)
            space.repo.add([str(source)], out=str(target))
            undo.pop_all()
        remove(aside)
    return record


def _put_back(aside: Path, target: Path) -> None:
    remove(target)
    if aside.exists():
        aside.rename(target)


@contextmanager
def workspace(root: Path) -> Iterator[Workspace]:
    """Hold DVC's repository lock: nobody else changes dvc.lock or runs a stage meanwhile.

    What a process that died left half written of DVC's own files is repaired first.

    Raises:
        InputError: not a DVC project, or another process holds the lock (`Unavailable`); it says which.
    """
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(root / ".headstart" / "dvc"))
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.exceptions import NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import lock_repo

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.ERROR)
    holder = root / ".headstart" / "dvc-lock-holder.json"
    try:
        here = Workspace(root)
        with lock_repo(here.repo):
            write_json(holder, {"process": os.getpid()})
            try:
                _refuse_a_running_stage(root / ".dvc" / "tmp" / "rwlock")
                _repair_lock_file(here.repo, root / "dvc.lock")
                yield here
            finally:
                holder.unlink(missing_ok=True)
    except NotDvcRepoError:
        raise InputError(f"{root}: not a DVC project", fix="run from the project's root, or run `dvc init`") from None
    except LockError:
        raise Unavailable(f"DVC's lock is held by {_holder(holder)}", fix="wait until it has ended, then run again") from None


def _readers_and_writers(path: Path) -> dict[str, Any]:
    """DVC's list of them by "read" and "write"; removed where a process died while it wrote it: DVC refuses everything else."""
    for pause in (0.0, 0.2, 0.5):  # another process may be writing it just now
        time.sleep(pause)
        try:
            listed: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            continue
        if isinstance(listed, dict):
            return listed
    logger.warning("%s was half written by a process that died: removed", path)
    path.unlink(missing_ok=True)
    return {}


def _refuse_a_running_stage(path: Path) -> None:
    """DVC's own repro lets go of the lock while a stage runs, and lists what that reads and writes.

    DVC believes the list by process id alone, and ids are used again: an entry that no `dvc` of that time stands behind is
    of a process that died. Where there are no others the list is removed, since DVC itself would refuse.

    Raises:
        Unavailable: such a stage runs; it says which process.
    """
    listed = _readers_and_writers(path)
    writing, reading = listed.get("write", {}).values(), listed.get("read", {}).values()
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:  # whoever was listed has ended just now
        return
    for info in (*writing, *(info for infos in reading for info in infos)):
        if info["pid"] != os.getpid() and _is_at_work(info["pid"], info["cmd"], written):
            raise Unavailable(
                f"a stage of another dvc command runs, process {info['pid']}", fix="wait until it has ended, then run again"
            )
    if writing or reading:
        path.unlink(missing_ok=True)  # whoever adds an entry holds the lock that we hold


def _is_at_work(process: int, listed: str, listed_at: float) -> bool:
    """Whether a process is a `dvc` command, a stage, or what the list says, and began before the list was last written."""
    try:
        found = psutil.Process(process)
        words, began = found.cmdline(), found.create_time()
    except psutil.AccessDenied:  # another user's process: unknown
        return True
    except psutil.Error:
        return False
    if not words or not Path(words[0]).name.startswith(("python", "dvc")) or began > listed_at + CLOCKS_DIFFER:
        return False
    modules = {module.partition(".")[0] for option, module in zip(words, words[1:], strict=False) if option == "-m"}
    return bool(modules & {"dvc", "tasks"} or {"dvc"} & {Path(word).name for word in words}) or (
        bool(listed) and " ".join(words).endswith(listed)  # a script that uses DVC as a library
    )


def _repair_lock_file(repo: Repo, path: Path) -> None:
    """Put a dvc.lock aside that DVC cannot read: a process died while DVC wrote it, in place and over some 50 ms.

    Nothing is lost with it: DVC's cache of runs knows the finished stages, and they are recorded again.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        aside = path.parent / ".headstart" / "dvc.lock.damaged"
        path.replace(aside)
        logger.warning("%s was half written: put aside as %s; finished stages come back from DVC's cache", path, aside)


def _holder(path: Path) -> str:
    try:
        process = json.loads(path.read_text())["process"]
    except (OSError, ValueError, KeyError):
        return "another dvc command (`ps -ef | grep dvc` shows it)"
    return f"a run of this flow, process {process}"
