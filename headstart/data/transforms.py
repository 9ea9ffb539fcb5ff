"""From decoded pixels to the network's input: resize and crop, and augmented views of it.

Shape legend: h, w of the file; s the network's input side. Pixels stay uint8 to the last; the
engine and the trainer normalise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from headstart.core.files import sha256_bytes


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone's weights were trained to see; from the weights' own metadata.

    Args:
        image_size: side of the square input, pixels.
        crop_pct: the input's side as a share of the resized shorter side.
        interpolation: "bilinear" or "bicubic" (antialiased).
        mean, std: per channel, of pixels scaled to 0..1.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Augmentation:
    """The lesson's augmentations: flip, small rotation, zoom, lighting."""

    flip: bool
    rotate: float
    zoom: float
    lighting: float


def plain_view(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> torch.Tensor:
    """Resize the shorter side and crop the centre.

    Args:
        pixels: [h, w, 3] uint8.
        preprocessing: the size, crop and interpolation.

    Returns:
        [3, s, s] uint8, a pure function of the arguments.
    """
    size = preprocessing.image_size
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # [3, h, w]
    resized = tv.resize(
        image, [round(size / preprocessing.crop_pct)], InterpolationMode(preprocessing.interpolation), antialias=True
    )
    return tv.center_crop(resized, [size, size]).contiguous()


def augmented_view(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, augmentation: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    """One random view; the same generator state gives the same bytes.

    Rotation and zoom turn about the centre of the resized image before it is cropped, the border
    reflected, so that no black corners come in.

    Returns:
        [3, s, s] uint8.
    """
    flip, angle, zoom, brightness, contrast = rng.uniform(size=5)
    size = preprocessing.image_size
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    interpolation = InterpolationMode(preprocessing.interpolation)
    image = tv.resize(image, [round(size / preprocessing.crop_pct)], interpolation, antialias=True)
    if augmentation.flip and flip < 0.5:
        image = tv.horizontal_flip(image)
    degrees = float((2 * angle - 1) * augmentation.rotate)
    scale = float(1 + zoom * (augmentation.zoom - 1))
    if degrees or scale != 1:
        image = _turn(image, degrees, scale)
    image = tv.center_crop(image, [size, size])
    light = augmentation.lighting
    if light:
        image = tv.adjust_brightness(image, float(1 + (2 * brightness - 1) * light))
        image = tv.adjust_contrast(image, float(1 + (2 * contrast - 1) * light))
    return image.contiguous()


def _turn(image: torch.Tensor, degrees: float, scale: float) -> torch.Tensor:
    _, height, width = image.shape
    border = [max(1, min(side // 4, side - 1)) for side in (width, height)]  # a quarter is enough for 45 degrees
    if min(height, width) > 1:
        image = tv.pad(image, border, padding_mode="reflect")
    image = tv.affine(image, degrees, [0, 0], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
    return tv.center_crop(image, [height, width])


def view_generator(seed: int, *parts: str | int) -> np.random.Generator:
    """A generator keyed on its arguments alone, e.g. (seed, image key, view number)."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return np.random.Generator(np.random.PCG64(int(sha256_bytes(text.encode())[:32], 16)))


def normalise(x_nchw: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 [n, 3, s, s] to float32, in channels-last memory, mean and std taken off."""
    mean = torch.tensor(preprocessing.mean, device=x_nchw.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=x_nchw.device).view(1, 3, 1, 1) * 255
    return x_nchw.to(torch.float32).sub(mean).div(std).contiguous(memory_format=torch.channels_last)
