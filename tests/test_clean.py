"""`make clean` deletes what stages write and nothing else, and says so first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import clean
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.versioning import workspace
from tests import templates
from tests.conftest import write_shapes
from tests.projects import run

KEPT = ("mlflow.db", "mlartifacts/1/model", ".dvc/cache/files/x", "params.yaml", "dvc.lock", "data/photos.dvc")
THEIRS = (
    "data/photos/a/1.jpg", "data/.hidden/x", "data/notes.txt", "models/my-weights.pth", "models/mine/x.safetensors",
    "reports/thesis.md", "reports/mine/x.png",
)  # fmt: skip


def everything(folder: Path) -> set[str]:
    """All files and links below a folder, and empty folders."""
    found = set()
    for top, folders, names in os.walk(folder):
        inside = Path(top).relative_to(folder)
        found |= {(inside / name).as_posix() for name in names}
        found |= {
            (inside / name).as_posix() for name in folders if Path(top, name).is_symlink() or not any(Path(top, name).iterdir())
        }
    return {path for path in found if not path.startswith((".git/", ".dvc/tmp", ".headstart/"))}


@pytest.fixture
def used(project: Path, monkeypatch) -> Path:
    """A project with something at every out's place, and things of a user's beside them."""
    graph = load_graph(project, load_params(project / "params.yaml"))
    for out in [out for stage in graph.values() if stage.name != "fetch_data" for out in stage.outs]:
        path = project / out if Path(out).suffix else project / out / "deep" / "x"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a stage's")
    templates.digits(project / "data/digits")
    (project / ".headstart/records").mkdir(parents=True)
    for name in (*KEPT, *THEIRS):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        if not (project / name).exists():
            (project / name).write_text("schema: '2.0'\n" if name == "dvc.lock" else "mine")
    monkeypatch.setattr(clean, "PROJECT", project)
    monkeypatch.chdir(project)
    return project


def cleaned(*arguments: str) -> None:
    assert clean.main(arguments) == 0


def test_only_what_stages_write_goes(used, capsys):
    before = everything(used)
    cleaned("--dry-run")
    told = capsys.readouterr().out
    assert everything(used) == before and (used / ".headstart").exists(), "it only listed"
    assert len(told.splitlines()) <= 24
    cleaned()
    assert capsys.readouterr().out == told.replace("would delete", "deleting")
    gone = before - everything(used)
    assert not (used / ".headstart").exists()
    assert {*KEPT, *THEIRS, "data/shapes"} <= everything(used)
    assert {path.split("/")[0] for path in gone} == {"data", "models", "reports"}
    left = everything(used)
    assert not [path for path in left if path.startswith(("data/digits", "data/activations", "reports/metrics.json"))]
    assert "data/photos, " in told and "models/my-weights.pth, " in told
    for path in {"/".join(path.split("/")[:2]) for path in gone}:
        assert f"  {path}\n" in told, "what went was listed"


def test_a_folder_of_a_users_at_a_built_in_sets_place_stays(used, capsys):
    (used / "data/digits/3/mine.png").write_text("mine")
    write_shapes(used / "data/oxford-pets")
    (used / "data/oxford-pets-breeds.dvc").write_text("a copy")
    (used / "data/oxford-pets-breeds").mkdir()
    cleaned()
    told = capsys.readouterr().out
    assert "data/digits: holds files that fetch_data did not write: 3/mine.png" in told
    assert "data/oxford-pets: holds files" in told and "data/oxford-pets-breeds: a copy in DVC's care" in told
    assert (used / "data/digits/3/mine.png").exists() and (used / "data/oxford-pets/a/000.png").exists()
    assert (used / "data/oxford-pets-breeds").exists() and (used / "data/digits/0/0000.png").exists()


@pytest.mark.parametrize(
    "place", ["data/digits", "data/activations", "models/fine_tuned.safetensors", "reports/data", ".headstart"]
)
def test_links_are_the_users_and_what_they_lead_to_even_more(used, tmp_path, place, capsys):
    elsewhere = write_shapes(tmp_path / "elsewhere")
    before = everything(elsewhere)
    run(used, "rm", "-rf", place)
    (used / place).symlink_to(elsewhere)
    cleaned()
    assert (used / place).is_symlink() and everything(elsewhere) == before
    assert f"{place}: a link, to {elsewhere}" in capsys.readouterr().out


def test_links_into_dvcs_cache_go_and_what_they_lead_to_stays(used):
    cached = used / ".dvc/cache/files/md5/ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text("x")
    (used / "models/fine_tuned.safetensors").unlink()
    (used / "models/fine_tuned.safetensors").symlink_to(cached)
    cleaned()
    assert not os.path.lexists(used / "models/fine_tuned.safetensors") and cached.exists()


def test_nothing_is_deleted_under_a_run(used):
    from headstart.core.errors import Unavailable

    before = everything(used)
    with workspace(used), pytest.raises(Unavailable):
        cleaned()
    assert everything(used) == before
