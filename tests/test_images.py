"""What becomes of images between the disk and a batch: kept ones, turns with training, order."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.images import loader as module
from headstart.images.loader import ImageSource, ResizedImageCache
from headstart.images.preprocessing import Preprocessing
from headstart.images.transforms import Augmentation
from headstart.training.batch_sources import image_batches

PRE = Preprocessing(16, 1.0, "bilinear", (0.5,) * 3, (0.2,) * 3)
LESSON = Augmentation("side_on", True, 10, 1.1, 0.1)
SIZE = 3 * 16 * 16


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def source(folder, most: int) -> ImageSource:
    return ImageSource(folder, 10_000, PRE, LESSON, 0, ResizedImageCache(most))


def test_kept_images_are_the_same_to_the_bit_and_read_once(folder, monkeypatch):
    reads = []
    monkeypatch.setattr(module, "read_pixels", lambda *a, original=module.read_pixels: (reads.append(a[1]), original(*a))[1])
    files = [(f"{i}.png", sha256_file(folder / f"{i}.png")) for i in range(4)]
    afresh, kept = source(folder, 0), source(folder, 2 * SIZE)
    views = [
        [view for file in files for view in (one.base_view(*file), *(one.augmented(*file, epoch) for epoch in range(3)))]
        for one in (afresh, kept)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))
    assert len(kept.cache.images) == 2 and kept.cache.room == 0 and not afresh.cache.images
    assert reads == [f"{i}.png" for i in range(4) for _ in range(4)] + ["0.png", "1.png"] + ["2.png"] * 4 + ["3.png"] * 4


def test_a_kept_image_is_that_of_its_key_whatever_becomes_of_the_file(folder):
    key, other = (sha256_file(folder / f"{i}.png") for i in (0, 1))
    kept = source(folder, 10 * SIZE)
    before = kept.base_view("0.png", key)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    assert torch.equal(kept.base_view("0.png", key), before)
    assert torch.equal(kept.base_view("0.png", other), kept.base_view("1.png", other))
    with pytest.raises(InputError, match=r"0.png: its bytes changed"):
        source(folder, 10 * SIZE).base_view("0.png", key)


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_batches_are_loaded_in_order_and_on_a_cpu_never_beside_training(count):
    loaded = threading.Semaphore(0)

    def load(i: int) -> torch.Tensor:
        loaded.release()
        return torch.full((3, 4, 4), i, dtype=torch.uint8)

    seen = []
    for x in image_batches(range(count), load, PRE, 32, 2, torch.device("cpu")):
        assert sum(loaded.acquire(blocking=False) for _ in range(count)) == len(x)  # none ahead
        seen += (x[:, 0, 0, 0] * 0.2 * 255 + 0.5 * 255).round().int().tolist()
    assert seen == list(range(count))


def test_sources_of_two_sizes_share_the_room_and_not_the_images(folder):
    large = source(folder, 10 * SIZE)
    small = replace(large, preprocessing=replace(PRE, image_size=8))
    key = sha256_file(folder / "0.png")
    assert large.base_view("0.png", key).shape == (3, 16, 16)
    assert small.base_view("0.png", key).shape == (3, 8, 8)
    assert torch.equal(small.base_view("0.png", key), replace(small, cache=ResizedImageCache(0)).base_view("0.png", key))
    assert large.cache.room == 10 * SIZE - SIZE - SIZE // 4
