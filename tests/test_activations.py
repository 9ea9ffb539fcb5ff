"""The file of assembled activations, and the stream that fills it."""

import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from headstart.activations.compute import compute_blocks
from headstart.activations.engine import Engine
from headstart.activations.store import Activations, write_shards
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.data.images import ImageSource, image_map
from headstart.data.transforms import Augmentation
from headstart.models.backbones import build_backbone

AUGMENT = Augmentation(flip=True, rotate=10, zoom=1.1, lighting=0.1)


def blocks(rows=40, width=6, size=8, dtype="float32"):
    values = np.random.default_rng(0).normal(size=(rows, width)).astype(dtype)
    keys = [f"{i // 2:064x}" for i in range(rows)]
    for start in range(0, rows, size):
        part = slice(start, start + size)
        yield keys[part], [i % 2 for i in range(rows)][part], values[part]


def test_rows_come_back_by_key_and_view(tmp_path):
    assert write_shards(tmp_path, blocks(), 6, "float32", {"weights": "w"}, shard_rows=16) == 40
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.arrow", "00001.arrow", "00002.arrow"]
    stored = Activations(tmp_path)
    assert (len(stored), stored.width, stored.views, stored.meta) == (40, 6, 2, {"weights": "w"})
    values = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    keys = [f"{i:064x}" for i in (7, 0, 19, 7)]
    assert torch.equal(stored.rows(keys, 1), torch.from_numpy(values[[15, 1, 39, 15]]))
    assert stored.all_views(keys).shape == (2, 4, 6)
    with pytest.raises(InputError, match="no activations of image"):
        stored.rows(["f" * 64])


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in "ab":
        write_shards(tmp_path / name, blocks(), 6, "float32", {"b": 1, "a": 2})
    assert (tmp_path / "a/00000.arrow").read_bytes() == (tmp_path / "b/00000.arrow").read_bytes()


def test_a_flipped_bit_or_a_cut_is_detected(tmp_path):
    write_shards(tmp_path, blocks(dtype="float16"), 6, "float16", {})
    path = tmp_path / "00000.arrow"
    whole = path.read_bytes()
    keys = [f"{i:064x}" for i in range(20)]
    expected = Activations(tmp_path).all_views(keys)
    row = np.random.default_rng(0).normal(size=(40, 6)).astype("float16")[11].tobytes()
    place = whole.index(row)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InputError, match="view 1 is damaged"):
        Activations(tmp_path).all_views(keys)
    path.write_bytes(whole[:-40])
    with pytest.raises(InputError, match="damaged"):
        Activations(tmp_path)
    path.write_bytes(whole)
    assert torch.equal(Activations(tmp_path).all_views(keys), expected)


def images_and_files(folder):
    backbone = build_backbone("test_efficientnet", "random", 32)
    images = ImageSource(folder, 10_000, backbone.preprocessing, AUGMENT, seed=0)
    paths = sorted(folder.rglob("*.png"))
    files = sorted(((p.relative_to(folder).as_posix(), sha256_file(p)) for p in paths), key=lambda file: file[1])
    return backbone, images, files


def test_a_row_does_not_depend_on_order_neighbours_workers_or_threads(shapes):
    backbone, images, files = images_and_files(shapes)

    def rows(files, workers, views):
        engine = Engine(backbone.body, backbone.preprocessing, "float32", 8, torch.device("cpu"))
        done = compute_blocks(engine, images, files, views=views, workers=workers)
        return {(k, v): x.tobytes() for keys, vs, xs in done for k, v, x in zip(keys, vs, xs, strict=True)}

    whole = rows(files, 2, 2)
    assert len(whole) == 3 * len(files)
    assert rows(files[::-1], 1, 2) == whole
    part = rows(files[5:18], 3, 1)
    assert part == {place: whole[place] for place in part}
    threads = torch.get_num_threads()
    for number in (1, 4):
        torch.set_num_threads(number)
        try:
            assert rows(files, 2, 2) == whole
        finally:
            torch.set_num_threads(threads)


def test_an_image_that_changed_since_the_manifest_stops_the_run(shapes):
    backbone, images, files = images_and_files(shapes)
    engine = Engine(backbone.body, backbone.preprocessing, "float32", 8, torch.device("cpu"))
    path = shapes / files[9][0]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="changed since the manifest") as error:
        list(compute_blocks(engine, images, files, views=0, workers=2))
    assert files[9][0] in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        list(compute_blocks(engine, images, files, views=0, workers=2))


def test_ordered_map_keeps_order_and_holds_few():
    started = []

    def work(i):
        started.append(i)
        return i * i

    results = image_map(work, range(1000), workers=4, ahead=6)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) <= 10
    assert list(results) == [i * i for i in range(3, 1000)]


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from headstart.activations.store import write_shards
width, size = 2560, 32
def blocks(count):
    for i in range(count):
        x = np.random.default_rng(i).random((size, width), dtype=np.float32)
        yield [f"{i * size + j:064x}" for j in range(size)], [0] * size, x
write_shards(Path(sys.argv[1]), blocks(4), width, "float32", {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards(Path(sys.argv[1]) / "more", blocks(600), width, "float32", {}, shard_rows=4096)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_writing_streams(tmp_path):
    """200 MB of activations are written with a few MB more than a handful of batches takes."""
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 40_000
    assert resource.getpagesize() > 0


def test_frozen_means_frozen(shapes, tmp_path):
    """Invariant 2: no parameter and no buffer of the body changes by one bit while the head trains."""
    from headstart.models.heads import adapt, build_head
    from headstart.models.weights import state_digest
    from headstart.training.head import train_head

    backbone, images, files = images_and_files(shapes)
    before = state_digest(backbone.body)
    engine = Engine(backbone.body, backbone.preprocessing, "float32", 8, torch.device("cpu"))
    inside = state_digest(engine.body)
    write_shards(tmp_path, compute_blocks(engine, images, files, views=1, workers=2), backbone.width, "float32", {})
    x = Activations(tmp_path).all_views([key for _, key in files])
    y = torch.tensor(pd.factorize(pd.Series([path[0] for path, _ in files]))[0])
    head = build_head("mlp", backbone.width, 3, seed=0)
    adapt(head, x[0])
    train_head(head, x, y, (x[0], y), epochs=3, lr=1e-2, batch_size=16, seed=0, log=lambda *_: None)
    assert state_digest(backbone.body) == before
    assert state_digest(engine.body) == inside
    assert not any(parameter.requires_grad for parameter in backbone.body.parameters())
