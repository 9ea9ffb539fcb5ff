"""Write the code dependencies of each stage into dvc.yaml: `make deps`. tests/test_graph.py fails when they are out of date."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from headstart.core.code_digest import CODE_ROOT, FIRST_PARTY, SUFFIXES, closure
from headstart.core.yaml_text import dump_yaml, read_yaml

MOST_IDLE = 0.05  # of the lines that a stage depends on


def as_deps(files: Iterable[str], root: Path = CODE_ROOT) -> list[str]:
    """First-party files as dependencies in dvc.yaml, folders for their files as long as hardly a line is idle.

    Folders with the fewest idle lines (which the stage does not run) come first, until a twentieth of all lines is idle.
    """
    wanted = set(files)
    idle_in = {folder: _idle(_below(folder, root), wanted, root) for folder in {_folder(name) for name in wanted} - {""}}
    left, whole = MOST_IDLE * sum(_lines(root / name) for name in wanted), list[str]()
    for folder, idle in sorted(idle_in.items(), key=lambda pair: (pair[1], pair[0])):
        if idle <= left:
            left, whole = left - idle, [*whole, folder]
    single = [name for name in wanted if _folder(name) not in whole]
    return sorted([*whole, *single], key=lambda name: (not name.startswith("tasks"), name))


def idle_share(deps: Iterable[str], files: Iterable[str], root: Path = CODE_ROOT) -> float:
    """The share of the lines below a stage's code dependencies that the stage does not run."""
    below = [path for dep in deps for path in (_below(dep, root) if (root / dep).is_dir() else [root / dep])]
    return _idle(below, set(files), root) / sum(map(_lines, below))


def _folder(name: str) -> str:
    """The room that a file may be named by; empty for files at the top and for tasks, which share nothing."""
    return str(Path(name).parent) if name.count("/") > 1 else ""


def _below(folder: str, root: Path) -> list[Path]:
    return [path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]


def _idle(paths: Iterable[Path], wanted: set[str], root: Path) -> int:
    return sum(_lines(path) for path in paths if path.relative_to(root).as_posix() not in wanted)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def main() -> None:
    path = CODE_ROOT / "dvc.yaml"
    document = read_yaml(path)
    for name, stage in document["stages"].items():
        kept = [dep for dep in stage["deps"] if str(dep).partition("/")[0] not in FIRST_PARTY]
        stage["deps"][:] = [*kept, *as_deps(closure(f"tasks.{name}"))]
    path.write_text(dump_yaml(document))


if __name__ == "__main__":
    main()
