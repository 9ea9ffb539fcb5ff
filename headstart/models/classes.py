"""What a model answers, and the data's classes that it does not know; read from the file's header without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headstart.core.errors import InputError

LENGTH_BYTES, MOST_BYTES = 8, 100_000_000  # of a safetensors file's header, which starts with its length


def target_in(model: Path) -> dict[str, Any]:
    """Return the target in a model file's card as JSON values, see `Target.as_dict`; it raises as `part_of_card` does."""
    target: dict[str, Any] = part_of_card(model, "target")
    return target


def part_of_card(model: Path, name: str) -> Any:
    """Return a part of a model file's card as JSON values, see `ModelCard`.

    Raises:
        InputError: the file is not a Headstart model, or is damaged.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with model.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(length, MOST_BYTES)))
        return json.loads(header["__metadata__"]["headstart"])[name]
    except FileNotFoundError:
        raise InputError(f"{model}: no such file", fix="run the pipeline first") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{model}: not a Headstart model, or damaged") from None


def unknown_classes(model: Path, target: Path) -> list[str]:
    """Return the present data's classes that a model was not trained on; none if data/target.json cannot be read."""
    try:
        classes = json.loads(target.read_text()).get("classes", ())
    except (OSError, ValueError):  # predictions do not need it
        return []
    return sorted(set(classes) - set(target_in(model).get("classes", ())))


def warning(unknown: list[str]) -> str:
    """Return the warning about classes that a model does not know."""
    shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
    return (
        f"this model does not know {len(unknown)} of the classes that the data has now: {shown};"
        " it predicts other classes for their images (--model challenger uses the newest model)"
    )
