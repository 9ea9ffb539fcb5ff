"""Backbones: any torchvision or timm classification model, cut before its classifier.

Shape legend: n images, f features of the map, d activation width (2f for maps, f for tokens), s input side.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torchvision import models as tv

from headstart.core.errors import InputError
from headstart.images.preprocessing import Preprocessing
from headstart.models import weights as weight_files
from headstart.models.families import map_stages
from headstart.models.sizes import forward_once, patch_side, refuse_part_of_a_patch, size_error, unseen_edge
from headstart.seeds import scoped_seed

logger = logging.getLogger("headstart")
TORCHVISION = "torchvision"
TIMM = "timm"


@dataclass(frozen=True)
class Backbone:
    """A frozen body, the preprocessing its weights expect, and its layer groups.

    Args:
        name: as in params.yaml.
        body: images [n, 3, s, s] float32 to activations [n, d], in eval mode, no gradients.
        width: d.
        groups: parameter names of the body by layer group, earliest first.
        preprocessing: from the weights' own metadata, at the chosen image size.
        options: the constructor's arguments besides the name; a model file needs them to build the network again.
        body_parameters, classifier_parameters: number of parameters before and after the cut.
    """

    name: str
    body: nn.Module
    width: int
    groups: dict[str, tuple[str, ...]]
    preprocessing: Preprocessing
    options: Mapping[str, Any]
    body_parameters: int
    classifier_parameters: int


class MapBody(nn.Module):
    """A convolutional body: stages, then the map's average and maximum, concatenated (fastai's concat pool)."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        map_nfhw = self.stages(x_nchw).float()  # pooled in float32 whatever the body's precision
        return torch.cat([map_nfhw.mean((2, 3)), map_nfhw.amax((2, 3))], dim=1)  # [n, 2f]


class TokenBody(nn.Module):
    """A transformer's body: it returns the pooled features that the classifier takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stages = model

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.stages(x_nchw)
        return tokens.float()  # [n, f]


class TimmFeatures(nn.Module):
    """A timm model up to its last activation map or, for a transformer, its pooled features."""

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.pooled = pooled

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model.forward_features(x_nchw)
        return self.model.forward_head(features, pre_logits=True) if self.pooled else features


def library_of(name: str) -> str:
    """Return the library that builds `name`: torchvision if it has that model, else timm.

    Raises:
        InputError: neither library has it; the message lists similar names.
    """
    if name in tv.list_models(module=tv):
        return TORCHVISION
    if timm.is_model(name):
        return TIMM
    import difflib

    known = list(dict.fromkeys([*tv.list_models(module=tv), *timm.list_models()]))
    near = ", ".join(difflib.get_close_matches(name, known, n=6, cutoff=0.4)) or "none"
    raise InputError(
        f"backbone.name: {name!r} is neither a torchvision nor a timm classification model",
        wanted=f"a model of one of these libraries; similar names: {near}",
        fix='python -c "import timm; print(timm.list_models())" lists them all',
    )


def build_backbone(
    name: str,
    weights: str,
    image_size: int,
    *,
    crop_pct: float | Literal["auto"] = "auto",
    seed: int = 0,
    weights_sha256: str = "none",
) -> Backbone:
    """Build a backbone with its weights and cut it before the classifier.

    Args:
        name: a torchvision classification model, or else a timm model.
        weights: "packaged", "imagenet", "random", or a path to .safetensors or .pth.
        image_size: s, pixels.
        crop_pct: the input's side as a share of the resized shorter side; "auto" uses the weights' own value.
        seed: of the initial weights, if `weights` is "random".
        weights_sha256: SHA-256 that the file must have, if `weights` is a path.

    Raises:
        InputError: the name is unknown, the weights are unavailable or do not fit, or the model refuses the image size.
    """
    build = _build_torchvision if library_of(name) == TORCHVISION else _build_timm
    options = _options(name, weights, image_size)
    with scoped_seed(seed):
        model, preprocessing, fit = build(name, weights, image_size, weights_sha256, options)
    if crop_pct != "auto":
        preprocessing = replace(preprocessing, crop_pct=crop_pct)
    backbone = _backbone(name, model, preprocessing, options, fit)
    unseen = unseen_edge(backbone.body, image_size)
    if unseen:
        logger.warning(
            "  %s does not see the last %s of %s pixels; choose another backbone.image_size", name, unseen, image_size
        )
    return backbone


def bare_backbone(name: str, preprocessing: Preprocessing, options: Mapping[str, Any]) -> Backbone:
    """Build the architecture that `options` describe, for weights that are loaded from a model file afterwards."""
    build = _build_torchvision if library_of(name) == TORCHVISION else _build_timm
    with scoped_seed(0):
        model, _, _ = build(name, "random", preprocessing.image_size, "none", options)
    return _backbone(name, model, preprocessing, options, None)


def _backbone(
    name: str, model: nn.Module, preprocessing: Preprocessing, options: Mapping[str, Any], fit: weight_files.Fit | None
) -> Backbone:
    """Cut a model before its classifier; if its weights came from a file, check that the file had all of the body's."""
    size = preprocessing.image_size
    total = sum(parameter.numel() for parameter in model.parameters())
    refuse_part_of_a_patch(patch_side(model), name, size)
    body = _cut(model, name, size).eval().requires_grad_(False)
    if fit is not None:
        weight_files.refuse_misfit(fit, body)
    kept = sum(parameter.numel() for parameter in body.parameters())
    width = forward_once(body, name, size).shape[1]
    return Backbone(name, body, width, _halves(body), preprocessing, options, kept, total - kept)


def _options(name: str, weights: str, size: int) -> dict[str, Any]:
    """Return the constructor's arguments besides the name: those parts of the architecture that depend on parameters."""
    if library_of(name) == TIMM:
        config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        return {"img_size": size} if config.fixed_input_size else {}
    if name.startswith("vit_"):
        return {"image_size": size}
    if name.startswith("maxvit"):
        return {"input_size": [size, size]}
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": weights != "random"}  # as the library sets it for its own weights
    return {}


Built = tuple[nn.Module, Preprocessing, weight_files.Fit | None]


def _build_torchvision(name: str, weights: str, size: int, sha256: str, options: Mapping[str, Any]) -> Built:
    listed = tv.get_model_weights(name).DEFAULT
    # Initial weights of these two take seconds to draw, so they are not drawn if they will be overwritten.
    more = {"init_weights": weights == "random"} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):  # the name ends with the patch size; the constructor's own error is unclear
        refuse_part_of_a_patch(int(name.rpartition("_")[2]), name, size)
    try:
        model = tv.get_model(name, weights=None, **options, **more)
    except (AssertionError, ValueError) as error:
        raise size_error(name, size, error) from None
    fit = weight_files.load_torchvision(model, name, listed, weights, sha256)
    preset = listed.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    mean, std = tuple(preset.mean), tuple(preset.std)
    return model, Preprocessing(size, crop / resize, preset.interpolation.value, mean, std), fit


def _build_timm(name: str, weights: str, size: int, sha256: str, options: Mapping[str, Any]) -> Built:
    config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    try:
        model, fit = weight_files.create_timm(name, weights, options, sha256)
    except (AssertionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise size_error(name, size, error) from None
    mean: Any = tuple(config.mean)
    std: Any = tuple(config.std)
    return model, Preprocessing(size, config.crop_pct or 0.875, config.interpolation or "bicubic", mean, std), fit


def _cut(model: Any, name: str, size: int) -> nn.Module:
    if library_of(name) == TIMM:
        return _cut_timm(model, name, size)
    stages = map_stages(model)
    if stages is not None:
        return MapBody(nn.Sequential(OrderedDict(stages)))
    model.heads = nn.Identity()
    return TokenBody(model)


def _cut_timm(model: Any, name: str, size: int) -> nn.Module:
    """Cut a timm model after its last activation map or, if it has none, after the features that its classifier takes.

    Raises:
        InputError: the model returns something else, such as several maps at once.
    """
    model.reset_classifier(0)
    features = TimmFeatures(model, pooled=False).eval()
    found: Any = forward_once(features, name, size)
    if isinstance(found, torch.Tensor) and found.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NCHW":
        return MapBody(features)
    pooled = TimmFeatures(model, pooled=True).eval()
    found = forward_once(pooled, name, size)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        what = f"a tensor of {found.ndim} dimensions" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"backbone.name: {name} returns {what} before its classifier",
            wanted="an activation map, or a row of features for each image",
            fix="choose another backbone",
        )
    return TokenBody(pooled)


def _halves(body: nn.Module) -> dict[str, tuple[str, ...]]:
    """Divide the stages into two layer groups of about equal size, "early" and "late"; the head is the third group."""
    layers = [names for names in _layers(body) if names]
    middle = math.ceil(len(layers) / 2)
    early = tuple(name for layer in layers[:middle] for name in layer)
    late = tuple(name for layer in layers[middle:] for name in layer)
    return {"early": early, "late": late}


def _by_child(model: nn.Module, prefix: str) -> list[list[str]]:
    """Group parameter names by child module, in order; each layer in a list of layers is a group of its own."""
    layers: list[list[str]] = [[f"{prefix}{name}" for name, _ in model.named_parameters(recurse=False)]]
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            layers += _by_child(child, f"{prefix}{name}.")
        else:
            layers.append([f"{prefix}{name}.{leaf}" for leaf, _ in child.named_parameters()])
    return layers


def _layers(body: nn.Module) -> list[list[str]]:
    stages: Any = body.stages
    if isinstance(stages, TimmFeatures):
        try:
            by_layer = group_parameters(stages.model, stages.model.group_matcher(coarse=True))
        except (AttributeError, AssertionError, NotImplementedError):  # it defines no layers, or no coarse ones
            return _by_child(stages.model, "stages.model.")
        return [[f"stages.model.{name}" for name in by_layer[layer]] for layer in sorted(by_layer)]
    if isinstance(stages, nn.Sequential):
        return [[f"stages.{name}.{leaf}" for leaf, _ in stage.named_parameters()] for name, stage in stages.named_children()]
    # torchvision's vision transformer: patches, then the encoder's blocks, then its norm
    names = [name for name, _ in body.named_parameters()]
    blocks = [f"stages.encoder.layers.{block}." for block, _ in stages.encoder.layers.named_children()]
    inside = [[name for name in names if name.startswith(block)] for block in blocks]
    norm = [name for name in names if name.startswith("stages.encoder.ln")]
    taken = {name for layer in (*inside, norm) for name in layer}
    return [[name for name in names if name not in taken], *inside, norm]
