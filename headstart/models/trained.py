"""Trained models on disk: safetensors files whose metadata has everything that is needed to use them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from headstart.core.errors import InputError
from headstart.core.files import canonical_json, sha256_bytes, write_bytes
from headstart.images.preprocessing import Preprocessing, normalise
from headstart.models.backbones import bare_backbone
from headstart.models.column_head import ColumnSpec
from headstart.models.heads import Classifier, HeadSpec, build_head
from headstart.models.weights import unshared
from headstart.targets.kinds import target_of
from headstart.targets.target import Target

SAME = 1e-3  # tolerance relative to the largest logit: other memory layouts give other last bits


@dataclass(frozen=True)
class ModelCard:
    """The description of a model in its file.

    Args:
        backbone: architecture name.
        options: arguments of the library's constructor besides the name; with other options the same weights would be
            another model.
        preprocessing: that the body expects; None without images.
        limits: max_pixels, min_side and formats of images, as in params.yaml.
        head: how to build the head.
        target: what the model answers, with its classes, thresholds or scale.
        provenance: digests of what the model was made from.
        columns: how a table's columns are encoded, joined and counted (see `columns.recipe`); None without columns.
    """

    backbone: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing | None
    limits: Mapping[str, Any]
    head: HeadSpec
    target: Target
    provenance: Mapping[str, str]
    columns: Mapping[str, Any] | None = None

    @property
    def for_images(self) -> Preprocessing:
        """Return the preprocessing of images.

        Raises:
            InputError: the model takes none.
        """
        if self.preprocessing is None:
            raise InputError(
                "this model learned from the columns of a table, without images",
                fix="python -m flows.predict --table FILE predicts a table's rows",
            )
        return self.preprocessing


class Outdated(InputError):
    """The error for a model file of an earlier version, which lacks the information to build its network."""


def save_model(path: Path, module: nn.Module, card: ModelCard) -> None:
    """Write a module's state and its card atomically; equal models give equal bytes.

    The metadata has a checksum of tensors and card, which is verified on load.
    """
    state = unshared(module.state_dict())
    fields = card.__dict__ | {
        "preprocessing": card.preprocessing.as_dict() if card.preprocessing else None,
        "head": asdict(card.head),
        "target": card.target.as_dict(),
    }
    write_bytes(path, _file(state, fields | {"sha256": sha256_bytes(_file(state, fields))}))


def load_card(path: Path) -> ModelCard:
    """Read a model file's card.

    Raises:
        InputError: the file is missing, damaged, or not a Headstart model.
    """
    return _read(path)[1]


def load_head(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load a trained head in eval mode.

    Raises:
        InputError: the file is missing, damaged, or not a head.
    """
    state, card = _read(path)
    head = build_head(card.head, seed=0)
    _fill(head, state, path, "a head")
    return head.eval(), card


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Load what fine_tune wrote, in eval mode: body and head, or the head alone where there are no images.

    Raises:
        InputError: the file is missing, damaged, or not a whole model.
    """
    return load_head(path) if load_card(path).preprocessing is None else load_classifier(path)


def load_classifier(path: Path) -> tuple[Classifier, ModelCard]:
    """Load a fine-tuned model, body and head, in eval mode.

    Raises:
        InputError: the file is missing, damaged, or not a whole model.
    """
    state, card = _read(path)
    backbone = bare_backbone(card.backbone, card.for_images, card.options)
    model = Classifier(backbone.body, build_head(card.head, seed=0))
    _fill(model, state, path, "a whole model")
    return model.eval(), card


def refuse_another(path: Path, model: nn.Module, views: torch.Tensor) -> None:
    """Read a model file back and refuse it if its answers differ from those of the model that was saved.

    This finds parts of a network that its file lacks, such as an option of its constructor or a buffer that is not saved.

    Args:
        views: images [n, 3, s, s] uint8.

    Raises:
        InputError: the answers differ.
    """
    loaded, card = load_classifier(path)
    x: Any = normalise(views, card.for_images)
    if card.head.columns is not None:
        x = (x, torch.zeros(len(views), card.head.columns.width))
    trained = copy.deepcopy(model).cpu().eval()
    with torch.inference_mode():
        found, wanted = loaded(x), trained(x)
    if not (found - wanted).abs().max() <= SAME * wanted.abs().max():
        raise InputError(
            f"{path}: {card.backbone} answers differently after loading: logits differ by {(found - wanted).abs().max():.3g}",
            wanted="the same answers before saving and after loading",
            fix="choose another backbone, and report this: its constructor has an option that Headstart does not save",
        )


def _fill(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path, what: str) -> None:
    if module.state_dict().keys() != state.keys():
        raise InputError(
            f"{path}: not {what}", wanted="models/fine_tuned.safetensors is a whole model, models/head.safetensors a head"
        )
    module.load_state_dict(state)


def _file(state: Mapping[str, torch.Tensor], fields: Mapping[str, Any]) -> bytes:
    """Return the file's bytes; one metadata value holds all fields, because safetensors does not keep metadata in order."""
    return save(dict(state), metadata={"headstart": canonical_json(fields)})


def _card(fields: Mapping[str, Any]) -> ModelCard:
    """Return the card that a file's metadata describes.

    Raises:
        KeyError, TypeError, ValueError: it describes none.
    """
    head, preprocessing = dict(fields["head"]), fields["preprocessing"]
    head["columns"] = ColumnSpec.from_dict(head["columns"]) if head["columns"] else None
    parts = {
        "preprocessing": Preprocessing.from_dict(preprocessing) if preprocessing else None,
        "head": HeadSpec(**head),
        "target": target_of(fields["target"]),
    }
    return ModelCard(**{**fields, **parts})


def _read(path: Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", fix="run the pipeline first") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}", fix="delete it and run the pipeline again") from None
    fields: dict[str, Any] = {}
    try:
        fields = json.loads(metadata["headstart"])
        checksum = fields.pop("sha256")
        sound = checksum == sha256_bytes(_file(state, fields))
        card = _card(fields)
    except (KeyError, TypeError, ValueError):
        if "backbone" in fields and not fields.keys() >= {"options", "limits", "target", "columns"}:
            raise Outdated(
                f"{path}: this model was written by an earlier version of Headstart",
                fix="run the pipeline again",
            ) from None
        raise InputError(f"{path}: a weights file, but not a Headstart model") from None
    if not sound:
        raise InputError(f"{path}: its checksum does not match: damaged", fix="delete it and run the pipeline again")
    return state, card
