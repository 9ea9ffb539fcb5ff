"""The per-image cache: what is recomputed and what is not, damage, faults, two processes, and its commands."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from flows import cache as commands
from flows.param_edits import set_params
from headstart.activations.cache import TAG, Cache, open_cache, open_root, record_use, row_keys, split_row_key
from headstart.core.command_line import guarded
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.core.params import load_params
from headstart.hardware import choose_precision
from headstart.images.transforms import Augmentation
from tests import forks
from tests.conftest import REPOSITORY, make_project, write_shapes
from tests.test_activations import built, images_and_files

ROWS = np.arange(60, dtype=np.uint8).reshape(6, 10)
KEYS = [f"{i:064x}" for i in (9, 3, 256)]


@pytest.fixture
def cache(tmp_path):
    return open_cache(open_root(tmp_path / "cache"), "n", {"shape": [5], "storage": "float16"}, 10)


def filled(cache):
    with cache.writing():
        cache.append(row_keys(KEYS, range(2)).tolist(), ROWS)
    return cache


def test_rows_come_back_and_others_do_not(cache):
    wanted = row_keys(KEYS, range(2))
    assert (cache.find(wanted) == -1).all()
    filled(cache)
    for one in (cache, Cache(cache.folder, cache.lock, 10)):
        values, sound = one.read(one.find(wanted[[4, 0, 3]]))
        assert np.array_equal(values, ROWS[[4, 0, 3]]) and sound.all()
        assert (one.find(row_keys(KEYS, [2])) == -1).all()
        assert (one.find(row_keys([f"{i:064x}" for i in (0, 4, 257)], [0])) == -1).all()
    assert split_row_key(row_keys([f"{256:064x}"], [0])[0]) == (f"{256:064x}", 0)


def test_a_damaged_row_is_seen_and_its_replacement_counts(cache):
    filled(cache)
    with (cache.folder / "rows.bin").open("r+b") as stream:
        stream.seek(23)
        stream.write(b"\xff")
    again = Cache(cache.folder, cache.lock, 10)
    rows = again.find(row_keys(KEYS, range(2)))
    assert again.read(rows)[1].tolist() == [True, True, False, True, True, True]
    assert commands.damaged_rows(again) == [(KEYS[1], 0)]
    with again.writing():
        again.append(row_keys([KEYS[1]], [0]).tolist(), ROWS[2:3])
    values, sound = again.read(again.find(row_keys(KEYS, range(2))))
    assert sound.all() and np.array_equal(values, ROWS)
    assert commands.damaged_rows(again) == []


@pytest.mark.parametrize("name", ["rows.bin", "index.bin"])
def test_every_flipped_bit_and_every_cut_is_seen(name, cache):
    filled(cache)
    wanted, path = row_keys(KEYS, range(2)), cache.folder / name
    whole = path.read_bytes()
    for damaged in (*(bits(whole, i) for i in range(8 * len(whole))), *(whole[:n] for n in range(len(whole)))):
        path.write_bytes(damaged)
        again = Cache(cache.folder, cache.lock, 10)
        rows = again.find(wanted)
        values, sound = again.read(rows[rows >= 0])
        good = np.flatnonzero(rows >= 0)[sound]
        assert len(good) < 6
        assert np.array_equal(values[sound], ROWS[good])  # what is given out is right
        with again.writing():
            pass  # and it can be written to
    path.write_bytes(whole)


def bits(whole, i):
    return whole[: i // 8] + bytes([whole[i // 8] ^ (1 << i % 8)]) + whole[i // 8 + 1 :]


def test_half_a_batch_left_by_a_killed_writer_is_no_harm(cache):
    filled(cache)
    for name, rest in (("rows.bin", b"x" * 17), ("index.bin", b"y" * 5)):
        with (cache.folder / name).open("ab") as stream:
            stream.write(rest)
    again = Cache(cache.folder, cache.lock, 10)
    assert len(again) == 6
    with again.writing():
        again.append(row_keys(["f" * 64], [0]).tolist(), ROWS[:1])
    assert (again.folder / "rows.bin").stat().st_size == 70
    values, sound = again.read(again.find(np.concatenate([row_keys(KEYS, range(2)), row_keys(["f" * 64], [0])])))
    assert sound.all() and np.array_equal(values, np.concatenate([ROWS, ROWS[:1]]))


def test_a_full_disk_says_what_is_wanted_and_leaves_a_valid_cache(cache):
    """A limit on the size of files stands in for the disk; the child ignores its signal, as a full disk sends none."""
    filled(cache)
    code = (
        "import sys, signal, resource, errno, os\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from headstart.activations import cache as module\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (85, 85))\n"
        "whole = os.pwrite\n"
        "def pwrite(*a):\n"
        "    try:\n        return whole(*a)\n"
        "    except OSError as e:\n        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None\n"
        "os.pwrite = pwrite\n"
        f"cache = module.Cache(Path({str(cache.folder)!r}), Path({str(cache.lock)!r}), 10)\n"
        "with cache.writing():\n"
        "    cache.append(module.row_keys(['e' * 64], [0, 1, 2]).tolist(), np.ones((3, 10), np.uint8))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "no space left on this disk, 156 more bytes were needed" in run.stderr and str(cache.folder) in run.stderr
    assert (cache.folder / "rows.bin").stat().st_size == 60
    again = Cache(cache.folder, cache.lock, 10)
    assert len(again) == 6 and again.read(np.arange(6))[1].all()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 85


def test_what_is_not_a_cache_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="is not empty and not a cache"):
        open_root(folder)
    assert [path.name for path in folder.iterdir()] == ["a.jpg"]
    root = open_root(tmp_path / "cache")
    open_cache(root, "n", {"a": 1}, 4)
    (root / "rows/n/namespace.json").write_text('{"a": 2}')  # damaged: the folder's name tells what it is
    open_cache(root, "n", {"a": 1}, 4)
    assert json.loads((root / "rows/n/namespace.json").read_text()) == {"a": 1}
    (root / TAG).write_text((root / TAG).read_text().replace("format 1", "format 2"))
    with pytest.raises(InputError, match="holds another format"):
        open_root(root)


def test_a_read_only_cache_is_said_to_be_one(tmp_path):
    root = open_root(tmp_path / "cache")
    os.chmod(tmp_path, 0o755)
    for folder in (root, root / "rows"):
        folder.chmod(0o555)
    child = os.fork()
    if not child:  # as somebody whom permissions bind
        os.setuid(65534)
        os._exit(guarded(lambda: open_cache(root, "n", {}, 4) and 0))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for folder in (root, root / "rows"):
        folder.chmod(0o755)
    assert code == 2


def test_a_file_where_the_cache_should_be(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"cache_dir: .*cache cannot be written"):
        open_root(tmp_path / "cache")


# what is recomputed


def test_only_new_images_are_computed(shapes, tmp_path):
    backbone, images, files = images_and_files(shapes)
    old = files[:-2]
    first = built(tmp_path / "a", tmp_path / "cache", images, old, backbone)
    assert (first.filled.computed, first.filled.cached) == (2 * len(old), 0)
    again = built(tmp_path / "a", tmp_path / "cache", images, files, backbone)
    assert (again.filled.computed, again.filled.cached) == (4, 2 * len(old))
    renamed = [(f"{number}.png", key) for number, (_, key) in enumerate(files)]
    folder = tmp_path / "renamed"
    folder.mkdir()
    for (path, _), (name, _) in zip(files, renamed, strict=True):
        (folder / name).write_bytes((shapes / path).read_bytes())
    moved = type(images)(**(images.__dict__ | {"folder": folder}))
    assert built(tmp_path / "a", tmp_path / "cache", moved, renamed, backbone).filled.computed == 0
    assert built(tmp_path / "a", tmp_path / "cache", images, files, backbone, views=3).filled.computed == 2 * len(files)


def test_a_damaged_row_is_recomputed_and_reported(shapes, tmp_path, caplog):
    backbone, images, files = images_and_files(shapes)
    done = built(tmp_path / "a", tmp_path / "cache", images, files, backbone)
    path = tmp_path / "cache/rows" / done.namespace / "rows.bin"
    whole = path.read_bytes()
    path.write_bytes(bits(whole, 12345))
    with caplog.at_level("WARNING"):
        again = built(tmp_path / "b", tmp_path / "cache", images, files, backbone)
    assert (again.filled.damaged, again.filled.computed) == (1, 1)
    assert "1 damaged rows in the activations cache are computed again" in caplog.text
    assert (tmp_path / "a/00000.arrow").read_bytes() == (tmp_path / "b/00000.arrow").read_bytes()


def test_labels_splits_and_names_recompute_nothing_and_settings_everything(tmp_path, caplog, monkeypatch):
    from headstart.core.graph import load_graph
    from headstart.core.stages import run_stage
    from tasks.link_data import link_data
    from tasks.precompute import precompute

    weights = tmp_path / "weights.safetensors"  # random ones would depend on the seed
    save_file(timm.create_model("test_efficientnet", num_classes=7).state_dict(), weights)
    named = {"backbone.weights": str(weights), "backbone.weights_sha256": sha256_file(weights)}
    project = make_project(tmp_path / "project", **named)

    def computed(*settings):
        params = set_params(project / "params.yaml", settings)
        graph = load_graph(project, params)
        here = os.getcwd()
        os.chdir(project)
        try:
            if not settings or not settings[0].startswith(("precompute.", "backbone.")):  # which the manifest does not follow
                run_stage(graph["link_data"], link_data, project, params)
            summary = run_stage(graph["precompute"], precompute, project, params).summary
        finally:
            os.chdir(here)
        return summary["rows"] - summary["cached_rows"]

    assert computed() == 120
    source = tmp_path / "project-images"
    for harmless in ("seed=5", "data.valid_fraction=0.25", "data.fold=2", "precompute.max_gb=3", "runtime.workers=1"):
        assert computed(harmless) == 0, harmless
    (source / "a/001.png").rename(source / "a/renamed.png")
    (source / "b/002.png").rename(source / "c/moved.png")
    assert computed() == 0
    other = {"float32": "bfloat16", "bfloat16": "float32"}[choose_precision("auto", torch.device("cpu"))[0]]
    for telling in (
        "precompute.view_seed=1", "backbone.image_size=48", "backbone.crop_pct=0.9", "precompute.augment.rotate=20",
        "precompute.augment.preset=top_down", f"precompute.precision={other}", "precompute.storage=float32",
        "precompute.batch_size=4", "precompute.engine=openvino",
    ):  # fmt: skip
        assert computed(telling) == 120, telling
    assert computed("precompute.views=2") == 60
    monkeypatch.setattr(logging.getLogger("headstart"), "propagate", True)
    with caplog.at_level("INFO", "headstart"):
        assert computed("precompute.views=0") == 0
    assert "data augmentation does nothing" in caplog.text
    assert "agreement with float32 on a sample: cosine at least " in caplog.text
    assert computed("precompute.cache_map_after=early", "precompute.max_gb=0.1") == 0  # of the pooled ones
    assert (project / "data/activations/early/00000.arrow").exists()
    with pytest.raises(InputError, match="need .* GB, and precompute.max_gb is 1e-06"):
        computed("precompute.max_gb=0.000001")
    assert (project / "data/activations/early/00000.arrow").exists()


# processes

WORK = """
import sys, time
from pathlib import Path
from headstart.activations import compute
from tests.test_activations import built, images_and_files
folder, cache, out, pause = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
backbone, images, files = images_and_files(folder)
whole = compute.engine_rows
def slow(*arguments):
    time.sleep(pause)
    return whole(*arguments)
compute.engine_rows = slow
done = built(out, cache, images, files, backbone, workers=2)
print(done.filled.computed, done.filled.cached)
"""


def work(folder, cache, out, pause=0.0):
    return forks.start("-c", WORK, str(folder), str(cache), str(out), str(pause))


def test_two_processes_compute_no_row_twice(tmp_path):
    folder = write_shapes(tmp_path / "shapes", each=40)
    runs = [work(folder, tmp_path / "cache", tmp_path / name, 0.05) for name in "abc"]
    found = [tuple(map(int, run.communicate()[0].split())) for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert sorted(found) == [(0, 240), (0, 240), (240, 0)]
    assert len({(tmp_path / name / "00000.arrow").read_bytes() for name in "abc"}) == 1


def test_kill_9_loses_at_most_the_batches_under_way_and_a_rerun_goes_on(tmp_path):
    """SIGKILL at several moments; each rerun finds what was computed, and the end is that of an undisturbed run."""
    folder = write_shapes(tmp_path / "shapes", each=40)
    assert work(folder, tmp_path / "whole", tmp_path / "undisturbed").wait() == 0
    before, kept = 0, []
    for moment in (1, 4, 9):
        run = work(folder, tmp_path / "cache", tmp_path / "out", 0.1)
        deadline = time.monotonic() + 60
        while rows_in(tmp_path / "cache") < min(before + 8 * moment, 232) and time.monotonic() < deadline:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        now = rows_in(tmp_path / "cache")
        assert now >= before + 8 * moment or now >= 232
        before = now
        kept.append(now)
        assert not (tmp_path / "out/00000.arrow").exists()
    run = work(folder, tmp_path / "cache", tmp_path / "out")
    computed, cached = map(int, run.communicate()[0].split())
    assert (computed, cached) == (240 - kept[-1], kept[-1])
    assert (tmp_path / "out/00000.arrow").read_bytes() == (tmp_path / "undisturbed/00000.arrow").read_bytes()


def rows_in(cache):
    return sum(path.stat().st_size // 42 for path in cache.glob("rows/*/index.bin"))


# commands


def test_stat_verify_and_prune(tmp_path, capsys, monkeypatch):
    project = make_project(tmp_path / "project")
    params = load_params(project / "params.yaml")
    root = open_root(project / params.runtime.cache_dir)
    backbone, images, files = images_and_files(tmp_path / "project-images")
    namespaces = {}
    for seed in (0, 1, 2):
        other = type(images)(**(images.__dict__ | {"seed": seed}))
        namespaces[seed] = built(tmp_path / "out", root, other, files, backbone).namespace
        os.utime(root / "rows" / namespaces[seed], (1_700_000_000 + seed, 1_700_000_000 + seed))
    record_use(root, project, {"pooled": namespaces[1]}, params)
    monkeypatch.chdir(project)
    assert commands.main(["stat"]) == 0
    said = capsys.readouterr().out
    assert "3 namespaces, 360 rows" in said and said.count("no project") == 2 and str(project) in said.replace("\n", "")
    assert commands.main(["verify"]) == 0
    path = root / "rows" / namespaces[0] / "rows.bin"
    path.write_bytes(bits(path.read_bytes(), 99))
    assert commands.main(["verify"]) == 1
    assert "view 0 is damaged" in capsys.readouterr().out
    size = sum(file.stat().st_size for file in root.glob("rows/*/*"))
    assert commands.main(["prune", "--max-gb", str((size - 1000) / 1e9)]) == 0  # the least recently used goes
    assert {folder.name for folder in (root / "rows").iterdir()} == {namespaces[1], namespaces[2]}
    with Cache(root / "rows" / namespaces[2], root / "locks" / f"{namespaces[2]}.lock", 1024).writing():
        assert commands.main(["prune"]) == 0
        assert "a process is writing into it" in capsys.readouterr().out
    assert commands.main(["prune"]) == 0
    assert [folder.name for folder in (root / "rows").iterdir()] == [namespaces[1]]
    set_params(project / "params.yaml", ["precompute.view_seed=7"])  # the project's parameters moved on
    assert commands.main(["prune"]) == 0
    assert not list((root / "rows").iterdir())
    assert guarded(lambda: commands.main(["--cache-dir", str(tmp_path / "none"), "stat"])) == 2


def test_a_namespace_says_what_it_depends_on(shapes, tmp_path):
    backbone, images, files = images_and_files(shapes)
    done = built(tmp_path / "a", tmp_path / "cache", images, files, backbone)
    description = json.loads((tmp_path / "cache/rows" / done.namespace / "namespace.json").read_text())
    assert description["augmentation"] == Augmentation("side_on", True, 10, 1.1, 0.1).__dict__
    assert (description["cut"], description["shape"], description["view_seed"]) == ("pooled", [backbone.width], 0)
