"""The built-in set is made where it is the source, nothing of a user's is replaced, and flow and `dvc repro` agree on both."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from flows.execution import FRESH, RAN, RESTORED, check_inputs, run_or_reuse
from flows.param_edits import set_params
from headstart.core.errors import InputError
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.core.stages import run_stage
from headstart.datasets.builtin import NAMES, foreign, is_source, write_oxford_pets
from headstart.datasets.digits import write_digit_pages, write_digits, write_turned_digits, write_two_notations
from headstart.datasets.flights import write_flights
from headstart.versioning import workspace
from tasks.fetch_data import fetch_data
from tests import templates
from tests.conftest import encode, make_project, picture, write_shapes
from tests.projects import BIN, dvc_here, run, run_here
from tests.test_builtin import pets_archives, site  # noqa: F401


def by_flow(project: Path, source: str) -> str:
    """Set data.source and run fetch_data as the flow does; what became of it."""
    with contextlib.chdir(project):
        params = set_params(project / "params.yaml", [f"data.source={source}"])
        with workspace(project) as space:
            return run_or_reuse(load_graph(project, params)["fetch_data"], space, project, params, False).how


def by_repro(project: Path, source: str | None = None) -> str:
    if source:
        set_params(project / "params.yaml", [f"data.source={source}"])
    return dvc_here(project, "repro", "-s", "fetch_data")


def images(project: Path) -> int:
    assert (project / "data/digits").is_dir()
    return sum(path.is_file() for path in (project / "data/digits").rglob("*"))


def test_flow_and_repro_agree_whatever_the_source_and_after_switching_back_and_forth(project, tmp_path):
    for source, wanted, how in (("data/shapes", 0, RAN), ("data/digits", 1797, RAN), ("data/shapes", 0, RESTORED)):
        assert by_flow(project, source) == how
        assert images(project) == wanted
        assert "didn't change" in by_repro(project)
        assert by_flow(project, source) == FRESH
    for source, wanted in (("data/digits", 1797), ("data/shapes", 0)):
        assert "is cached - skipping run" in by_repro(project, source)
        assert images(project) == wanted
        assert by_flow(project, source) == FRESH
    (project / "data/digits").rmdir()
    dvc_here(project, "checkout", "data/digits")
    assert images(project) == 0 and by_flow(project, "data/shapes") == FRESH
    dvc_here(project, "remote", "add", "-d", "team", str(tmp_path / "store"))
    dvc_here(project, "push", "fetch_data")
    run(project, "git", "add", "-A")
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    run(tmp_path, "git", "clone", "-q", str(project), str(tmp_path / "clone"))
    run(tmp_path / "clone", str(BIN / "dvc"), "pull", "fetch_data")
    assert images(tmp_path / "clone") == 0
    assert "up to date" in run(tmp_path / "clone", str(BIN / "dvc"), "status", "fetch_data")


@pytest.mark.parametrize("source", ["data/digits", "./data/digits/", "data/x/../digits", "data/digits/7", "{root}/data/digits"])
def test_the_built_in_set_is_the_source_however_it_is_written(tmp_path, source):
    assert is_source(tmp_path, source.format(root=tmp_path), "digits")


@pytest.mark.parametrize("source", ["data/shapes", "data/digits2", "data", "elsewhere/data/digits", "/data/digits"])
def test_another_source(tmp_path, source):
    assert not is_source(tmp_path, source, "digits")


def theirs(project: Path, what: str) -> Path:
    """Something of a user's at data/digits."""
    place = project / "data/digits"
    if what == "a link":
        place.symlink_to(write_shapes(project.parent / "mine"))
    elif what == "a file":
        place.write_text("mine")
    else:
        templates.digits(place)
        odd = {"an image more": "3/mine.png", "a folder more": "mine/0000.png", "in its root": "0001.png"}
        file = place / odd.get(what, "3/9999.png")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encode(picture(0, 0)))
    return place


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("a link", "data/digits"),
        ("a file", "data/shapes"),
        ("an image more", "data/shapes"),
        ("a folder more", "data/digits"),
        ("in its root", "data/digits"),
        ("a number too high", "data/digits"),
    ],
)
def test_what_a_user_put_there_is_never_replaced(tmp_path, what, source):
    project = make_project(tmp_path / "project", **{"data.source": source})
    place = theirs(project, what)
    before = sorted(path.as_posix() for path in place.parent.rglob("*"))
    params = load_params(project / "params.yaml")
    with pytest.raises(
        InputError, match=r"data/digits is .*(symbolic link|files of yours)[\s\S]*mv data/digits data/my-digits"
    ):
        check_inputs(project, params, [])
    with pytest.raises(InputError, match="data/digits is "):
        run_stage(load_graph(project, params)["fetch_data"], fetch_data, project, params)
    assert "data/digits is " in run_here(project, "flows.repair", code=2), "make repro looks before DVC does"
    if what == "a file":
        assert "data/digits is " in run(project, str(BIN / "python"), "-m", "flows.repair", code=2)
    assert sorted(path.as_posix() for path in place.parent.rglob("*")) == before


def test_what_fetch_data_wrote_is_known_again_and_what_a_system_leaves_there_is_nobodys(tmp_path, site):  # noqa: F811
    write_digits(tmp_path / "digits")
    write_digit_pages(tmp_path / "digit-pages")
    write_turned_digits(tmp_path / "turned-digits")
    write_two_notations(tmp_path / "two-notations")
    write_flights(tmp_path / "flights")
    for name, by_breed in (("oxford-pets", False), ("oxford-pets-breeds", True)):
        write_oxford_pets(tmp_path / name, tmp_path / "downloads", by_breed, pets_archives(site, 10))
    for name in NAMES:
        (tmp_path / name / ".DS_Store").write_bytes(b"")
        assert foreign(tmp_path / name, name) == []
        others = [other for other in NAMES if other != name]
        shutil.copytree(tmp_path / others[0], tmp_path / name, dirs_exist_ok=True)
        assert foreign(tmp_path / name, name)


def test_with_dvcs_symlink_cache_its_own_links_are_known(project):
    dvc_here(project, "config", "cache.type", "symlink")
    assert by_flow(project, "data/digits") == RAN
    assert (project / "data/digits/0/0000.png").is_symlink()
    assert foreign(project / "data/digits", "digits") == []
    (project / "data/digits/0/0000.png").unlink()
    (project / "data/digits/0/0000.png").symlink_to("/mine/0000.png")
    assert foreign(project / "data/digits", "digits") == ["0/0000.png"]
