"""Built-in data sets, written once as class folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.core.errors import InputError


def write_digits(folder: Path) -> int:
    """scikit-learn's handwritten digits (UCI, 1,797 images of 8 x 8, 17 grays) as PNG class folders.

    Returns:
        The number of images written.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / str(label) / f"{number:04}.png")
    return len(digits.target)


def write_oxford_pets(folder: Path, downloads: Path, by_breed: bool) -> int:
    """The Oxford-IIIT Pet data set with its own split, as train/ and test/ of class folders.

    Args:
        folder: where to write.
        downloads: where torchvision keeps the archive, `downloads/oxford-iiit-pet`.
        by_breed: 37 breeds, or else cat and dog.

    Returns:
        The number of images written.

    Raises:
        InputError: the archive is not there and cannot be downloaded, or is damaged.

    Source: Parkhi et al., Cats and Dogs, CVPR 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/.
    """
    from torchvision.datasets import OxfordIIITPet

    written = 0
    for split, name in (("trainval", "train"), ("test", "test")):
        kind = "category" if by_breed else "binary-category"
        try:
            data = OxfordIIITPet(str(downloads), split=split, target_types=kind, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Oxford-IIIT Pet cannot be downloaded: {error}",
                wanted=f"the unpacked archives images/ and annotations/ in {downloads / 'oxford-iiit-pet'}",
                fix="allow the network once, copy them there by hand, or set data.builtin: digits",
            ) from None
        classes = data.classes if by_breed else data.bin_classes
        labels = data._labels if by_breed else data._bin_labels
        for image, label in zip(data._images, labels, strict=True):
            target = folder / name / classes[label].replace(" ", "_") / Path(image).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, target)
            written += 1
    return written
