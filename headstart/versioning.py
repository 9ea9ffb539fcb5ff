"""Everything that uses DVC: check whether a stage is fresh, restore it from the run cache, commit its outs."""

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
    """A project's DVC repository while its lock is held. `workspace` makes it."""

    def __init__(self, root: Path) -> None:
        from dvc.repo import Repo

        self.root = root
        self.repo = Repo(str(root))
        self.has_run_cache = Path(self.repo.stage_cache.cache_dir).is_dir()  # before this run adds to it

    def is_fresh(self, stage: str) -> bool:
        """Return whether dvc.lock, inputs, parameters, code and outs of a stage all agree."""
        return not self.repo.status(targets=[stage])

    def restore(self, stage: str) -> bool:
        """Restore a stage's outs from DVC's run cache, as `dvc repro` would, if it ran before with these inputs.

        The caller commits them.
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
    """Return the folders of this project's DVC cache. Links into them are DVC's own."""
    from dvc.config import Config

    dvc_dir = root / ".dvc"
    if not dvc_dir.is_dir():
        return []
    configured = Config(str(dvc_dir)).get("cache", {}).get("dir")  # as DVC resolves it: relative to its config file
    return [dvc_dir / "cache", *([dvc_dir / configured] if configured else [])]


def copy_into_dvc(root: Path, source: Path, name: str) -> Path:
    """Add a copy of a folder's content to DVC as data/NAME: `dvc add -o data/NAME SOURCE`.

    Returns:
        The .dvc file, which belongs in git; `dvc push` and `dvc pull` move the content.

    Raises:
        InputError: data/NAME holds something else, or a copy that somebody changed.
    """
    target, record = root / "data" / name, root / "data" / f"{name}.dvc"
    if target.is_symlink() or (target.exists() and not record.exists()):
        raise InputError(f"{target} already exists and is no copy in DVC's care", fix="choose another --name")
    aside = root / ".headstart" / "tmp" / f"copy-{name}"  # DVC would put the copy *into* an existing folder
    aside.parent.mkdir(parents=True, exist_ok=True)
    with workspace(root) as space:
        remove(aside)
        if target.exists():
            if space.repo.status(targets=[str(record)]):
                raise InputError(f"{target} was changed since it was copied into DVC", fix=f"to keep it: dvc commit {record}")
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
    """Hold DVC's repository lock, so that no other process changes dvc.lock or runs a stage.

    It first repairs those of DVC's own files that a dead process left half written.

    Raises:
        InputError: the folder is no DVC project, or another process holds the lock (`Unavailable`, which names it).
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
        opened = Workspace(root)
        with lock_repo(opened.repo):
            write_json(holder, {"process": os.getpid()})
            try:
                _refuse_a_running_stage(root / ".dvc" / "tmp" / "rwlock")
                _repair_lock_file(opened.repo, root / "dvc.lock")
                yield opened
            finally:
                holder.unlink(missing_ok=True)
    except NotDvcRepoError:
        raise InputError(f"{root} is not a DVC project", fix="run from the project's root, or run `dvc init`") from None
    except LockError:
        raise Unavailable(f"DVC's lock is held by {_holder(holder)}", fix="wait until it has ended, then run again") from None


def _readers_and_writers(path: Path) -> dict[str, Any]:
    """Return DVC's list of readers and writers. Remove one that a process left half written: DVC would refuse to run."""
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
    logger.warning("removed %s: a process that died left it half written", path)
    path.unlink(missing_ok=True)
    return {}


def _refuse_a_running_stage(path: Path) -> None:
    """Refuse to go on while `dvc repro` runs a stage: it releases the lock then, and lists what the stage reads and writes.

    DVC identifies a process by its id alone, and ids are used again. An entry counts only if its process is a `dvc` command
    that is older than the list. A list without such an entry is removed, because DVC itself would refuse to run.

    Raises:
        Unavailable: such a stage runs. The message names its process.
    """
    listed = _readers_and_writers(path)
    writing, reading = listed.get("write", {}).values(), listed.get("read", {}).values()
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:  # the listed process has just ended
        return
    for info in (*writing, *(info for infos in reading for info in infos)):
        if info["pid"] != os.getpid() and _is_at_work(info["pid"], info["cmd"], written):
            raise Unavailable(
                f"a stage of another dvc command runs, process {info['pid']}", fix="wait until it has ended, then run again"
            )
    if writing or reading:
        path.unlink(missing_ok=True)  # adding an entry takes the lock that we hold


def _is_at_work(process: int, listed: str, listed_at: float) -> bool:
    """Return whether a process is a `dvc` command, a stage, or the listed command, and is older than the list."""
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
    """Move a dvc.lock that DVC cannot read out of the way: a process died while DVC wrote it, which takes about 50 ms.

    Nothing is lost: DVC's run cache knows the finished stages, and they are recorded again.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    try:
        Lockfile(repo, str(path)).load()
    except DvcException:
        aside = path.parent / ".headstart" / "dvc.lock.damaged"
        path.replace(aside)
        logger.warning("%s was half written and is now %s; finished stages are restored from DVC's run cache", path, aside)


def _holder(path: Path) -> str:
    try:
        process = json.loads(path.read_text())["process"]
    except (OSError, ValueError, KeyError):
        return "another dvc command (`ps -ef | grep dvc` shows it)"
    return f"a run of this flow, process {process}"
