"""Find which first-party files a module runs, and their content when this process started.

The import closure decides what depends on code: the stages of dvc.yaml (`make deps`), a checkpoint's identity, the names of
the activation cache's namespaces, what a scan or a prediction remembers, and whether a stage may publish.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

FIRST_PARTY = ("headstart", "tasks", "flows")
SUFFIXES = (".py", ".j2")
CODE_ROOT = Path(__file__).resolve().parents[2]


def file_digests(root: Path) -> dict[str, str]:
    """Return the hex SHA-256 of every first-party source file below `root`, by its relative path (5 ms in all)."""
    found = (path for package in FIRST_PARTY for path in (root / package).rglob("*") if path.suffix in SUFFIXES)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


# Import time is the right time for this work. If it came after the rest of the code is imported, an edit in between
# would run as the old code and be committed as the new code.
CODE_AT_START = file_digests(CODE_ROOT)


@functools.cache
def closure(*modules: str, without: tuple[str, ...] = (), root: Path = CODE_ROOT) -> tuple[str, ...]:
    """Return the first-party files that importing some modules runs or opens, packages' `__init__` included, sorted.

    An import counts wherever it stands in a module, except below `if TYPE_CHECKING:` and `if __name__ == "__main__":`. A
    string that is a module's dotted name counts like an import (a child process runs that module). A string that is a
    file's name counts if that file lies beside the module (a template).

    Args:
        modules: dotted names, such as "tasks.fine_tune".
        without: folders or files to leave out, because their code cannot change the result in question.
        root: the folder that holds the packages.
    """
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        parts = waiting.pop().split(".")
        if parts[0] not in FIRST_PARTY:
            continue
        for name in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            path = _module_file(name, root)
            if path is not None and path not in seen:
                seen.add(path)
                modules_used, files_opened = _uses(root / path)
                waiting += modules_used
                seen |= {(root / path).with_name(file).relative_to(root).as_posix() for file in files_opened}
    return tuple(sorted(path for path in seen if not any(path == one or path.startswith(f"{one}/") for one in without)))


def digest(files: Iterable[str], digests: dict[str, str] = CODE_AT_START) -> str:
    """Return a hex SHA-256 of first-party files' names and contents, by default as they were when this process started."""
    return hashlib.sha256("".join(f"{name}\0{digests.get(name)}\n" for name in sorted(files)).encode()).hexdigest()


def changed_since_start(files: Iterable[str]) -> list[str]:
    """Return those of the given first-party files that have changed since this process started."""
    now = file_digests(CODE_ROOT)
    return [name for name in files if now.get(name) != CODE_AT_START.get(name)]


def _module_file(name: str, root: Path) -> str | None:
    path = root.joinpath(*name.split("."))
    found = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    return None if found is None else found.relative_to(root).as_posix()


@functools.cache
def _uses(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the dotted names that a module imports or starts, and the files beside it that it opens."""
    modules: set[str] = set()
    files: set[str] = set()
    for node in executed(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split(".")
            if words[0] in FIRST_PARTY and len(words) > 1 and all(word.isidentifier() for word in words):
                modules.add(node.value)
            elif node.value.endswith(SUFFIXES) and "/" not in node.value and path.with_name(node.value).is_file():
                files.add(node.value)
    return frozenset(modules), frozenset(files)


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except those that run only for a type checker, or only when the module is run as a command."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        yield node
        yield from executed(node)
