"""Shared fixtures: small real image folders, and a whole small project to run stages in."""

from __future__ import annotations

import functools
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

# Before numpy and torch are imported. As many threads as a test asks for, and one where it asks for none; one that waits
# sleeps: where it spins, it holds up the thread that it waits for.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

import numpy as np
import pytest
from PIL import Image

from headstart.images.decode import FORMATS
from headstart.images.limits import Limits
from headstart.ingest.scan import Scan, ScanSettings, SplitRule, scan
from headstart.ingest.sources import list_source
from headstart.ingest.tree import preflight
from tests import templates
from tests.forked_workers import forked_workers

REPOSITORY = Path(__file__).resolve().parent.parent

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
    "runtime.threads": "1",
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
            (folder / "abcdefgh"[label] / f"{number:03}.png").write_bytes(shape(label, number))
    return folder


@functools.cache
def shape(label: int, number: int) -> bytes:
    return encode(picture(label, number))


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
    settings = ScanSettings(
        Limits(**limits), SplitRule(**rule), workers=1, state=state or folder.parent / "scan.sqlite", **rest
    )
    with forked_workers():
        return scan(tree, list_source(tree, **options), settings, (expected or {}) if verify else None)


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

    def small(params: Path) -> None:
        set_params(params, [f"{key}={value}" for key, value in SMALL.items()])

    template = templates.made_once("project", lambda empty: templates.new_project(empty, small))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    source = write_shapes(folder.parent / f"{folder.name}-images")
    (folder / "data").mkdir()
    (folder / "data/shapes").symlink_to(source)
    if settings:
        set_params(folder / "params.yaml", [f"{key}={value}" for key, value in settings.items()])
        templates.git(folder, "commit", "-qa", "--amend", "--no-edit")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With xdist: what shares a module's fixture runs in one worker (`--dist loadgroup`), and what takes long begins first.

    One test begins with `done`, which takes half a minute; the other workers do what needs no `done` until it is there.
    """
    if not hasattr(config, "workerinput"):
        return
    groups = [item for item in items if uses_a_module_fixture(item)]
    for item in groups:
        item.add_marker(pytest.mark.xdist_group(item.location[0]))
    pipeline = [item for item in items if "done" in item.fixturenames]
    first = [item for item in pipeline if item not in groups][:1]
    longest = [item for item in items if item.location[0] == "tests/test_soak.py"]  # ten minutes, of `make test-all`
    without_done = [item for item in groups if item not in pipeline]
    items[:] = dict.fromkeys([*longest, *first, *without_done, *pipeline, *items])


def uses_a_module_fixture(item: pytest.Item) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(found[-1].scope == "module" for found in definitions)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    templates.keep_in(tmp_path_factory)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return templates.add_mlflow(make_project(tmp_path / "project"))


@pytest.fixture(scope="session")
def done() -> Path:
    """A project whose pipeline has run once through the real command; tests copy it or only read it.

    All of pytest's processes have the same one.
    """

    def run_pipeline(folder: Path) -> None:
        from tests.projects import flow

        project = make_project(folder / "project")
        (project / "run.log").write_text(flow(project))

    return templates.made_once("pipeline", run_pipeline) / "project"


@pytest.fixture
def copied(done, tmp_path) -> Path:
    """A private copy of the finished project, over the same images."""
    copy = templates.copy_project(done, tmp_path / "copy")
    (copy / "data/shapes").unlink()
    shutil.copytree(done.parent / "project-images", tmp_path / "images")
    (copy / "data/shapes").symlink_to(tmp_path / "images")
    return copy
