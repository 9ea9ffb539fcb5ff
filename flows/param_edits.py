"""Edit params.yaml: merge a recipe, set single values. An edit is checked before it is made."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.core.errors import InputError
from headstart.core.files import write_bytes
from headstart.core.params import Params, check_params, is_text
from headstart.core.schema_errors import RENAMED
from headstart.core.yaml_text import dump_yaml, one_line, parse_yaml, read_yaml, text_value

DEFAULT_RECIPE = "digits.yaml"
OF_A_HOME = ("data.source", "backbone.weights", "runtime.cache_dir")  # `~` is expanded here: no shell does so after a `=`


@dataclass(frozen=True)
class Edit:
    """A change of params.yaml, checked but not written yet.

    Args:
        path: params.yaml.
        params: the parameters after the change.
        before, after: the file's text before and after, both as our YAML writer formats it.
        original: the file's bytes before the change.
    """

    path: Path
    params: Params
    before: str
    after: str
    original: bytes

    def diff(self) -> str:
        """Return the change as a unified diff; empty if nothing changes."""
        lines = (self.before.splitlines(keepends=True), self.after.splitlines(keepends=True))
        return "".join(difflib.unified_diff(*lines, f"{self.path.name}, as it is", f"{self.path.name}, as it will be", n=0))

    def make(self) -> Params:
        """Write the file, if it changes."""
        if self.after != self.before:
            write_bytes(self.path, self.after.encode())
        return self.params

    def undo(self) -> bool:
        """Restore the file as it was before `make`, unless it was changed since. Return whether it was restored."""
        made = self.after != self.before and self.path.is_file() and self.path.read_bytes() == self.after.encode()
        if made:
            write_bytes(self.path, self.original)
        return made


def edit_params(path: Path, assignments: Iterable[str], recipe: Path | None = None) -> Edit:
    """Prepare an edit of params.yaml by a recipe and then single values. It keeps the comments and checks every value.

    Args:
        path: params.yaml.
        assignments: `section.key=value` texts, as `dvc exp run -S` takes. A text parameter gets the value as written
            (without quotes around all of it); any other value is read as YAML.
        recipe: a YAML file with some of params.yaml's keys. The default recipe beside it is merged first, so that nothing of
            another recipe stays.

    Raises:
        InputError: the recipe is missing, an assignment has no `=`, a key is unknown, or a value is bad.
    """
    document = read_yaml(path)
    before = dump_yaml(document)
    if recipe is not None:
        for file in dict.fromkeys([_default(recipe), recipe]):
            _merge(document, _read_recipe(file), file.name, "")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: no '='", wanted="section.key=value", fix="--set train_head.epochs=3")
        _assign(document, key.strip(), text, path)
    after = dump_yaml(document)
    return Edit(path, check_params(parse_yaml(after, str(path)), path), before, after, path.read_bytes())


def set_params(path: Path, assignments: Iterable[str]) -> Params:
    """Edit params.yaml in place by `section.key=value` texts; see `edit_params`."""
    return edit_params(path, assignments).make()


def _default(recipe: Path) -> Path:
    """Return the default recipe beside a recipe; the recipe itself if there is none."""
    default = recipe.with_name(DEFAULT_RECIPE)
    return default if default.is_file() and recipe.is_file() else recipe


def _read_recipe(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"--recipe {path.stem}: {path} does not exist", wanted=f"one of: {known}")
    overlay = read_yaml(path)
    if not isinstance(overlay, Mapping):
        raise InputError(f"{path}: not a mapping of sections", wanted="sections and keys as in params.yaml")
    return overlay


def _merge(document: Any, overlay: Mapping[str, Any], name: str, prefix: str) -> None:
    for key, value in overlay.items():
        if f"{prefix}{key}" in RENAMED:
            raise InputError(f"{name}: {prefix}{key}: it is called {RENAMED[f'{prefix}{key}']} now")
        if not isinstance(document, dict) or key not in document:
            known = ", ".join(sorted(document)) if isinstance(document, dict) else "none"
            raise InputError(f"{name}: {prefix}{key}: params.yaml has no such key", wanted=f"one of: {known}")
        if isinstance(value, Mapping):
            _merge(document[key], value, name, f"{prefix}{key}.")
        else:
            document[key] = one_line(value)


def _assign(document: Any, key: str, text: str, path: Path) -> None:
    *sections, last = key.split(".")
    node = document
    for section in sections:
        node = node.get(section) if isinstance(node, Mapping) else None
    if key in RENAMED:
        raise InputError(f"--set {key}: it is called {RENAMED[key]} now", fix=f"--set {RENAMED[key]}={text}")
    if not isinstance(node, dict) or last not in node:
        known = ", ".join(sorted(node)) if isinstance(node, dict) else ", ".join(sorted(document))
        raise InputError(f"--set {key}: {path.name} has no such key", wanted=f"one of: {known}")
    node[last] = text_value(_as_written(key, text)) if is_text(key) else _read_value(key, text)


def _as_written(key: str, text: str) -> str:
    """Return the text as typed (` #`, `: `, `[`, backslashes), without quotes around all of it; a path's `~` is expanded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"--set {key}={text!r}: not UTF-8 text", fix="rename the file or folder") from None
    inner = text[1:-1]
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in inner:
        text = inner
    return os.path.expanduser(text) if key in OF_A_HOME else text


def _read_value(key: str, text: str) -> Any:
    try:
        return parse_yaml(text, f"--set {key}={text}")
    except InputError as error:
        raise InputError(
            str(error), wanted="a value as in params.yaml, such as 3, auto, true or [1.0e-4, 1.0e-3, 0.1]"
        ) from None
