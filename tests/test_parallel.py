"""How many threads are right is told by affinity and by the CPU limits of control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from headstart import hardware
from headstart.activations import engine as engine_module
from headstart.activations.engine import build_engine
from headstart.hardware import cores, resolve_workers
from headstart.models.backbones import build_backbone
from headstart.prediction.supervisor import score_all
from tests.projects import how
from tests.test_predict import job

MANY, CPU = 64, torch.device("cpu")


@pytest.fixture
def large(monkeypatch):
    """A machine with 64 processors, whatever this one has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(MANY)), raising=False)


def system(folder: Path, groups: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, MANY),
        ("0::/\n", {}, MANY),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "600000 100000\n"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "other/cpu.max": "100000 100000\n"}, 4),
        ("0::/docker/0123\n", {"cpu.max": "200000 100000\n"}, 2),  # the host's path; its own part is mounted
        ("0::/\n", {"unified/cpu.max": "200000 100000\n"}, 2),
        ("4:cpu:/a\n1:name=x:/\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "500000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 5),
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "20000\n"}, 3),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
        ("0::/\n", {"cpu.max": "damaged"}, MANY),
    ],
)  # fmt: skip
def test_a_limit_of_control_groups_holds(large, tmp_path, groups, files, wanted):
    assert cores(system(tmp_path, groups, **files)) == wanted


def test_without_control_groups_affinity_decides(large, tmp_path):
    assert cores(tmp_path) == MANY


def test_auto_is_the_cores_and_a_number_is_kept(monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 5)
    assert resolve_workers("auto") == 5 and resolve_workers(3) == 3


def test_each_stage_gives_the_engine_its_workers(copied, monkeypatch):
    """`runtime.workers` is the streams of the engine: of 64 cores, a run that was given 3 takes 3."""
    made: list[int] = []
    real = engine_module.torch_forward

    def noted(*arguments, **options):
        made.append(arguments[-1])
        return real(*arguments, **options)

    monkeypatch.setattr(engine_module, "torch_forward", noted)
    monkeypatch.setattr(hardware, "cores", lambda: MANY)
    how(copied, "runtime.workers=3", force=("precompute", "evaluate"))
    assert len(made) >= 2 and set(made) == {3}


# Notes the engine's streams in a file beside the first image, and classifies as always.
NOTING = """
import sys
from pathlib import Path
from headstart.activations import engine
from headstart.prediction import scorer
original = engine.openvino_forward
def noted(*arguments):
    Path(sys.argv[1]).write_text(str(arguments[-1]))
    return original(*arguments)
engine.openvino_forward = noted
scorer.main(int(sys.argv[2]), int(sys.argv[3]))
"""


def test_prediction_gives_the_engine_its_workers(done, shapes, tmp_path):
    found = dict(
        score_all(
            [str(shapes / "a/000.png")],
            job(done / "models/fine_tuned.safetensors", workers=3),
            [sys.executable, "-c", NOTING, str(tmp_path / "streams")],
        )
    )
    assert len(found) == 1 and (tmp_path / "streams").read_text() == "3"


def test_the_streams_of_openvino_change_no_bit():
    backbone = build_backbone("test_efficientnet", "random", 32)
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {"engine": "openvino", "precision": "float32", "storage": "float32", "batch_size": 4}
    first, *others = [
        build_engine(backbone.body, backbone.preprocessing, **options, device=CPU, workers=n)(x) for n in (1, 2, 5, "auto")
    ]
    assert all(torch.equal(first, other) for other in others)
