"""The input that a network expects: size, crop, interpolation, mean, standard deviation. A model's card stores it.

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
    """The preprocessing that a backbone's weights were trained with, from their own metadata.

    Args:
        image_size: side of the square input, pixels.
        crop_pct: the input's side as a share of the resized shorter side.
        interpolation: "bilinear" or "bicubic" (antialiased).
        mean, std: mean and standard deviation of each channel, for pixels scaled to 0..1.
        whites: the raw values that become white in gray images of more than 8 bits, from the training source.
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
        """Restore preprocessing from what `as_dict` returned, also after a round trip through JSON."""
        parts = {"mean": tuple(values["mean"]), "std": tuple(values["std"]), "whites": Whites(**values["whites"])}
        return cls(**{**values, **parts})

    @property
    def resized_side(self) -> int:
        """Return the shorter side before the crop, pixels."""
        return round(self.image_size / self.crop_pct)

    @property
    def min_decode_side(self) -> int:
        """Return the least side to decode a JPEG to: twice the side that it is resized to."""
        return 2 * self.resized_side


def normalise(x_nchw: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalise uint8 [n, 3, s, s] to float32 in channels-last memory: subtract the mean, divide by the standard deviation."""
    mean = torch.tensor(preprocessing.mean, device=x_nchw.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=x_nchw.device).view(1, 3, 1, 1) * 255
    return x_nchw.to(torch.float32).sub(mean).div(std).contiguous(memory_format=torch.channels_last)
