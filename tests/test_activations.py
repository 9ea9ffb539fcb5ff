"""Assembled activations: the files, what reading them costs, and that they are a pure function of their inputs."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from headstart.activations.build import Settings, build, refuse_too_large
from headstart.activations.cache import Block, checksum, open_root, row_keys
from headstart.activations.store import Activations, write_shards
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.images.loader import ImageSource, image_map
from headstart.images.transforms import Augmentation
from headstart.models.backbones import build_backbone
from headstart.models.cuts import cut_body

AUGMENT = Augmentation(preset="side_on", flip=True, rotate=10, zoom=1.1, lighting=0.1)
HOW = Settings(
    views=1, engine="torch", precision="float32", storage="auto", batch_size=8, device=torch.device("cpu"), workers=2
)
ROWS = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
KEYS = [f"{i:064x}" for i in range(20)]


def blocks(size=8, dtype="float32"):
    named = row_keys(KEYS, range(2))
    for start in range(0, 40, size):
        part = slice(start, start + size)
        values = ROWS[part].astype(dtype).view(np.uint8)
        sums = np.array([checksum(place, row) for place, row in zip(named[part].tolist(), values, strict=True)], "u8")
        yield Block(named[part], sums, values)


def test_rows_come_back_by_key_and_view(tmp_path):
    assert write_shards(tmp_path, blocks(), [6], "float32", {"weights": "w"}, limit=16 * 24) == 40
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.arrow", "00001.arrow", "00002.arrow"]
    stored = Activations(tmp_path)
    assert (len(stored), stored.width, stored.views) == (40, 6, 2)
    assert stored.meta == {"weights": "w", "shape": [6]}
    keys = [f"{i:064x}" for i in (7, 0, 19, 7)]
    assert torch.equal(stored.rows(keys, 1), torch.from_numpy(ROWS[[15, 1, 39, 15]]))
    assert stored.all_views(keys).shape == (2, 4, 6)
    assert torch.equal(torch.cat(list(stored.blocks(KEYS, 7))), torch.from_numpy(ROWS[::2]))
    with pytest.raises(InputError, match="no activations of image ffff"):
        stored.rows(["f" * 64])
    with pytest.raises(InputError, match="no activations of image"):
        stored.rows([f"{31:064x}"])
    with pytest.raises(InputError, match="view 2"):
        stored.rows(keys, 2)


def test_the_files_are_plain_arrow(tmp_path):
    """Anybody's tools read them: columns key, view, activations, checksum."""
    import pyarrow as pa

    write_shards(tmp_path, blocks(dtype="float16"), [2, 3], "float16", {})
    with pa.memory_map(str(tmp_path / "00000.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
        assert table.schema.names == ["key", "view", "activations", "checksum"]
        assert table["key"].to_pylist() == [bytes.fromhex(key) for key in KEYS for _ in range(2)]
        assert table["view"].to_pylist() == [0, 1] * 20
        assert np.array_equal(np.array(table["activations"].to_pylist()), ROWS.astype("float16"))


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in "ab":
        write_shards(tmp_path / name, blocks(), [6], "float32", {"b": 1, "a": 2})
    assert (tmp_path / "a/00000.arrow").read_bytes() == (tmp_path / "b/00000.arrow").read_bytes()


def test_a_flipped_bit_or_a_cut_is_detected(tmp_path):
    write_shards(tmp_path, blocks(dtype="float16"), [6], "float16", {})
    path = tmp_path / "00000.arrow"
    whole = path.read_bytes()
    expected = Activations(tmp_path).all_views(KEYS)
    found = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            same = torch.equal(Activations(tmp_path).all_views(KEYS), expected)
        except InputError as error:
            assert "damaged" in str(error) or "no activations" in str(error)
            found += 1
        else:
            assert same, place  # padding between the columns, and the like
    assert found > 40 * 15 / 7  # each row has 12 bytes and 42 of key, view and checksum
    for length in (0, 8, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            Activations(tmp_path)
    path.write_bytes(whole)
    assert torch.equal(Activations(tmp_path).all_views(KEYS), expected)


def images_and_files(folder, size=32):
    backbone = build_backbone("test_efficientnet", "random", size)
    images = ImageSource(folder, 10_000, backbone.preprocessing, AUGMENT, seed=0)
    paths = sorted(folder.rglob("*.png"))
    files = sorted(((p.relative_to(folder).as_posix(), sha256_file(p)) for p in paths), key=lambda file: file[1])
    return backbone, images, files


def built(out, cache, images, files, backbone, cut="pooled", **changes):
    body = backbone.body if cut == "pooled" else cut_body(backbone.body, backbone.groups, cut)[0]
    how = Settings(**(HOW.__dict__ | changes))
    options = {"backbone": backbone, "body": body, "cut": cut, "images": images, "files": files, "settings": how}
    return build(out, open_root(cache), **options)


def test_assembled_activations_are_a_pure_function(shapes, tmp_path):
    """Invariant 5: another order, other batches, more workers or threads, a warm cache or none: the same bytes."""
    backbone, images, files = images_and_files(shapes)
    built(tmp_path / "a", tmp_path / "cold", images, files, backbone, views=2)
    whole = (tmp_path / "a/00000.arrow").read_bytes()
    warm = tmp_path / "warm"
    for start, workers in ((40, 1), (3, 2), (0, 3)):  # images arrive in parts, the views later
        part = files[start::2] if start else files
        built(tmp_path / "part", warm, images, part, backbone, views=0 if start == 40 else 1, workers=workers)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        done = built(tmp_path / "b", warm, images, files, backbone, views=2, workers=1)
    finally:
        torch.set_num_threads(threads)
    assert done.filled.computed == len(files) and done.filled.cached == 2 * len(files)
    assert (tmp_path / "b/00000.arrow").read_bytes() == whole


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_too_gives_the_same_bytes_whatever_the_order_and_the_workers(precision, shapes, tmp_path):
    backbone, images, files = images_and_files(shapes)
    for name, part, workers in (("a", files, 2), ("b", files[1::3], 1), ("b", files, 3)):
        built(
            tmp_path / name,
            tmp_path / f"cache-{name}",
            images,
            part,
            backbone,
            engine="openvino",
            precision=precision,
            workers=workers,
        )
    assert (tmp_path / "a/00000.arrow").read_bytes() == (tmp_path / "b/00000.arrow").read_bytes()


def test_the_map_at_a_boundary_is_cached_and_the_tail_goes_on_from_it(shapes, tmp_path):
    from headstart.images.preprocessing import normalise

    backbone, images, files = images_and_files(shapes)
    keys = [key for _, key in files]
    built(tmp_path / "early", tmp_path / "cache", images, files, backbone, cut="early", storage="float32")
    stored = Activations(tmp_path / "early")
    _, tail = cut_body(backbone.body, backbone.groups, "early")
    with torch.no_grad():
        from_map = tail(stored.rows(keys).reshape(len(keys), *stored.meta["shape"]))
        whole = backbone.body(normalise(torch.stack([images.base_view(*file) for file in files]), backbone.preprocessing))
    assert torch.allclose(from_map, whole, rtol=1e-3, atol=1e-5)


def test_an_image_that_changed_since_the_manifest_stops_the_run(shapes, tmp_path):
    backbone, images, files = images_and_files(shapes)
    path = shapes / files[9][0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="changed since the manifest") as error:
        built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    assert files[9][0] in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    path.write_bytes(whole)
    done = built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    assert 0 < done.filled.computed < done.filled.rows  # the others were kept


def test_what_cannot_be_afforded_is_refused_before_it_is_computed(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"all views need 1\.2 GB, and precompute\.max_gb is 1"):
        refuse_too_large(tmp_path, tmp_path, 1_200_000_000, 1.0)
    monkeypatch.setattr("headstart.activations.build.free_bytes", lambda path: 2_000_000_000)
    with pytest.raises(InputError, match=r"2 GB free, and the activations need 2\.4 GB"):
        refuse_too_large(tmp_path, tmp_path, 1_200_000_000, 9.0)
    refuse_too_large(tmp_path, tmp_path, 800_000_000, 9.0)


def test_activations_that_are_not_finite_name_the_image(shapes, tmp_path):
    class Exploding(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 1e6 + 1

    backbone, images, files = images_and_files(shapes)
    how = Settings(**(HOW.__dict__ | {"storage": "float16"}))
    options = {
        "backbone": backbone,
        "body": Exploding().eval(),
        "cut": "pooled",
        "images": images,
        "files": files,
        "settings": how,
    }
    with pytest.raises(InputError, match=r"of image [0-9a-f]{12}…, view [01], are not finite in float16"):
        build(tmp_path / "out", open_root(tmp_path / "cache"), **options)


def test_ordered_map_keeps_order_and_holds_few():
    started = []

    def work(i):
        started.append(i)
        return i * i

    results = image_map(work, range(1000), workers=4, ahead=6)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) <= 10
    assert list(results) == [i * i for i in range(3, 1000)]


ANONYMOUS = """
import sys
from pathlib import Path
import numpy as np, torch
from headstart.activations.cache import Block, row_keys
from headstart.activations.store import Activations, write_shards
out, images, views, width = Path(sys.argv[1]), int(sys.argv[2]), 3, 2560

def anonymous():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0])

def blocks():
    step = 2000
    for start in range(0, images, step):
        named = row_keys([f"{i:064x}" for i in range(start, min(start + step, images))], range(views))
        yield Block(named, np.zeros(len(named), "u8"), np.zeros((len(named), 2 * width), np.uint8))

if not out.exists():
    write_shards(out, blocks(), [width], "float16", {})
    sys.exit()
torch.ones(3) + 1
np.searchsorted(np.zeros(3, "S32"), np.zeros(3, "S32"))
Activations(out)  # what is imported and set up once
before = anonymous()
stored = Activations(out)
print(anonymous() - before)
assert len(stored) == images * views and stored.views == views
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_loading_takes_no_memory_until_rows_are_asked_for(tmp_path):
    """100,000 images x 3 views x 2,560: less anonymous memory than a batch of 64 rows in float32."""
    images = "100000"
    for _ in range(2):
        command = [sys.executable, "-c", ANONYMOUS, str(tmp_path / "rows"), images]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sum(path.stat().st_size for path in (tmp_path / "rows").iterdir()) > 1_500_000_000
    assert int(run.stdout) * 1024 <= 64 * 2560 * 4


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from headstart.activations.cache import Block, row_keys
from headstart.activations.store import write_shards
def blocks(count):
    for i in range(count):
        named = row_keys([f"{i * 64 + j:064x}" for j in range(64)], range(1))
        yield Block(named, np.zeros(64, "u8"), np.full((64, 5120), i % 251, np.uint8))
write_shards(Path(sys.argv[1]), blocks(4), [2560], "float16", {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_shards(Path(sys.argv[1]) / "more", blocks(600), [2560], "float16", {}, limit=50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_writing_streams(tmp_path):
    """200 MB of activations are written with a few MB more than a handful of blocks takes."""
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 20_000


def test_frozen_means_frozen(shapes, tmp_path):
    """Invariant 2: no parameter and no buffer of the body changes by one bit while the head trains."""
    from headstart.models.heads import HeadSpec, build_head, fit_standardiser
    from headstart.models.weights import state_digest
    from headstart.targets.single_label import SingleLabel
    from headstart.training.activation_dataset import activations_of
    from headstart.training.head import train_head
    from headstart.training.loop import TrainingRun
    from headstart.training.options import Options

    backbone, images, files = images_and_files(shapes)
    before = state_digest(backbone.body)
    built(tmp_path / "out", tmp_path / "cache", images, files, backbone)
    target, stored = SingleLabel(("a", "b", "c")), Activations(tmp_path / "out")
    train, valid = (
        activations_of(stored, [key for _, key in part], target.encode(path[0] for path, _ in part))
        for part in (files[::2], files[1::2])
    )
    head = build_head(HeadSpec("mlp", backbone.width, 3), seed=0)
    fit_standardiser(head, train.base_views())
    options, run = Options(batch_size=16), TrainingRun(0, lambda *_: None)
    train_head(head, train, valid, target, epochs=3, lr=1e-2, options=options, run=run)
    assert state_digest(backbone.body) == before
    assert not any(parameter.requires_grad for parameter in backbone.body.parameters())
