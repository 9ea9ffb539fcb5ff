"""recipes/*.yaml: each is valid, says what it gives, and runs."""

import importlib
import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from flows.param_edits import edit_params
from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.core.stages import run_stage
from headstart.datasets import builtin
from tests.conftest import REPOSITORY, SMALL
from tests.projects import flow_here
from tests.test_builtin import pets_archives, site  # noqa: F401 (a fixture)

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text())
    return path


def test_the_named_recipes_are_there():
    assert {path.stem for path in RECIPES} >= {"digits", "dogs-vs-cats", "pets-breeds"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_states_command_and_what_to_expect(params, recipe):
    edit = edit_params(params, [], recipe)
    assert edit.params.data.source == f"data/{edit.params.data.builtin}"
    text = recipe.read_text()
    assert f"command    python -m flows.pipeline --recipe {recipe.stem}\n" in text
    expected = re.search(r"#   expected   (.*)", text)[1]
    assert expected.startswith("not run: ") or re.search(r"\d seeds", expected), expected
    assert params.read_text() == (REPOSITORY / "params.yaml").read_text()  # nothing is written before it is asked for
    edit.make()
    assert load_params(params) == edit.params
    assert edit_params(params, [], recipe).diff() == ""


def test_the_default_is_the_digits_recipe(params):
    assert edit_params(params, [], REPOSITORY / "recipes/digits.yaml").diff() == ""


def test_the_diff_shows_what_changes_and_set_comes_after(params):
    edit = edit_params(params, ["fine_tune.epochs=9"], REPOSITORY / "recipes/pets-breeds.yaml")
    assert "+  epochs: 9" in edit.diff()
    assert "-  image_size: 96\n" in edit.diff()
    assert "+  image_size: 224\n" in edit.diff()
    assert "seed" not in edit.diff()
    assert edit.params.fine_tune.epochs == 9


def test_a_bad_recipe_is_refused_and_nothing_is_written(params, tmp_path):
    before = params.read_text()
    for text, told in (
        ("fine_tune: {epoch: 3}", "fine_tune.epoch: params.yaml has no such key"),
        ("nosuch: 1", "nosuch: params.yaml has no such key"),
        ("fine_tune: {epochs: {a: 1}}", "params.yaml has no such key"),
        ("fine_tune: 3", "fine_tune"),
        ("fine_tune: {epochs: 0}", "greater than or equal to 1"),
        ("- a", "not a mapping of sections"),
        ("a: [", "cannot be read as YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=re.escape(told)):
            edit_params(params, [], tmp_path / "bad.yaml").make()
        assert params.read_text() == before
    with pytest.raises(InputError, match="one of: digits, dogs-vs-cats, pets-breeds"):
        edit_params(params, [], REPOSITORY / "recipes/cats.yaml")


def test_dogs_against_cats_runs_on_a_small_archive_of_the_same_layout(project, site, monkeypatch):  # noqa: F811
    """The recipe, but for a small network and a searched rate; the photos come through the real download and unpacking."""
    monkeypatch.setattr(builtin.write_oxford_pets, "__defaults__", (pets_archives(site, 72),))
    small = ("backbone.", "find_lr.", "runtime.", "precompute.batch_size", "fine_tune.batch_size")
    sets = [f"{key}={value}" for key, value in SMALL.items() if key.startswith(small)]
    sets += ["precompute.engine=torch", "find_lr.unfrozen.steps=20", "fine_tune.lr=auto", "fine_tune.epochs=1"]
    sets += ["train_head.epochs=2"]
    params = edit_params(project / "params.yaml", sets, project / "recipes/dogs-vs-cats.yaml").make()
    said = {}
    for name, stage in load_graph(project, params).items():
        said[name] = run_stage(stage, getattr(importlib.import_module(f"tasks.{name}"), name), project, params).summary
    assert said["fetch_data"] == {"images": 72}
    results = json.loads((project / "reports/metrics.json").read_text())
    assert results["n_test"] == 28
    labels = pd.read_parquet(project / "reports/predictions.parquet")["label"]
    assert set(labels) == {"Cat", "Dog"}
    history = (project / "reports/fine_tune/history.csv").read_text()
    assert history.splitlines()[1].startswith("0,as it came,") and history.splitlines()[2].startswith("1,late,")
    maps = Activations(project / "data/activations/early")  # the tail was trained from it
    manifest = pd.read_parquet(project / "data/manifest.parquet")
    assert len(maps) == manifest.loc[manifest["split"] != "test", "key"].nunique() * maps.views
    page = (project / "reports/report.html").read_text()
    assert "For the unfrozen network" in page


def test_the_command_line_shows_the_diff_and_refuses_what_is_not_there(project):
    command = [sys.executable, "-m", "flows.pipeline", "--recipe"]
    said = flow_here(project, "--recipe", "nosuch", code=2)
    assert "wanted: one of: digits, dogs-vs-cats, pets-breeds" in said
    wrong = [*command, "pets-breeds", "--set", "data.source=data/none"]
    done = subprocess.run(wrong, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "+  image_size: 224" in done.stderr
