"""The stages of each torchvision family's body, in order, up to the last activation map.

Everything after them (pooling, dropout, fully connected layers) is the old classifier and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torchvision import models as tv
from torchvision.ops import Permute

Stages = list[tuple[str, nn.Module]]


class ImageNetToInception(nn.Module):
    """The input scaling that the ported Inception weights need (`transform_input=True`)."""

    def forward(self, x_nchw: torch.Tensor) -> torch.Tensor:
        mean = x_nchw.new_tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
        std = x_nchw.new_tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
        return x_nchw * (std / 0.5) + (mean - 0.5) / 0.5


def _children(module: nn.Module, *leave: str) -> Stages:
    return [(name, child) for name, child in module.named_children() if name not in leave]


def _features(model: nn.Module) -> Stages:
    return _children(model.get_submodule("features"))


def _resnet(model: tv.ResNet) -> Stages:
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    return [("stem", stem), *((f"layer{i}", model.get_submodule(f"layer{i}")) for i in range(1, 5))]


def _swin(model: tv.SwinTransformer) -> Stages:
    return [*_features(model), ("norm", model.norm), ("permute", Permute([0, 3, 1, 2]))]


def _inception(model: nn.Module) -> Stages:
    scaling: Stages = [("scaling", ImageNetToInception())] if model.transform_input else []
    return scaling + _children(model, "AuxLogits", "aux1", "aux2", "avgpool", "dropout", "fc")


FAMILIES: tuple[tuple[type[nn.Module], Callable[..., Stages]], ...] = (
    (tv.ResNet, _resnet),
    (tv.DenseNet, lambda model: [*_features(model), ("relu", nn.ReLU())]),
    (tv.SwinTransformer, _swin),
    (tv.RegNet, lambda model: [("stem", model.stem), *_children(model.trunk_output)]),
    (tv.MaxVit, lambda model: [("stem", model.stem), *_children(model.blocks)]),
    (tv.ShuffleNetV2, lambda model: _children(model, "fc")),
    (tv.MNASNet, lambda model: _children(model.layers)),
    (tv.GoogLeNet, _inception),
    (tv.Inception3, _inception),
    *(
        (family, _features)
        for family in (tv.AlexNet, tv.VGG, tv.SqueezeNet, tv.MobileNetV2, tv.MobileNetV3, tv.EfficientNet, tv.ConvNeXt)
    ),
)


def map_stages(model: nn.Module) -> Stages | None:
    """Return the stages of a torchvision model up to an activation map [n, f, h, w]; None for a vision transformer.

    Raises:
        NotImplementedError: the table lacks the model's family.
    """
    if isinstance(model, tv.VisionTransformer):
        return None
    for family, stages in FAMILIES:
        if isinstance(model, family):
            return stages(model)
    raise NotImplementedError(f"{type(model).__name__} is not in {__name__}.FAMILIES: add a line there")


def classifier_parameters(model: nn.Module, body: Iterable[nn.Parameter]) -> int:
    """Count the parameters of a whole model that are not in its body."""
    kept = {id(parameter) for parameter in body}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in kept)
