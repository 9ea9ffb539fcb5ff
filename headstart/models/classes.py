"""The classes that a model knows, and the data's classes that it does not know; read from the file's header without torch."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.core.errors import InputError
from headstart.manifest import read_manifest

LENGTH_BYTES, MOST_BYTES = 8, 100_000_000  # of a safetensors file's header, which starts with its length


def classes_of(model: Path) -> tuple[str, ...]:
    """Return the classes in a model file's card, in the order of its logits.

    Raises:
        InputError: the file is not a Headstart model, or is damaged.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with model.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(length, MOST_BYTES)))
        return tuple(json.loads(header["__metadata__"]["headstart"])["classes"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{model}: not a Headstart model, or damaged") from None


def unknown_classes(model: Path, manifest: Path) -> list[str]:
    """Return the present data's classes that a model was not trained on; none if the manifest cannot be read."""
    try:
        labels = read_manifest(manifest, ("label",))["label"]
    except InputError:  # predictions do not need the manifest
        return []
    return sorted(set(labels) - set(classes_of(model)))


def warning(unknown: list[str]) -> str:
    """Return the warning about classes that a model does not know."""
    shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
    return (
        f"this model does not know {len(unknown)} of the classes that the data has now: {shown};"
        " it predicts other classes for their images (--model challenger uses the newest model)"
    )
