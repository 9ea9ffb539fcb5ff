"""Turn decoded pixels into the network's input: resize, crop, and make augmented views.

Shape legend: h, w are the sides of the file's image; s is the network's input side. Pixels stay uint8; the
engine and the trainer normalise them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from headstart.images.limits import MOST_ELONGATED
from headstart.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """The augmentations of the fast.ai lesson: flip, small rotation, zoom, lighting.

    Args:
        preset: "side_on" (an upright camera), "top_down" (no up and down: with `flip`, any of the square's eight
            symmetries), or "none" (no augmentation, whatever the other values are).
        flip: mirror half of the views.
        rotate: largest angle in either direction, degrees.
        zoom: largest factor; 1 means no zoom.
        lighting: largest relative change of brightness and of contrast, in either direction.
    """

    preset: str
    flip: bool
    rotate: float
    zoom: float
    lighting: float


NO_AUGMENTATION = Augmentation("none", False, 0.0, 1.0, 0.0)


def base_view(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> torch.Tensor:
    """Resize the shorter side and crop the centre.

    Args:
        pixels: [h, w, 3] uint8.
        preprocessing: the size, crop and interpolation.

    Returns:
        [3, s, s] uint8, a pure function of the arguments.
    """
    return centre(resized(pixels, preprocessing), preprocessing)


def centre(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Crop the centre [3, s, s] of a resized image."""
    return tv.center_crop(image, [preprocessing.image_size] * 2).contiguous()


def augmented_view(
    image: torch.Tensor, preprocessing: Preprocessing, augmentation: Augmentation, rng: np.random.Generator
) -> torch.Tensor:
    """Make one random view of a resized image; the same generator state gives the same bytes.

    The resized image is rotated and zoomed about its centre before it is cropped. Its border is reflected, so that no
    black corners appear.

    Returns:
        [3, s, s] uint8.
    """
    flip, angle, zoom, brightness, contrast = rng.uniform(size=5)
    if augmentation.preset == "none":
        return centre(image, preprocessing)
    if augmentation.flip:
        image = _dihedral(image, int(flip * 8)) if augmentation.preset == "top_down" else _mirror(image, flip < 0.5)
    degrees = float((2 * angle - 1) * augmentation.rotate)
    scale = float(1 + zoom * (augmentation.zoom - 1))
    if degrees or scale != 1:
        image = _turn(image, preprocessing.image_size, degrees, scale)
    image = centre(image, preprocessing)
    light = augmentation.lighting
    if light:
        image = tv.adjust_brightness(image, float(1 + (2 * brightness - 1) * light))
        image = tv.adjust_contrast(image, float(1 + (2 * contrast - 1) * light))
    return image.contiguous()


def resized(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> torch.Tensor:
    """Resize [h', w', 3] uint8 pixels to [3, h, w] uint8, with the shorter side that `preprocessing` asks for.

    If an image is longer than 16 times its shorter side, only its middle is used. Otherwise an image of 8 x 200,000
    pixels, resized to 256, would take 4.9 GB.
    """
    height, width, _ = pixels.shape
    most = MOST_ELONGATED * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    pixels = pixels[top : top + min(height, most), left : left + min(width, most)]
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # [3, h, w]
    interpolation = InterpolationMode(preprocessing.interpolation)
    return tv.resize(image, [preprocessing.resized_side], interpolation, antialias=True)


def _mirror(image: torch.Tensor, mirror: bool) -> torch.Tensor:
    return tv.horizontal_flip(image) if mirror else image


def _dihedral(image: torch.Tensor, which: int) -> torch.Tensor:
    """Apply one of a square's eight symmetries: `which` % 4 quarter turns, mirrored from 4 on."""
    return torch.rot90(_mirror(image, which >= 4), which % 4, (1, 2))


def _turn(image: torch.Tensor, size: int, degrees: float, scale: float) -> torch.Tensor:
    """Rotate and zoom about the centre, only as much of the image as the centre `size` x `size` needs."""
    angle = math.radians(degrees)
    reach = size * (abs(math.cos(angle)) + abs(math.sin(angle))) / scale
    needed = max(math.ceil(reach) + 4, size)  # a zoom needs less, but the crop must still fit
    _, height, width = image.shape
    margins = [-(-(needed - side) // 2) for side in (width, height)]  # pixels to add or, if negative, to cut on each side
    cut = [side + 2 * min(margin, 0) for side, margin in zip((height, width), margins[::-1], strict=True)]
    image = tv.center_crop(image, cut)
    added = [min(max(margin, 0), side - 1) for side, margin in zip((width, height), margins, strict=True)]
    if any(added):
        image = tv.pad(image, added, padding_mode="reflect")
    return tv.affine(image, degrees, [0, 0], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
