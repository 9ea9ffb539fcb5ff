"""recipes/*.yaml: each is valid, says what it gives, and runs."""

import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from flows.param_edits import edit_params
from headstart.activations.store import Activations
from headstart.core.errors import InputError
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.core.stages import run_stage
from headstart.core.yaml_text import read_yaml
from headstart.datasets import builtin, digits
from headstart.ingest.sources import list_as_set
from headstart.ingest.tree import preflight
from headstart.models.trained import load_card
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
    named = "digits digit-pages turned-digits two-notations flights dogs-vs-cats pets-breeds planet rossmann"
    assert {path.stem for path in RECIPES} == set(named.split())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_states_command_and_what_to_expect(params, recipe):
    edit = edit_params(params, [], recipe)
    own = recipe.stem in ("planet", "rossmann")  # files of the user's
    assert edit.params.data.source == f"data/{recipe.stem if own else edit.params.data.builtin}"
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


def keys(values, prefix=""):
    """The dotted keys of a recipe; a list is a value."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_default_recipe_has_every_key_that_a_recipe_sets():
    """So that nothing of a recipe stays when another one follows it."""
    default = set(keys(read_yaml(REPOSITORY / "recipes/digits.yaml")))
    for recipe in RECIPES:
        assert set(keys(read_yaml(recipe))) <= default, recipe


def test_nothing_of_a_recipe_stays_when_another_one_follows_it(params):
    """Lists of several lines and comments behind keys survive every change."""
    alone = {recipe: edit_params(REPOSITORY / "params.yaml", [], recipe).params for recipe in RECIPES}
    for recipe in [*RECIPES, *reversed(RECIPES)]:
        assert edit_params(params, [], recipe).make() == alone[recipe], recipe.stem
    assert edit_params(params, [], REPOSITORY / "recipes/digits.yaml").make() == load_params(REPOSITORY / "params.yaml")


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
    with pytest.raises(InputError, match="one of: digit-pages, digits, dogs-vs-cats"):
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


@pytest.mark.parametrize("name", ["digit-pages", "turned-digits"])
def test_a_recipe_of_another_target_runs_on_a_few_digits(project, monkeypatch, name):
    """All stages, with a small network, few digits and epochs; then what they wrote."""
    few = tuple(part[:180] for part in digits._digits())
    monkeypatch.setattr(digits, "_digits", lambda: few)
    small = ("backbone.", "find_lr.", "runtime.", "precompute.batch_size", "fine_tune.batch_size")
    sets = [f"{key}={value}" for key, value in SMALL.items() if key.startswith(small)]
    sets += ["precompute.engine=torch", "train_head.epochs=2", "fine_tune.epochs=1", "evaluate.thresholds=per_class"]
    params = edit_params(project / "params.yaml", sets, project / f"recipes/{name}.yaml").make()
    for stage_name, stage in load_graph(project, params).items():
        run_stage(stage, getattr(importlib.import_module(f"tasks.{stage_name}"), stage_name), project, params)
    described = json.loads((project / "data/target.json").read_text())
    results = json.loads((project / "reports/metrics.json").read_text())
    manifest = pd.read_parquet(project / "data/manifest.parquet")
    predictions = pd.read_parquet(project / "reports/predictions.parquet")
    card = load_card(project / "models/fine_tuned.safetensors")
    page = (project / "reports/report.html").read_text()
    assert list(predictions["label"]) == list(manifest.loc[manifest["split"] == "test", "label"])
    if name == "digit-pages":
        assert described == {"kind": "multi_label", "classes": list("0123456789"), "joiner": " "}
        assert len(card.target.thresholds) == 10 and card.target.rule == "per_class"
        p = torch.from_numpy(np.stack(predictions["probabilities"]))
        said = [" ".join(card.target.named(row)) for row in card.target.decide(p)]
        assert said == list(predictions["predicted"])
        assert set(results["fine_tuned_tta"]) >= {"f_beta", "mean_average_precision", "subset_accuracy", "micro_f1"}
        assert "Labels that come together" in page
    else:
        assert described["kind"] == "number" and not described["log"] and described["bounds"] is None
        error = predictions["predicted"] - predictions["label"].astype(float)
        once = ~manifest.loc[manifest["split"] == "test", "key"].duplicated().to_numpy()
        assert results["fine_tuned_tta"]["rmse"] == pytest.approx(float((error[once] ** 2).mean() ** 0.5))
        inside = (predictions["low"] <= predictions["label"].astype(float)) & (
            predictions["label"].astype(float) <= predictions["high"]
        )
        assert results["fine_tuned_tta"]["coverage"] == pytest.approx(float(inside[once].mean()))
        assert "rmspe" not in results["head"]  # some angles are below zero
        assert "Predicted against true" in page


def test_planets_files_are_read_as_kaggle_has_them(params, tmp_path):
    """Names without an extension, tags separated by blanks, a table of another name."""
    folder = tmp_path / "planet"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 9, 9)).save(folder / f"train_{number}.jpg")
    table = "image_name,tags\ntrain_0,haze primary\ntrain_1,clear primary water\ntrain_2,cloudy\ntrain_3,primary clear\n"
    (folder / "train_v2.csv").write_text(table)
    found = list_as_set(preflight(folder), edit_params(params, [], REPOSITORY / "recipes/planet.yaml").params.data)
    assert not found.problems and found.format.kind == "multi_label"
    labels = {entry.path: entry.label for entry in found.entries}
    assert labels == {
        "train_0.jpg": "haze primary",
        "train_1.jpg": "clear primary water",
        "train_2.jpg": "cloudy",
        "train_3.jpg": "clear primary",
    }


def test_pages_of_digits_share_no_digit_between_splits(tmp_path):
    """Every digit's pixels are on pages of one split alone."""
    digits.write_digit_pages(tmp_path / "pages")
    table = pd.read_csv(tmp_path / "pages/labels.csv", dtype=str)
    found = digits._by_split(1797)
    assert sorted(np.concatenate(list(found.values()))) == list(range(1797))
    assert {split: len(rows) for split, rows in table.groupby("split")} == {"test": 473, "train": 1713, "valid": 208}
    images, labels = digits._digits()
    page = np.asarray(Image.open(tmp_path / "pages" / table["path"][0]))
    cells = [page[y : y + 12, x : x + 12] for y in (0, 12) for x in (0, 12)]
    assert {int(part) for part in table["tags"][0].split()} == {
        int(labels[n])
        for cell in cells
        if cell.any()
        for n in found[table["split"][0]]
        if any((cell[y : y + 8, x : x + 8] == images[n]).all() for y in range(5) for x in range(5))
    }


def test_the_command_line_shows_the_diff_and_refuses_what_is_not_there(project):
    command = [sys.executable, "-m", "flows.pipeline", "--recipe"]
    said = flow_here(project, "--recipe", "nosuch", code=2)
    assert "wanted: one of: digit-pages, digits, dogs-vs-cats" in said
    wrong = [*command, "pets-breeds", "--set", "data.source=data/none"]
    done = subprocess.run(wrong, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "+  image_size: 224" in done.stderr
