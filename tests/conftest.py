"""Shared fixtures: small real image folders, and a whole small project to run stages in."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import FORMATS
from headstart.images.limits import Limits
from headstart.ingest.layouts import list_source
from headstart.ingest.scan import Scan, SplitRule, scan
from headstart.ingest.tree import preflight

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

# Small and quick, yet every stage is real: two views, an unfrozen epoch, a network with batch norm and depthwise convolutions.
SMALL = {
    "data.source": "data/shapes",
    "data.max_quarantined": "0.2",
    "data.test_fraction": "0.65",  # 34 of 60 images: below 30 nothing is promoted
    "backbone.name": "test_efficientnet",
    "backbone.weights": "random",
    "backbone.image_size": "32",
    "precompute.views": "1",
    "precompute.batch_size": "8",
    "precompute.engine": "torch",
    "find_lr.steps": "30",
    "find_lr.seeds": "2",
    "train_head.epochs": "2",
    "fine_tune.epochs": "1",
    "fine_tune.batch_size": "8",
    "runtime.threads": "2",
}


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """An array [h, w(, 3)] uint8 as an image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(label: int, number: int, side: int = 20) -> np.ndarray:
    """A distinct noisy image [side, side, 3] whose bright band tells its class."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 90, (side, side, 3), dtype=np.uint8)
    pixels[label * 6 : label * 6 + 6] += 150
    return pixels


def write_shapes(folder: Path, classes: int = 3, each: int = 20) -> Path:
    """Class folders a, b, c of `each` PNG images."""
    for label in range(classes):
        (folder / "abcdefgh"[label]).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (folder / "abcdefgh"[label] / f"{number:03}.png").write_bytes(encode(picture(label, number)))
    return folder


LIMITS = {"max_pixels": 10_000, "min_side": 4, "formats": list(FORMATS)}


def scan_folder(
    folder: Path,
    *,
    verify: bool = False,
    expected: Mapping[str, str] | None = None,
    state: Path | None = None,
    **changes: object,
) -> Scan:
    """Pre-flight, list and scan a folder with small limits; `changes` are of `data`'s parameters."""
    options = {"label_pattern": "none", "group_pattern": "none", "nested_folders": False, "follow_external_links": False}
    rule = {"seed": 0, "valid_fraction": 0.2, "test_fraction": 0.2, "folds": 5, "fold": "none"}
    rest = {"max_quarantined": 0.2, "on_label_conflict": "refuse", "near_duplicates": "exclude", "timeout": 20.0}
    for group in (options, rule, rest, limits := dict(LIMITS)):
        group.update({key: changes.pop(key) for key in list(changes) if key in group})
    assert not changes
    tree = preflight(folder, follow_external_links=bool(options.pop("follow_external_links")))
    return scan(
        tree,
        list_source(tree, **options),
        limits=Limits(**limits),
        rule=SplitRule(**rule),
        workers=1,
        state=state or folder.parent / "scan.sqlite",
        expected=(expected or {}) if verify else None,
        **rest,
    )


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """Our logger as it was: commands run in this process give it handlers, and Prefect's logging does. The root logger is no
    one's to change: a library that silences it would take other libraries' warnings away."""
    logger, root_level = logging.getLogger("headstart"), logging.root.level
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
    assert logging.root.level == root_level


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "shapes")


def make_project(folder: Path, **settings: str) -> Path:
    """A copy of this repository's tracked files as a project of its own, its data set linked at data/shapes."""
    from flows.param_edits import set_params

    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if name.startswith(("tests/", "reports/", "docs/", "dvc.lock")) or not (REPOSITORY / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    source = write_shapes(folder.parent / f"{folder.name}-images")
    (folder / "data").mkdir()
    (folder / "data/shapes").symlink_to(source)
    set_params(folder / "params.yaml", [f"{key}={value}" for key, value in (SMALL | settings).items()])
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Path:
    """A project whose pipeline has run once through the real command; tests copy it or only read it."""
    project = make_project(tmp_path_factory.mktemp("pipeline") / "project")
    from tests.projects import flow

    (project / "run.log").write_text(flow(project))
    return project


@pytest.fixture
def copied(done, tmp_path) -> Path:
    """A private copy of the finished project, over the same images."""
    copy = tmp_path / "copy"
    shutil.copytree(done, copy, symlinks=True)
    (copy / "data/shapes").unlink()
    shutil.copytree(done.parent / "project-images", tmp_path / "images")
    (copy / "data/shapes").symlink_to(tmp_path / "images")
    return copy
