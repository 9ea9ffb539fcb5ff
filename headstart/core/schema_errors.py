"""Say what is wrong with a YAML file, from the error of the schema that it was validated against."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MAX_SHOWN = 200  # characters of a wrong value
MAX_LINES = 15  # of an error message: one screen
# Names of earlier versions. They are refused, and the message gives the new name.
RENAMED = {"precompute.map_after": "precompute.cache_map_after", "promote.level": "promote.alpha"}
RENAMED_VALUES = {"data.near_duplicates": {"hold_out": "exclude"}}


def explain(error: ValidationError, path: Path, schema: type[BaseModel]) -> str:
    """Return a pydantic error in the words of params.yaml: each key, its value, and what is allowed.

    Args:
        path: of the YAML file.
        schema: the model that was validated.
    """
    seen: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    items = error.errors(include_url=False)
    keys = [_key_of(item, schema) for item in items]
    renamed = {RENAMED.get(key) for key in keys}
    for key, item in zip(keys, items, strict=True):
        if item["type"] == "missing" and key in renamed:
            continue  # it is present under its old name
        seen.setdefault(key, []).extend(_allowed(item, schema))
        values[key] = item.get("input")
    # where a list or a word is allowed, an error inside the list replaces the one about the list
    wrong = {key: allowed for key, allowed in seen.items() if not any(other.startswith(f"{key}.") for other in seen)}
    lines = [f"{path}: {len(wrong)} wrong:"]
    for key, allowed in wrong.items():
        shown = "" if isinstance(values[key], Mapping) else f" = {_shown(values[key])}"
        lines.append(f"  {key or 'params'}{shown}: {_either(list(dict.fromkeys(allowed)))}")
    return "\n".join(lines[: MAX_LINES + 1] + ([f"  … and {len(wrong) - MAX_LINES} more"] if len(wrong) > MAX_LINES else []))


def _either(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:  # YAML can make a list that holds itself
        return "a value that contains itself"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _allowed(item: Any, schema: type[BaseModel]) -> list[str]:
    """Return what is allowed instead, as alternatives."""
    key = _key_of(item, schema)
    if item["type"] == "extra_forbidden" and key in RENAMED:
        return [f"it is called {RENAMED[key]} now"]
    if item["type"] == "extra_forbidden":
        return ["unknown key, allowed here: " + ", ".join(_keys_at(item["loc"][:-1], schema))]
    if item["type"] == "literal_error" and str(item["input"]) in RENAMED_VALUES.get(key, {}):
        return [f"it is called {RENAMED_VALUES[key][item['input']]} now"]
    if item["type"] == "literal_error":
        return re.findall(r"'([^']*)'", item["ctx"]["expected"])
    if item["type"] == "model_type":
        return ["a mapping of " + ", ".join(_keys_at(item["loc"], schema))]
    if item["type"] == "bool_type":
        return ["true", "false"]
    return [str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")]


def _key_of(item: Any, schema: type[BaseModel]) -> str:
    """Return the key of an error as it is in params.yaml: pydantic adds the member of a union that it tried."""
    of_a_key = item["type"] in ("extra_forbidden", "invalid_key")
    *parts, last = item["loc"] or ("",)
    keys = [*_keys(parts, schema), str(last)] if of_a_key else list(_keys(item["loc"], schema))
    return ".".join(keys)


def _keys(location: Sequence[int | str], schema: type[BaseModel]) -> Iterator[str]:
    annotation: Any = schema
    for part in location:
        model = model_in(annotation)
        if isinstance(part, str) and model is not None and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            yield part
        elif isinstance(part, int):
            yield str(part)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation names, directly or as a list's items."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := model_in(inner))), None)


def _keys_at(location: Sequence[int | str], schema: type[BaseModel]) -> list[str]:
    model = schema
    for part in _keys(location, schema):
        if part in model.model_fields:  # else it is an index
            model = model_in(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)
