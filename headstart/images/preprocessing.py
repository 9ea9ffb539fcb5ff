"""How a network wants its input: size, crop, interpolation, mean and standard deviation. A model's card keeps it.

Shape legend: n images, c channels, h height, w width, s input side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from headstart.images.whites import Whites


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone's weights were trained to see; from the weights' own metadata.

    Args:
        image_size: side of the square input, pixels.
        crop_pct: the input's side as a share of the resized shorter side.
        interpolation: "bilinear" or "bicubic" (antialiased).
        mean, std: per channel, of pixels scaled to 0..1.
        whites: the raw values that become white in gray images of more than 8 bits; those of the source trained on.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    whites: Whites = Whites()

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What `as_dict` gave, perhaps by way of JSON."""
        parts = {"mean": tuple(values["mean"]), "std": tuple(values["std"]), "whites": Whites(**values["whites"])}
        return cls(**{**values, **parts})

    @property
    def resized_side(self) -> int:
        """The shorter side before the crop, pixels."""
        return round(self.image_size / self.crop_pct)

    @property
    def min_decode_side(self) -> int:
        """Sides with which a picture need not be decoded larger: twice what it is resized to."""
        return 2 * self.resized_side


def normalise(x_nchw: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 [n, 3, s, s] to float32, in channels-last memory, mean and std taken off."""
    mean = torch.tensor(preprocessing.mean, device=x_nchw.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=x_nchw.device).view(1, 3, 1, 1) * 255
    return x_nchw.to(torch.float32).sub(mean).div(std).contiguous(memory_format=torch.channels_last)
