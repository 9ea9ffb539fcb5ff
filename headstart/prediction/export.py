"""Export a model as one file that runs without Headstart: a torch exported program (.pt2) that describes its preprocessing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart.activations.engine import probe_images
from headstart.core.errors import InputError
from headstart.core.files import atomic_path, canonical_json
from headstart.images.preprocessing import Preprocessing, normalise
from headstart.models.trained import load_classifier
from headstart.targets.target import Target

CARD = "headstart.json"  # the extra file inside: classes, image size, cropping, digests of what the model was made from
TOLERANCE = 1e-4  # of a probability: the operations are the same, but their order may differ


class _FromViews(nn.Module):
    """Views [n, 3, s, s] uint8 to answers [n, c] float32, see `Target.answers`."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, target: Target) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.target = target

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(normalise(views, self.preprocessing))
        return self.target.answers(logits).float()


def export(path: Path, out: Path) -> dict[str, Any]:
    """Write a model file as an exported program for any number of views [n, 3, s, s] uint8, and check its answers.

    `torch.export.load(out, extra_files={"headstart.json": ""})` reads it without Headstart.
    Source: https://docs.pytorch.org/docs/stable/export.html

    Args:
        path: a model file of Headstart.
        out: the .pt2 file.

    Returns:
        The content of the extra file.

    Raises:
        InputError: the model cannot be exported, or the program's answers differ from the model's.
    """
    model, card = load_classifier(path)
    if card.columns is not None:
        found = f"{path}: this model takes columns of a table beside the image"
        raise InputError(found, wanted="a model of images alone", fix="python -m flows.predict --images PATH --table FILE")
    p = card.for_images
    whole = _FromViews(model, p, card.target).eval()
    views = probe_images(p.image_size, 4)
    rows = torch.export.Dim("rows", min=1, max=4096)
    about = {
        "classes": list(card.target.classes),
        "target": card.target.as_dict(),
        "backbone": card.backbone,
        "input": f"views [n, 3, {p.image_size}, {p.image_size}] uint8 RGB; answers [n, {card.target.outputs}] come out",
        "preprocessing": p.as_dict() | {"resized_side": p.resized_side},
        "limits": dict(card.limits),
        "provenance": dict(card.provenance),
    }
    with torch.inference_mode():
        wanted = whole(views)
    try:
        with torch.no_grad():
            program = torch.export.export(whole, (views,), dynamic_shapes=({0: rows},))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: torch cannot export this model: {str(error).splitlines()[0]}") from None
    with atomic_path(out) as temporary:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={CARD: canonical_json(about)})
        temporary.write_bytes(buffer.getvalue())
        check(temporary, views, wanted)
    return about


def check(file: Path, views: torch.Tensor, wanted: torch.Tensor) -> None:
    """Load an exported program and compare its answers with the model's, for all views at once and for one alone.

    Raises:
        InputError: they differ.
    """
    extra = {CARD: ""}
    program = torch.export.load(io.BytesIO(file.read_bytes()), extra_files=extra).module()
    json.loads(extra[CARD])
    with torch.no_grad():
        found, alone = program(views), program(views[:1])
    difference = max(float((found - wanted).abs().max()), float((alone - wanted[:1]).abs().max()))
    if not difference <= TOLERANCE:
        raise InputError(
            f"the exported program's probabilities differ from the model's by {difference:.2g}",
            wanted=f"a difference of at most {TOLERANCE:g}",
        )
