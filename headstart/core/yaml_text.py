"""Read and write YAML with its comments."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from headstart.core.errors import InputError

# What ruamel.yaml raises on faulty text, in addition to its own YAMLError.
_NOT_YAML = (YAMLError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # long lines are not wrapped
    return yaml


# Words that are no text in YAML 1.1, which other programs read.
_NOT_TEXT = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null|nan|inf)")


def text_value(text: str) -> str:
    """Return text as a value of a document; it is quoted unless every reader reads it as text without quotes."""
    if re.fullmatch(r"[A-Za-z./_][A-Za-z0-9./_-]*", text) and not _NOT_TEXT.fullmatch(text.strip("./_-")):
        return text
    return SingleQuotedScalarString(text) if text.isprintable() else DoubleQuotedScalarString(text)


def one_line(value: Any) -> Any:
    """Return a value that is written in one line: a list in lines of its own would move the comment behind its key."""
    if isinstance(value, CommentedSeq | CommentedMap):
        value.fa.set_flow_style()
        for inner in value.values() if isinstance(value, CommentedMap) else value:
            one_line(inner)
    return value


def dump_yaml(document: Any) -> str:
    """Return the YAML text of a document that this module read, comments included."""
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text with its comments; `name` is for messages.

    Raises:
        InputError: the text is no YAML.
    """
    try:
        return _yaml().load(text)
    except _NOT_YAML as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{name}: cannot be read as YAML: {problem.splitlines()[0]}") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file with its comments.

    Raises:
        InputError: the file is missing or no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run from the project's root") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    return parse_yaml(text, str(path))
