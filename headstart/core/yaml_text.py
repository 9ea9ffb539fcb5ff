"""YAML that keeps its comments when it is written again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from headstart.core.errors import InputError

# What ruamel.yaml raises on faulty text, beside its own YAMLError.
_NOT_YAML = (YAMLError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    return yaml


def dump_yaml(document: Any) -> str:
    """YAML text of a document read by this module, comments included."""
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def parse_yaml(text: str, name: str) -> Any:
    """A document of YAML text, with its comments; `name` is for messages.

    Raises:
        InputError: it is no YAML.
    """
    try:
        return _yaml().load(text)
    except _NOT_YAML as error:
        raise InputError(f"{name}: cannot be read as YAML: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def read_yaml(path: Path) -> Any:
    """A document of a file, with its comments.

    Raises:
        InputError: no such file, or no YAML in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run from the project's root") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    return parse_yaml(text, str(path))
