"""Near copies of validation and test images are excluded from training; strangers are not."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data as pictures

from headstart.ingest.near_duplicates import leaks, near_duplicates
from headstart.ingest.splits import EXCLUDED
from headstart.ingest.summary import summarise
from tests.conftest import encode, picture, scan_folder
from tests.images import save

PHOTOS = [pictures.astronaut(), pictures.cat(), pictures.coffee(), pictures.rocket()]
BIG = {"max_pixels": 1_000_000}


def crop(number: int) -> Image.Image:
    """One of many places in four photos, 128 x 96 pixels."""
    photo, rng = PHOTOS[number % 4], np.random.default_rng(number)
    top, left = rng.integers(0, photo.shape[0] - 96), rng.integers(0, photo.shape[1] - 128)
    return Image.fromarray(photo[top : top + 96, left : left + 128])


@pytest.fixture
def photos(tmp_path):
    """120 crops in class folders a and b."""
    for number in range(120):
        path = tmp_path / "photos" / "ab"[number // 4 % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save(crop(number), "PNG"))
    return tmp_path / "photos"


def test_planted_copies_are_held_out_counted_and_listed(photos):
    before = scan_folder(photos, **BIG)
    assert before.leaks.empty, "crops of one photo are no copies of each other"
    judged = before.manifest[before.manifest["split"].isin(["valid", "test"])].head(20)
    for number, path in enumerate(judged["path"]):
        image = Image.open(photos / path)
        small = image.resize((image.width * 3 // 4, image.height * 3 // 4))
        (photos / "a" / f"copy{number}.jpg").write_bytes(save(small if number % 2 else image, "JPEG", quality=70))
        (photos / "b" / f"copy{number}.webp").write_bytes(save(image, "WEBP", quality=80))
    result = scan_folder(photos, **BIG)
    copies = result.manifest[result.manifest["path"].str.contains("copy")]
    assert (copies["split"] == "train").sum() <= 4  # of 40: a dark sky may be missed (bench.duplicates)
    found = result.leaks[result.leaks["split"] == "train"]
    assert set(found["path"]) == set(result.manifest.loc[result.manifest["split"] == EXCLUDED, "path"])
    originals = dict(zip((f"copy{i}" for i in range(20)), judged["path"], strict=True))
    for row in found.itertuples():
        source = originals[row.path.split("/")[1].split(".")[0]]
        assert row.of == source or row.of.split("/")[1].split(".")[0] == row.path.split("/")[1].split(".")[0]
    report = summarise(result)
    assert report["near_copies_in_train"] == report["splits"][EXCLUDED] == len(found) > 15
    assert report["excluded_exact"] == 0
    assert report["near_copies_with_another_label"] > 0
    others = result.manifest[~result.manifest["path"].str.contains("copy")].set_index("key")["split"]
    held = result.manifest.loc[result.manifest["split"] == EXCLUDED, "key"]
    unmoved = before.manifest.set_index("key")["split"].drop(held, errors="ignore")
    assert unmoved.equals(others.drop(held, errors="ignore")), "never moved, only held out"


def test_they_stay_if_wanted_and_are_listed_all_the_same(photos):
    before = scan_folder(photos, **BIG).manifest
    judged = before.loc[before["split"] == "test", "path"].iloc[0]
    for quality in range(50, 60):
        (photos / "a" / f"copy{quality}.jpg").write_bytes(save(Image.open(photos / judged), "JPEG", quality=quality))
    result = scan_folder(photos, near_duplicates="keep", **BIG)
    assert len(result.leaks) > 3
    assert EXCLUDED not in set(result.manifest["split"])


def test_digits_that_look_alike_are_strangers(tmp_path):
    from headstart.datasets.builtin import write_digits

    write_digits(tmp_path / "digits")
    assert scan_folder(tmp_path / "digits").leaks.empty


def test_flat_images_are_strangers_unless_they_are_the_same(tmp_path):
    for label in "ab":
        for number in range(40):
            path = tmp_path / "flat" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.full((16, 16, 3), (number * 2, 90 if label == "a" else 20, number), np.uint8)))
    assert scan_folder(tmp_path / "flat").leaks.empty


def test_blocks_give_what_all_pairs_at_once_give(monkeypatch):
    from headstart.ingest import near_duplicates as module

    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 12, 200).astype(np.uint64)
    thumbs = np.repeat(rng.integers(0, 256, (20, 192)), 10, axis=0).astype(np.uint8)
    whole = pd.concat(near_duplicates(hashes[:120], thumbs[:120], hashes[120:], thumbs[120:]))
    pairs = {(i, j) for i in range(120) for j in range(80)
             if bin(int(hashes[i] ^ hashes[120 + j])).count("1") <= 8 and (thumbs[i] == thumbs[120 + j]).all()}  # fmt: skip
    assert {(row.left, row.right) for row in whole.itertuples()} == pairs
    monkeypatch.setattr(module, "BLOCK_PAIRS", 300)
    monkeypatch.setattr(module, "BLOCK_THUMBS", 2)
    blocks = list(near_duplicates(hashes[:120], thumbs[:120], hashes[120:], thumbs[120:]))
    assert len(blocks) == 40 and pd.concat(blocks, ignore_index=True).equals(whole)


def test_validation_copies_of_test_images_are_listed_and_stay(tmp_path):
    thumbs = np.stack([np.asarray(Image.fromarray(picture(i, i)).resize((8, 8))).ravel() for i in (0, 1, 0)])
    frame = pd.DataFrame({"path": ["t", "x", "v"], "label": ["a", "b", "a"], "split": ["test", "train", "valid"]})
    found = leaks(frame.assign(phash=["00ff00ff00ff00ff", "123456789abcdef0", "00ff00ff00ff00fe"]), thumbs)
    assert found[["path", "of", "split", "of_split"]].to_numpy().tolist() == [["v", "t", "valid", "test"]]


def test_without_images_on_a_side_there_are_no_pairs():
    hashes, thumbs = np.zeros(3, np.uint64), np.zeros((3, 192), np.uint8)
    for left, right in ((3, 0), (0, 3), (0, 0)):
        (found,) = near_duplicates(hashes[:left], thumbs[:left], hashes[:right], thumbs[:right])
        assert found.empty
    frame = pd.DataFrame({"path": list("abc"), "label": "x", "split": "train", "phash": "0" * 16})
    assert leaks(frame, thumbs).empty
