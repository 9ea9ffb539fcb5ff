"""Which classes a model knows, and which of the data's it does not; read from the file's header, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from headstart.core.errors import InputError
from headstart.manifest import read_manifest

LENGTH_BYTES, MOST_BYTES = 8, 100_000_000  # of a safetensors file's header: its length comes first


def classes_of(model: Path) -> tuple[str, ...]:
    """The classes in a model file's card, in the order of its logits.

    Raises:
        InputError: it is not a model of this project, or damaged.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with model.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(length, MOST_BYTES)))
        return tuple(json.loads(header["__metadata__"]["headstart"])["classes"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{model}: not a model of this project, or a damaged one") from None


def unknown_classes(model: Path, manifest: Path) -> list[str]:
    """Classes that the project's images have now and a model was not trained on; none where no manifest can be read."""
    try:
        labels = read_manifest(manifest, ("label",))["label"]
    except InputError:  # a prediction does not depend on it
        return []
    return sorted(set(labels) - set(classes_of(model)))


def warning(unknown: list[str]) -> str:
    """What to say of classes that a model does not know."""
    shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
    return (
        f"this model does not know {len(unknown)} of the classes that the data has now: {shown};"
        " it gives their images other classes (the newest model is the challenger: --model challenger)"
    )
