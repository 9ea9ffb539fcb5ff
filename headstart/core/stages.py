"""The graph as dvc.yaml states it, and how one stage is run: lock, stage aside, check, publish, record."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headstart.core import files, offspring, snapshot
from headstart.core.errors import InputError, guarded
from headstart.core.params import Params, load_params

logger = logging.getLogger("headstart")

Summary = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, its templates filled in."""

    name: str
    command: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What a stage's function gets: its parameters, the project to read from, a folder to write into.

    `out` mirrors the project: what is written to `out / "models/head.safetensors"` is published as
    `models/head.safetensors` once the stage is complete. `checkpoints` outlives an interruption.
    """

    params: Params
    root: Path
    out: Path
    checkpoints: Path

    def output(self, relative: str) -> Path:
        """The path to write `relative` at, its folder made."""
        path = self.out / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


StageFunction = Callable[[Job], Summary]


@dataclass(frozen=True)
class Record:
    """What the last run of a stage was like; kept in .headstart/records, never in an out."""

    stage: str
    seconds: float
    summary: Summary
    outs: str


def load_graph(root: Path, params: Params) -> dict[str, Stage]:
    """The stages of dvc.yaml by name, in its order.

    Raises:
        InputError: there is no dvc.yaml.
    """
    path = root / "dvc.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such file", fix="run from the project's root")
    document = YAML(typ="safe", pure=True).load(path)
    values = params.model_dump()
    return {name: _stage(name, body, values) for name, body in document["stages"].items()}


def _stage(name: str, body: Mapping[str, Any], values: Mapping[str, Any]) -> Stage:
    outs = [*body.get("outs", ()), *body.get("metrics", ()), *body.get("plots", ())]
    return Stage(
        name=name,
        command=body["cmd"],
        deps=tuple(_fill(dep, values) for dep in body.get("deps", ())),
        params=tuple(body.get("params", ())),
        outs=tuple(_fill(next(iter(out)) if isinstance(out, Mapping) else out, values) for out in outs),
    )


def _fill(text: str, values: Mapping[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        node: Any = values
        for key in match[1].split("."):
            node = node[key]
        return str(node)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def run_stage(stage: Stage, function: StageFunction, root: Path, params: Params) -> Record:
    """Run one stage and publish its outs, each swapped in whole by rename.

    Raises:
        InputError: bad input; or code, parameters or inputs changed while the stage ran. Nothing is
            published then, and the outs of the run before survive.
    """
    refuse_changes(root, params, stage.name)
    with files.locked(root / ".headstart" / "locks" / f"{stage.name}.lock", f"stage {stage.name}"):
        staging = root / ".headstart" / "tmp" / stage.name
        files.remove(staging)
        staging.mkdir(parents=True)
        inputs = signature(root, stage.deps)
        start = time.monotonic()
        try:
            summary = function(Job(params, root, staging, checkpoints(root, stage.name)))
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
    """Where a stage keeps what lets it go on after an interruption; deleted when its outs are safe."""
    return root / ".headstart" / "checkpoints" / name


def _publish(stage: Stage, staging: Path, root: Path) -> None:
    missing = [out for out in stage.outs if not (staging / out).exists()]
    assert not missing, f"{stage.name} did not write {missing}"
    for out in stage.outs:
        files.swap_in(staging / out, root / out, staging / ".old")


def _record_path(root: Path, name: str) -> Path:
    return root / ".headstart" / "records" / f"{name}.json"


def last_record(root: Path, stage: Stage) -> Record | None:
    """The record of the run of a stage that wrote the outs that lie there now, if this project folder has it."""
    try:
        record = Record(**json.loads(_record_path(root, stage.name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return record if record.outs == _look_of(root, stage) else None


def _look_of(root: Path, stage: Stage) -> str:
    """A digest of a stage's outs: of files by content, of folders by names, sizes and times.

    DVC writes a file out again when it commits it, and leaves a folder's files alone.
    """

    def facts(out: Path) -> Iterator[tuple[object, ...]]:
        if out.is_file():
            yield out.relative_to(root), files.sha256_file(out)
            return
        for file in _walk(out):
            yield file.relative_to(root), file.stat().st_size, file.stat().st_mtime_ns

    return _digest(fact for out in stage.outs for fact in facts(root / out))


def refuse_changes(root: Path, params: Params, name: str) -> None:
    """Refuse to run or to publish when code or params.yaml are not what this process started with.

    Raises:
        InputError: naming which of the two changed.
    """
    if snapshot.code_digest(snapshot.CODE_ROOT) != snapshot.CODE_AT_START:
        raise InputError(f"{name}: the project's code changed since this process started", fix="run again")
    if load_params(root / "params.yaml") != params:
        raise InputError(f"{name}: params.yaml changed since this process started", fix="run again")


def signature(root: Path, paths: Iterable[str]) -> str:
    """A digest of names, inodes, sizes and times below `paths`: changes when an input is touched.

    It only ever refuses; what is fresh is decided by content (DVC).
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


def main(name: str, function: StageFunction, after: Callable[[Path, Params], object] | None = None) -> None:
    """The body of `python -m tasks.NAME`: run the stage in the current folder and exit.

    Args:
        name: the stage's name in dvc.yaml.
        function: its function.
        after: called once the stage's outs are published.
    """

    def run() -> int:
        if len(sys.argv) > 1 and sys.argv[0].endswith(f"{name}.py") and name != "link_data":
            raise InputError(f"tasks.{name}: unknown argument {sys.argv[1]!r}", wanted="none: params.yaml has all settings")
        root = Path.cwd()
        params = load_params(root / "params.yaml")
        record = run_stage(load_graph(root, params)[name], function, root, params)
        files.remove(checkpoints(root, name))
        logger.info("%s done in %.1f s", name, record.seconds)
        if after is not None:
            after(root, params)
        return 0

    command_line()
    sys.exit(guarded(run))


def command_line() -> None:
    """Set a command-line process up: our log lines on stderr, SIGTERM as an orderly exit with 143, no child outlives it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    signal.signal(signal.SIGTERM, _terminate)
    offspring.guard(Path.cwd())


def _terminate(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)
