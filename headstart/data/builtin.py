"""Built-in data sets, written once as class folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.core.files import remove
from headstart.data.downloads import Archive, download, unpack


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


# As torchvision.datasets.OxfordIIITPet states them; the publisher gives no stronger checksum.
PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
PETS = (
    Archive(f"{PETS_URL}/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Archive(f"{PETS_URL}/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
)


def write_oxford_pets(folder: Path, downloads: Path, by_breed: bool, archives: Sequence[Archive] = PETS) -> int:
    """The Oxford-IIIT Pet data set with its own split, as train/ and test/ of class folders.

    Args:
        folder: where to write.
        downloads: where the archives are kept.
        by_breed: 37 breeds, or else cat and dog.
        archives: what to download.

    Returns:
        The number of images written.

    Raises:
        InputError: an archive is not there and cannot be downloaded, or is damaged.

    Source: Parkhi et al., Cats and Dogs, CVPR 2012, https://www.robots.ox.ac.uk/~vgg/data/pets/.
    """
    place = downloads / "oxford-iiit-pet"
    unpacked = folder.parent / f".{folder.name}.unpacked"
    remove(unpacked)
    try:
        for archive in archives:
            unpack(download(archive, place), unpacked / archive.name)
        images, annotations = (unpacked / archive.name for archive in archives)
        written = 0
        for split, name in (("trainval", "train"), ("test", "test")):
            for image, label in _pets(annotations / "annotations" / f"{split}.txt", by_breed):
                target = folder / name / label / f"{image}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                (images / "images" / f"{image}.jpg").rename(target)
                written += 1
    finally:
        remove(unpacked)
    return written


def _pets(path: Path, by_breed: bool) -> Iterator[tuple[str, str]]:
    """(image, label) of each line `great_pyrenees_12 CLASS SPECIES BREED`."""
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            image, _, species, _ = line.split()
            breed = "_".join(part.title() for part in image.split("_")[:-1])
            yield image, breed if by_breed else ("Cat" if species == "1" else "Dog")
