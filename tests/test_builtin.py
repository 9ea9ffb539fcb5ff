import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from headstart.core.errors import InputError
from headstart.data.builtin import write_digits, write_oxford_pets
from tests.conftest import encode, picture


def test_digits_are_scikit_learns(tmp_path):
    assert write_digits(tmp_path / "d") == 1797
    digits = load_digits()
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == list("0123456789")
    for number in (0, 777, 1796):
        pixels = np.asarray(Image.open(tmp_path / "d" / str(digits.target[number]) / f"{number:04}.png"))
        assert np.array_equal(np.round(pixels / 255 * 16), digits.images[number])


@pytest.fixture
def archive(tmp_path):
    """The unpacked layout of the Oxford-IIIT Pet archives, with ten pictures."""
    base = tmp_path / "downloads" / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    lines = {"trainval": [], "test": []}
    for i, (breed, kind) in enumerate([("Abyssinian", 1), ("great_pyrenees", 2)] * 5):
        name = f"{breed}_{i}"
        (base / "images" / f"{name}.jpg").write_bytes(encode(picture(kind, i), "JPEG"))
        lines["test" if i > 5 else "trainval"].append(f"{name} {1 + i % 2} {kind} 1")
    for split, rows in lines.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path / "downloads"


def test_oxford_pets_as_cats_and_dogs_and_as_breeds(archive, tmp_path):
    assert write_oxford_pets(tmp_path / "pets", archive, by_breed=False) == 10
    found = {p.parent.relative_to(tmp_path / "pets").as_posix() for p in (tmp_path / "pets").rglob("*.jpg")}
    assert found == {"train/Cat", "train/Dog", "test/Cat", "test/Dog"}
    write_oxford_pets(tmp_path / "breeds", archive, by_breed=True)
    found = {p.parent.relative_to(tmp_path / "breeds").as_posix() for p in (tmp_path / "breeds").rglob("*.jpg")}
    assert found == {"train/Abyssinian", "train/Great_Pyrenees", "test/Abyssinian", "test/Great_Pyrenees"}


def test_oxford_pets_without_network(tmp_path, monkeypatch):
    import urllib.request

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionRefusedError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        write_oxford_pets(tmp_path / "pets", tmp_path / "downloads", by_breed=False)
    assert "data.builtin: digits" in str(error.value)
