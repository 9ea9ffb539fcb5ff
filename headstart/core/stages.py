"""Run one stage: lock it, write to a staging folder, check that nothing changed, publish its outs by rename, record the run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headstart.core import code_digest, files
from headstart.core.errors import InputError
from headstart.core.graph import Stage
from headstart.core.params import Params, load_params

Summary = Mapping[str, str | int | float]


@dataclass(frozen=True)
class StageContext:
    """The argument of a stage's function: its parameters, the project to read from, a folder to write to.

    `out` mirrors the project: a file at `out / "models/head.safetensors"` is published as `models/head.safetensors` once
    the stage is complete. `checkpoints` survives an interruption. `code` is the digest of all first-party code that the
    stage runs.
    """

    params: Params
    root: Path
    out: Path
    checkpoints: Path
    code: str

    def output(self, relative: str) -> Path:
        """Return the path to write `relative` to, and make its folder."""
        path = self.out / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


StageFunction = Callable[[StageContext], Summary]


@dataclass(frozen=True)
class Record:
    """The last run of a stage: its seconds and its summary. It is kept in .headstart/records, never in an out."""

    stage: str
    seconds: float
    summary: Summary
    outs: str


def run_stage(stage: Stage, function: StageFunction, root: Path, params: Params) -> Record:
    """Run one stage and publish each of its outs as a whole, by rename.

    Raises:
        InputError: the input is bad, or code, parameters or inputs changed while the stage ran. Nothing is
            published then, and the outs of the previous run stay.
    """
    refuse_changes(root, params, stage.name)
    code = code_digest.digest(code_digest.closure(f"tasks.{stage.name}"))
    with files.locked(root / ".headstart" / "locks" / f"{stage.name}.lock", f"stage {stage.name}"):
        staging = root / ".headstart" / "tmp" / stage.name
        files.remove(staging)
        staging.mkdir(parents=True)
        inputs = signature(root, stage.deps)
        start = time.monotonic()
        try:
            summary = function(StageContext(params, root, staging, checkpoints(root, stage.name), code))
            refuse_changes(root, params, stage.name)
            if signature(root, stage.deps) != inputs:
                raise InputError(
                    f"{stage.name}: an input changed while it ran ({', '.join(stage.deps[:1])}, …)",
                    fix="run again; nothing was published",
                )
            _publish(stage, staging, root)
        except OSError as error:
            if error.errno in files.FULL:
                raise files.no_space(Path(error.filename or staging)) from None
            raise
        finally:
            files.remove(staging)
        record = Record(stage.name, round(time.monotonic() - start, 3), summary, _look_of(root, stage))
        files.write_json(_record_path(root, stage.name), record.__dict__)
        return record


def checkpoints(root: Path, name: str) -> Path:
    """Return the folder of a stage's checkpoints, which is deleted once its outs are published."""
    return root / ".headstart" / "checkpoints" / name


def _publish(stage: Stage, staging: Path, root: Path) -> None:
    missing = [out for out in stage.outs if not (staging / out).exists()]
    assert not missing, f"{stage.name} did not write {missing}"
    for out in stage.outs:
        files.swap_in(staging / out, root / out, staging / ".old")


def _record_path(root: Path, name: str) -> Path:
    return root / ".headstart" / "records" / f"{name}.json"


def last_record(root: Path, stage: Stage) -> Record | None:
    """Return the record of the run that wrote a stage's present outs, if this project has it."""
    try:
        record = Record(**json.loads(_record_path(root, stage.name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return record if record.outs == _look_of(root, stage) else None


def _look_of(root: Path, stage: Stage) -> str:
    """Return a digest of a stage's outs: files count by content, folders by names, sizes and times.

    DVC rewrites a file when it commits it, and leaves a folder's files alone.
    """

    def facts(out: Path) -> Iterator[tuple[object, ...]]:
        if out.is_file():
            yield out.relative_to(root), files.sha256_file(out)
            return
        for file in _walk(out):
            yield file.relative_to(root), file.stat().st_size, file.stat().st_mtime_ns

    return _digest(fact for out in stage.outs for fact in facts(root / out))


def refuse_changes(root: Path, params: Params, name: str) -> None:
    """Refuse to run or to publish if a stage's code or params.yaml changed after this process started.

    Raises:
        InputError: something changed; the message names it.
    """
    changed = code_digest.changed_since_start(code_digest.closure(f"tasks.{name}"))
    if changed:
        raise InputError(f"{name}: its code changed since this process started: {', '.join(changed[:3])}", fix="run again")
    if load_params(root / "params.yaml") != params:
        raise InputError(f"{name}: params.yaml changed since this process started", fix="run again")


def signature(root: Path, paths: Iterable[str]) -> str:
    """Return a digest of names, inodes, sizes and times below `paths`. It changes when an input is touched.

    It can only refuse to publish. DVC decides by content whether a stage is fresh.
    """
    stats = ((file, file.stat()) for path in sorted(paths) for file in _walk(root / path))
    return _digest((file, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file, s in stats)


def _digest(facts: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for fact in facts:
        digest.update("\0".join(map(str, fact)).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def _walk(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        if path.exists():
            yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            file = Path(folder, name)
            if file.exists():
                yield file
