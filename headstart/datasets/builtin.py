"""Write the built-in data sets, and distinguish their files from a user's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from headstart.core.errors import InputError
from headstart.core.files import remove
from headstart.core.text import printable
from headstart.datasets.digits import write_digit_pages, write_digits, write_turned_digits, write_two_notations
from headstart.datasets.downloads import Archive, download, unpack
from headstart.datasets.flights import write_flights

SHOWN = 3
OF_THE_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")  # file managers leave these in any folder


def is_source(root: Path, source: str, name: str) -> bool:
    """Return whether `data.source` is the built-in set's own folder data/NAME (or lies in it)."""
    return Path(os.path.normpath(root / source)).is_relative_to(Path(os.path.normpath(root / "data" / name)))


def refuse_foreign(root: Path, name: str) -> None:
    """Refuse to write a built-in set over a user's own folder, file or link.

    Raises:
        InputError: data/NAME is a link, a file, or a folder with a file that is not part of the built-in set.
    """
    place = root / "data" / name
    fix = f"rename it and set data.source to it: mv data/{name} data/my-{name}; --set data.source=data/my-{name}"
    if place.is_symlink():
        raise InputError(f"{place} is a symbolic link, which the built-in set {name!r} would replace", fix=fix)
    own = foreign(place, name)
    if own:
        more = f" and {len(own) - SHOWN:,} more" if len(own) > SHOWN else ""
        shown = ", ".join(map(printable, own[:SHOWN]))
        found = f"{place} is the folder of the built-in set {name!r}, but it holds files of yours: {shown}{more}"
        raise InputError(found, fix=fix)


def foreign(place: Path, name: str) -> list[str]:
    """Return the relative paths at data/NAME that `fetch_data` did not write, judged by their names; links are among them."""
    if not place.exists():
        return []
    if not place.is_dir():
        return ["."]
    is_ours = _KNOWN[name]
    found = []
    for folder, folders, names in os.walk(place):
        inside = Path(folder).relative_to(place)
        links = [one for one in folders if Path(folder, one).is_symlink()]
        found += [(inside / one).as_posix() for one in links]
        for one in names:
            path, file = (inside / one).as_posix(), Path(folder, one)
            if one not in OF_THE_SYSTEM and (not is_ours(path) or (file.is_symlink() and not is_dvcs_link(file))):
                found.append(path)
    return sorted(found)


def is_dvcs_link(link: Path) -> bool:
    """Return whether a link leads to a file in a DVC cache: with the cache type symlink, outs are such links."""
    return re.search(r"/[0-9a-f]{2}/[0-9a-f]{30}$", os.readlink(link)) is not None


def _is_digit(path: str) -> bool:
    match = re.fullmatch(r"[0-9]/([0-9]{4})\.png", path)
    return match is not None and int(match[1]) < 1797


def _is_pet(path: str) -> bool:
    return re.fullmatch(r"(train|test)/(Cat/[A-Z]|Dog/[a-z])[A-Za-z_]*_[0-9]{1,3}\.jpg", path) is not None


def _is_pet_of_a_breed(path: str) -> bool:
    match = re.fullmatch(r"(?:train|test)/([A-Za-z_]+)/([A-Za-z_]+)_[0-9]{1,3}\.jpg", path)
    return match is not None and match[1] == _breed(match[2])


def _is_table_with_images(path: str) -> bool:
    return path == "labels.csv" or re.fullmatch(r"(images|pages)/[0-9]{4,5}\.png", path) is not None


def _is_table(path: str) -> bool:
    return path in ("labels.parquet", "weather.parquet", "planes.parquet")


_KNOWN: dict[str, Callable[[str], bool]] = {
    "digits": _is_digit,
    "digit-pages": _is_table_with_images,
    "turned-digits": _is_table_with_images,
    "two-notations": _is_table_with_images,
    "flights": _is_table,
    "oxford-pets": _is_pet,
    "oxford-pets-breeds": _is_pet_of_a_breed,
}
NAMES = tuple(_KNOWN)


# The checksums of torchvision.datasets.OxfordIIITPet; the publisher gives no stronger ones.
PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
PETS = (
    Archive(f"{PETS_URL}/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Archive(f"{PETS_URL}/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
)


def write_oxford_pets(folder: Path, downloads: Path, by_breed: bool, archives: Sequence[Archive] = PETS) -> int:
    """Write the Oxford-IIIT Pet data set with its own split, as train/ and test/ with class folders.

    Args:
        folder: the folder to write to.
        downloads: the folder that keeps the archives.
        by_breed: use the 37 breeds as classes instead of cat and dog.
        archives: the archives to download.

    Returns:
        The number of images written.

    Raises:
        InputError: an archive is missing and cannot be downloaded, or is damaged.

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
    """Yield (image, label) of each line `great_pyrenees_12 CLASS SPECIES BREED`."""
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            image, _, species, _ = line.split()
            breed = _breed(image.rpartition("_")[0])
            yield image, breed if by_breed else ("Cat" if species == "1" else "Dog")


def _breed(name: str) -> str:
    return "_".join(part.title() for part in name.split("_"))


WRITERS: dict[str, Callable[[Path, Path], int]] = {  # each takes the new folder, and one that keeps downloads
    "digits": lambda folder, downloads: write_digits(folder),
    "digit-pages": lambda folder, downloads: write_digit_pages(folder),
    "turned-digits": lambda folder, downloads: write_turned_digits(folder),
    "two-notations": lambda folder, downloads: write_two_notations(folder),
    "flights": lambda folder, downloads: write_flights(folder),
    "oxford-pets": lambda folder, downloads: write_oxford_pets(folder, downloads, by_breed=False),
    "oxford-pets-breeds": lambda folder, downloads: write_oxford_pets(folder, downloads, by_breed=True),
}
