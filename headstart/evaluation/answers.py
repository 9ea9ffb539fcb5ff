"""Answers for the test images: by the head and by the fine-tuned model, on the base view and with test-time augmentation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from headstart.activations.inputs import HeadInputs
from headstart.images.loader import ImageSource
from headstart.models.trained import load_head
from headstart.prediction.predictor import Predictor
from headstart.targets.target import Answered, tta
from headstart.training.validation import collect_logits


def image_answers(
    inputs: HeadInputs, head_file: Path, tuned: Predictor, images: ImageSource, test: pd.DataFrame, formula: str
) -> dict[str, Answered]:
    """Return the four models' answers for the test images, by name.

    Args:
        head_file: models/head.safetensors; its answers come from cached activations.
        tuned: the fine-tuned model; its answers are computed by precompute's engine.
        test: the manifest's rows, each image once.
        formula: see `tta`.

    Raises:
        InputError: an image has changed since the manifest was made.
    """
    head, card = load_head(head_file)
    keys = list(test["key"])
    head_vnc = torch.stack([collect_logits(head, [x_nd]) for x_nd in inputs.all_views(keys)])
    files = list(zip(test["path"], keys, strict=True))
    columns = inputs.columns.rows(keys) if inputs.columns else None
    tuned_vnc = tuned.logits_of_files(images, files, inputs.views, "classifying test images", columns)
    answered: dict[str, Answered] = {}
    for name, logits_vnc, target in (("head", head_vnc, card.target), ("fine_tuned", tuned_vnc, tuned.card.target)):
        views = target.answers(logits_vnc)
        answered |= {name: Answered(views[0], target), f"{name}_tta": Answered(tta(views, formula), target)}
    return answered
