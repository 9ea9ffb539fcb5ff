"""Tables through the whole pipeline: rows without images, images with columns, time order, joins, prediction, the head."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import flows
from flows.param_edits import edit_params, set_params
from headstart.activations.inputs import HeadInputs
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.core.graph import load_graph
from headstart.core.params import Data, LeftOut, Params, load_params
from headstart.core.stages import run_stage
from headstart.ingest.rows import scan_rows
from headstart.ingest.scan import Scan, SplitRule
from headstart.ingest.tables import read_table
from headstart.ingest.tree import preflight
from headstart.manifest import own_columns, read_manifest
from headstart.models.column_head import (
    ColumnHead,
    ColumnSpec,
    Entities,
    First,
    PiecewiseLinear,
    SteadyBatchNorm,
    bin_edges,
    embedding_width,
)
from headstart.models.heads import HeadSpec, build_head, members_of
from headstart.models.trained import load_card
from headstart.models.weights import state_digest
from headstart.prediction import batch
from headstart.prediction.batch import Predictions, predict_folder
from headstart.prediction.predictor import Predictor
from headstart.prediction.supervisor import ScoringJob, score_all
from headstart.prediction.table import predict_table
from headstart.targets.number import Number
from headstart.targets.single_label import SingleLabel
from headstart.targets.target import LossRule
from headstart.tracking.model import Served
from headstart.tracking.record import _example
from headstart.training.options import per_member
from headstart.training.tuning import NOTHING_TO_UNFREEZE
from tests import forks, templates
from tests.conftest import REPOSITORY, encode, make_project, picture
from tests.projects import dvc_here, how, ran, run_here
from tests.test_graph import ORDER
from tests.test_resume import stage, wait_for

TABLE = [
    "data.source=data/shop", "data.path_column=none", "data.target=number", "data.test_fraction=0.3",
    "data.columns.categorical=auto", "data.columns.continuous=auto", "data.columns.date=auto",
    "data.joins=[{file: shops.csv, on: [shop]}]", "backbone.name=none", "find_lr.steps=20", "find_lr.seeds=1",
    "train_head.epochs=3", "train_head.lr=1e-2", "train_head.head=mlp", "train_head.columns.layers=[16, 8]",
    "train_head.columns.dropouts=[0.1, 0.0]", "train_head.columns.bins=8", "train_head.columns.time_bins=8",
    "train_head.columns.members=2",
]  # fmt: skip
TUNED = "models/fine_tuned.safetensors"


def sales_table(rows: int = 300) -> pd.DataFrame:
    """Sales that depend on the shop's size (in another table), on the temperature and on the day; some cells are missing."""
    rng = np.random.default_rng(0)
    shop, day, warm = rng.integers(0, 6, rows), rng.integers(0, 150, rows), rng.normal(10, 5, rows).round(2)
    sales = 10 + 3 * np.array([3, 1, 4, 1, 5, 9])[shop] + warm + 5 * (day % 7 == 0) + rng.normal(0, 0.3, rows)
    return pd.DataFrame(
        {
            "id": [f"r{number}" for number in range(rows)],
            "shop": [f"s{number}" for number in shop],
            "warm": np.where(rng.random(rows) < 0.05, np.nan, warm),
            "day": (np.datetime64("2013-01-01") + day).astype(str),
            "label": sales.round(3),
        }
    )


def write_shop(folder: Path) -> Path:
    folder.mkdir()
    sales_table().to_csv(folder / "labels.csv", index=False)
    pd.DataFrame({"shop": [f"s{i}" for i in range(6)], "size": [3, 1, 4, 1, 5, 9], "kind": list("aabbcc")}).to_csv(
        folder / "shops.csv", index=False
    )
    return folder


def shop_project(folder: Path) -> Path:
    project = templates.add_mlflow(make_project(folder / "project"))
    (project / "data/shop").symlink_to(write_shop(folder / "shop"))
    set_params(project / "params.yaml", TABLE)
    return project


def run_all(project: Path) -> dict[str, dict]:
    """Run all stages as they are, without DVC; what each says."""
    params, said = load_params(project / "params.yaml"), {}
    for name, one in load_graph(project, params).items():
        said[name] = run_stage(one, getattr(importlib.import_module(f"tasks.{name}"), name), project, params).summary
    return said


def outs(project: Path) -> dict[str, str]:
    """The hash of every file of every out."""
    places = ["data/manifest.parquet", "data/target.json", "data/quarantine.csv", "data/activations", "models", "reports"]
    files = [path for place in places for path in [project / place, *(project / place).rglob("*")] if path.is_file()]
    return {str(path.relative_to(project)): sha256_file(path) for path in files}


@pytest.fixture(scope="module")
def sold(tmp_path_factory) -> Path:
    """A structured project whose stages have run, each committed to DVC; tests read or copy it."""
    project = shop_project(tmp_path_factory.mktemp("sold"))
    assert ran(how(project)) == ORDER
    return project


@pytest.fixture
def own(sold, tmp_path) -> Path:
    """A private copy of it, over a copy of its tables."""
    templates.copy_project(sold, tmp_path / "project")
    shutil.copytree(sold.parent / "shop", tmp_path / "shop")
    (tmp_path / "project/data/shop").unlink()
    (tmp_path / "project/data/shop").symlink_to(tmp_path / "shop")
    return tmp_path / "project"


# The pipeline


def test_a_table_goes_through_all_stages(sold):
    manifest = read_manifest(sold / "data/manifest.parquet")
    assert set(manifest["path"]) == set(sales_table()["id"])
    assert list(own_columns(manifest)) == ["shop", "warm", "day", "size", "kind"]
    assert set(manifest["split"]) == {"train", "valid", "test"}
    inputs, encoders = HeadInputs(sold / "data/activations"), Predictor(sold / TUNED).encoders
    assert inputs.pooled is None and len(inputs.columns) == manifest["key"].nunique() == 300
    assert inputs.encoders() == encoders
    train = manifest[manifest["split"] == "train"]
    warm = pd.to_numeric(train["warm"])
    assert encoders.scales["warm"].median == warm.median()
    assert encoders.scales["warm"].mean == pytest.approx(warm.fillna(warm.median()).mean())
    assert encoders.flagged == ("warm",) and encoders.categories["kind"] == ("a", "b", "c")
    row = inputs.rows(manifest["key"][:1])[0]
    number = encoders.continuous_names.index("warm")
    scale, value = encoders.scales["warm"], float(manifest["warm"][0])
    assert row[number] == np.float32((value - scale.mean) / scale.std)
    assert json.loads((sold / "reports/fine_tune/kept.json").read_text())["sentence"] == NOTHING_TO_UNFREEZE
    assert (sold / TUNED).read_bytes() == (sold / "models/head.safetensors").read_bytes()
    results = json.loads((sold / "reports/metrics.json").read_text())
    assert results["n_test"] == (manifest["split"] == "test").sum()
    assert results["boosting"]["rmse"] < manifest["label"].astype(float).std() / 2
    (comparison,) = results["comparisons"].values()
    assert comparison["images"] == results["n_test"] and comparison["low"] <= comparison["difference"] <= comparison["high"]
    page = (sold / "reports/report.html").read_text()
    assert "boosting" in page and "Traceback" not in page and not re.search(r"\{\{|\{%|>nan<|>None<", page)


def test_predictions_are_those_of_evaluate_for_text_and_typed_tables(sold, tmp_path):
    judged = pd.read_parquet(sold / "reports/predictions.parquet").set_index("path")
    rows = sales_table().drop(columns="label")
    folder = tmp_path / "new"
    folder.mkdir()
    shutil.copyfile(sold.parent / "shop/shops.csv", folder / "shops.csv")
    rows.to_csv(folder / "new.csv", index=False)
    rows.iloc[::-1].assign(day=pd.to_datetime(rows["day"]), shop=rows["shop"].astype("category")).to_parquet(
        folder / "new.parquet"
    )
    text, typed = (
        predict_table(folder / f"new.{kind}", Predictor(sold / TUNED)).rows.set_index("path") for kind in ("csv", "parquet")
    )
    assert text.equals(typed.loc[text.index])
    wanted = judged[["predicted", "low", "high"]]
    np.testing.assert_allclose(text.loc[judged.index, ["predicted", "low", "high"]], wanted, rtol=1e-6)
    with mock.patch.object(flows, "PROJECT", sold):
        arguments = ("--model", str(sold / TUNED), "--out", str(tmp_path / "out.csv"))
        said = run_here(sold, "flows.predict", "--table", str(folder / "new.csv"), *arguments)
        assert "300 files or rows: 300 predicted" in said
        rows.drop(columns=["warm"]).to_csv(folder / "less.csv", index=False)
        said = run_here(sold, "flows.predict", "--table", str(folder / "less.csv"), *arguments, code=2)
    assert f"{folder / 'less.csv'} row 1: no column warm; columns found: id, shop, day, size, kind" in said
    assert "all columns that the model is trained on: shop, " in said
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["predicted"], text["predicted"])


def test_rows_that_training_has_not_seen_the_like_of(sold, tmp_path):
    shutil.copyfile(sold.parent / "shop/shops.csv", tmp_path / "shops.csv")

    def predict(**cells: str) -> float:
        row = {"id": "x", "shop": "s1", "warm": "9", "day": "2013-02-03"} | cells
        pd.DataFrame([row, row | {"id": "y", "shop": "s1"}]).to_csv(tmp_path / "new.csv", index=False)
        return predict_table(tmp_path / "new.csv", Predictor(sold / TUNED)).rows["predicted"][0]

    usual = predict()
    assert predict(day="03.02.2013") == usual  # another format that cannot be misread
    assert np.isfinite(predict(shop="s9")) and np.isfinite(predict(shop="", warm="", day="2030-12-31"))
    assert predict(warm="1e9") == predict(warm="1e12")  # the last bin has an end
    (tmp_path / "shops.csv").unlink()
    with pytest.raises(InputError, match=re.escape("'shops.csv': no such file in")):
        predict()


@pytest.mark.parametrize("chunk", [3, 8192])
def test_a_row_that_cannot_be_used_gets_the_reason(sold, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("headstart.prediction.table.CHUNK", chunk)
    shutil.copyfile(sold.parent / "shop/shops.csv", tmp_path / "shops.csv")
    rows = sales_table(20).drop(columns="label").astype("str")
    predictor = Predictor(sold / TUNED)

    def predict(rows: pd.DataFrame) -> Predictions:
        rows.to_csv(tmp_path / "new.csv", index=False)
        return predict_table(tmp_path / "new.csv", predictor)

    whole = predict(rows).rows
    spoiled = {
        1: ({"warm": "hot"}, "column warm: 'hot' is not a number"),
        2: ({"warm": "1e300"}, "column warm: '1e300' is too large"),
        4: ({"day": "02/03/2013"}, "column day: '02/03/2013' is not a date"),
        6: ({"day": "soon", "warm": "inf"}, "column warm: 'inf' is not a number"),  # the first column that is wrong
        19: ({"warm": "3 m"}, "column warm: '3 m' is not a number"),
    }
    for place, (cells, _) in spoiled.items():
        for name, cell in cells.items():
            rows.loc[place, name] = cell
    found = predict(rows)
    errors = {place: f"row {place + 2}, {reason}" for place, (_, reason) in spoiled.items()}
    assert found.rows["error"].tolist() == [errors.get(place, "") for place in range(20)]
    assert found.summary()["errors"] == 5 and found.rows["path"].equals(whole["path"])
    numbers = ["predicted", "low", "high"]
    assert found.rows.loc[[*errors], numbers].isna().all(axis=None)
    good = [place for place in range(20) if place not in errors]
    np.testing.assert_allclose(found.rows.loc[good, numbers], whole.loc[good, numbers], rtol=1e-6)
    assert predict(rows.loc[[*errors]]).rows["error"].ne("").all(), "every row"
    assert predict(rows[:0]).rows.empty


def test_a_table_beside_anything_is_predicted(sold, tmp_path):
    """Only the tables to join matter: in a folder such as /tmp there may be sockets, dangling links, and much more."""
    shutil.copyfile(sold.parent / "shop/shops.csv", tmp_path / "shops.csv")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    sales_table(20).to_csv(tmp_path / "new.csv", index=False)
    assert len(predict_table(tmp_path / "new.csv", Predictor(sold / TUNED)).rows) == 20


def test_from_scratch_in_another_place_gives_the_same_bytes(sold, tmp_path):
    project = shop_project(tmp_path)
    assert run_all(project)["precompute"] == {"categorical": 3, "continuous": 1, "date": 1}
    assert outs(project) == outs(sold)


def changed(project: Path, *assignments: str) -> set[str]:
    """The stages whose own dependencies or params differ from dvc.lock's."""
    before = (project / "params.yaml").read_text()
    set_params(project / "params.yaml", assignments)
    said = dvc_here(project, "status")
    (project / "params.yaml").write_text(before)
    return set(re.findall(r"^(\w+):", said, re.MULTILINE))


def test_what_a_change_touches(own):
    assert changed(own) == set()
    of_data = {"link_data", "precompute", "evaluate"}
    assert changed(own, "data.columns.date=[]") == of_data - {"link_data"}
    assert changed(own, "data.joins=[{file: shops.csv, on: [shop], columns: [size]}]") == of_data
    assert changed(own, "data.split_by=day") == of_data
    assert changed(own, "train_head.columns.bins=4") == {"find_lr", "train_head", "evaluate"}
    shops = own / "data/shop/shops.csv"
    shops.write_text(shops.read_text().replace("s0,3,a", "s0,4,a"))
    assert changed(own) == {"link_data"}
    assert ran(how(own)) == ORDER[1:]
    assert ran(how(own, "train_head.columns.bins=4")) == ["find_lr", "train_head", "fine_tune", "evaluate"]
    assert len(load_card(own / TUNED).head.columns.edges[0]) == 5


def test_a_killed_training_of_columns_gives_the_same_bytes(own):
    set_params(own / "params.yaml", ["train_head.epochs=30", "train_head.columns.embedding_dropout=0.2"])
    paths = [own / "models/head.safetensors", *sorted((own / "reports/train_head").iterdir())]

    def finish() -> dict[str, str]:
        process = stage(own, "train_head")
        assert process.wait() == 0, process.communicate()[1]
        return {path.name: sha256_file(path) for path in paths}

    undisturbed = finish()
    for path in paths:
        path.unlink()
    process = stage(own, "train_head")
    wait_for(own, process, "train_head/*/head.safetensors")
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert not paths[0].exists()
    assert finish() == undisturbed


def test_the_served_model_takes_columns_with_missing_values(sold):
    served = Served()
    served.load_context(SimpleNamespace(artifacts={"model": str(sold / TUNED)}))
    params = load_params(sold / "params.yaml")
    example = _example(sold, params)
    assert set(example) == {"shop", "warm", "day", "size", "kind"}
    test = read_manifest(sold / "data/manifest.parquet").query("split == 'test'").reset_index(drop=True)
    typed = own_columns(test).assign(warm=pd.to_numeric(test["warm"]))
    found = served.predict(None, typed)["predicted"]
    np.testing.assert_allclose(found, pd.read_parquet(sold / "reports/predictions.parquet")["predicted"], rtol=1e-6)
    assert served.predict(None, example)["predicted"][0] == pytest.approx(found[0], rel=1e-6)
    assert typed["warm"].isna().any()
    with pytest.raises(Exception, match="no column kind"):
        served.predict(None, typed.drop(columns="kind"))


def test_the_example_for_mlflow_may_lack_any_value(sold):
    manifest = read_manifest(sold / "data/manifest.parquet")
    first = manifest.index[manifest["split"] == "test"][0]
    manifest.loc[first, ["warm", "shop", "day"]] = ["NA", np.nan, ""]
    with mock.patch("headstart.tracking.record.read_manifest", return_value=manifest):
        example = _example(sold, load_params(sold / "params.yaml"))
    assert example["warm"].isna().all() and example["shop"].isna().all() and example["warm"].dtype == float


def test_the_lr_search_changes_nothing(own):
    before = outs(own)
    params = load_params(own / "params.yaml")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run_stage(load_graph(own, params)["find_lr"], importlib.import_module("tasks.find_lr").find_lr, own, params)
    assert torch.equal(torch.get_rng_state(), state)
    assert outs(own) == before


# Rossmann's layout


def write_rossmann(folder: Path) -> Path:
    """Five stores on 200 days, as Kaggle's train.csv and store.csv have them, the newest first; closed on Sundays."""
    rng, lines = np.random.default_rng(1), []
    for day in range(199, -1, -1):
        date = np.datetime64("2013-01-01") + day
        weekday = (date.astype(int) + 3) % 7 + 1
        for store in range(1, 6):
            promo, open_ = int(day // 7 % 2 == 0 and weekday < 6), int(weekday < 7)
            holiday, school = ("a" if day in (0, 90) else "0"), int(80 <= day < 95)
            sales = int(open_ * (2000 + 900 * store + 1500 * promo + 10 * day + rng.integers(0, 200)))
            lines.append(f'{store},{weekday},{date},{sales},{sales // 9},{open_},{promo},"{holiday}",{school}')
    folder.mkdir()
    header = "Store,DayOfWeek,Date,Sales,Customers,Open,Promo,StateHoliday,SchoolHoliday"
    (folder / "train.csv").write_text("\r\n".join([header, *lines]) + "\r\n")
    (folder / "store.csv").write_text(
        "Store,StoreType,Assortment,CompetitionDistance,CompetitionOpenSinceMonth,CompetitionOpenSinceYear,Promo2,"
        "Promo2SinceWeek,Promo2SinceYear,PromoInterval\n"
        '1,c,a,1270,9,2008,0,,,\n2,a,a,570,11,2007,1,13,2010,"Jan,Apr,Jul,Oct"\n3,a,a,14130,12,2006,1,14,2011,"Jan,Apr,Jul,Oct"\n'
        "4,c,c,620,9,2009,0,,,\n5,a,a,,,,0,,,\n"
    )
    return folder


def test_rossmanns_recipe_on_a_small_folder_of_its_layout(tmp_path):
    project = templates.add_mlflow(make_project(tmp_path / "project"))
    folder = write_rossmann(tmp_path / "rossmann")
    (project / "data/rossmann").symlink_to(folder)
    small = ["find_lr.steps=20", "find_lr.seeds=1", "train_head.epochs=2", "train_head.batch_size=64", "data.test_fraction=0.2"]
    sets = [*small, "train_head.columns.layers=[32, 16]", "train_head.columns.dropouts=[0.0, 0.0]", "runtime.threads=1"]
    edit_params(project / "params.yaml", sets, REPOSITORY / "recipes/rossmann.yaml").make()
    said = run_all(project)
    table = pd.read_csv(folder / "train.csv")
    assert said["link_data"]["rows"] == (table["Sales"] > 0).sum() < len(table) == 1000
    manifest = read_manifest(project / "data/manifest.parquet")
    dates = manifest.groupby("split")["Date"].agg(["min", "max"])
    assert dates.loc["train", "max"] < dates.loc["valid", "min"] <= dates.loc["valid", "max"] < dates.loc["test", "min"]
    assert manifest.groupby("Date")["split"].nunique().max() == 1
    card = load_card(project / TUNED)
    names = HeadInputs(project / "data/activations").encoders().continuous_names
    assert {"days since Promo", "StateHoliday in the next 7 days", "Date elapsed"} <= set(names)
    monday = manifest[manifest["Date"].astype(str).str.startswith("2013-04-01")]
    assert monday["SchoolHoliday in the last 7 days"].astype(float).tolist() == [7] * 5, "the closed Sunday counts too"
    assert "Customers" not in names and "Open" not in names  # not known beforehand, or the same in all rows
    assert card.target.log and card.target.bounds is not None
    results = json.loads((project / "reports/metrics.json").read_text())
    assert 0 < results["boosting"]["rmspe"] < 0.5 and 0 < results["network"]["rmspe"] < 1
    judged = pd.read_parquet(project / "reports/predictions.parquet").set_index("path")["predicted"]
    found = predict_table(folder / "train.csv", Predictor(project / TUNED)).rows.set_index("path")["predicted"]
    np.testing.assert_allclose(found[judged.index], judged, rtol=1e-5)
    truth = table.set_axis([f"row {row}" for row in range(2, len(table) + 2)])["Sales"]
    labels = pd.read_parquet(project / "reports/predictions.parquet").set_index("path")["label"].astype(int)
    assert labels.equals(truth[labels.index].rename("label"))  # each row has its own answer


# What link_data accepts


def data_of(**changes: object) -> Data:
    values = load_params(REPOSITORY / "params.yaml").model_dump()
    values["data"] |= {"path_column": "none", "columns": dict.fromkeys(("categorical", "continuous", "date"), "auto")} | changes
    values["backbone"]["name"] = "none"
    return Params.model_validate(values).data


def scanned(folder: Path, **changes: object) -> Scan:
    data = data_of(**changes)
    rule = SplitRule(0, data.valid_fraction, data.test_fraction, data.folds, data.fold)
    return scan_rows(preflight(folder), data, rule)


def small(rows: int = 120, **columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    day = (np.datetime64("2013-01-01") + rng.integers(0, 60, rows)).astype(str)
    frame = {
        "a": rng.integers(0, 40, rows),
        "b": rng.normal(size=rows).round(3),
        "day": day,
        "label": rng.normal(size=rows).round(3),
    }
    return pd.DataFrame(frame | columns)


def refused(tmp_path: Path, table: pd.DataFrame | str, **changes: object) -> str:
    text = table if isinstance(table, str) else table.to_csv(index=False)
    (tmp_path / "labels.csv").write_text(text, newline="")
    with pytest.raises(InputError) as error:
        scanned(tmp_path, **changes)
    return str(error.value)


def test_a_row_keeps_its_split_when_rows_are_added(tmp_path):
    small().to_csv(tmp_path / "labels.csv", index=False)
    before = scanned(tmp_path).manifest.set_index("key")["split"]
    pd.concat([small(7, a=99), small()]).to_csv(tmp_path / "labels.csv", index=False)
    after = scanned(tmp_path).manifest.set_index("key")["split"]
    assert len(after) == 127 and after[before.index].equals(before)
    small().to_parquet(tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").unlink()
    assert scanned(tmp_path).manifest.set_index("key")["split"].equals(before)


def test_a_quoted_name_may_hold_other_delimiters(tmp_path):
    (tmp_path / "t.csv").write_text('"a,b,c";"d\ne,f"\n1;2\n')
    assert read_table(tmp_path / "t.csv").to_dict("records") == [{"a,b,c": "1", "d\ne,f": "2"}]


def test_rows_are_left_out_by_their_values(tmp_path):
    table = small().assign(open=[0, 1] * 60, label=[number * (number % 2) for number in range(120)])
    table.to_csv(tmp_path / "labels.csv", index=False)
    found = scanned(tmp_path, leave_out=[LeftOut(column="open", values=[0])], target="number", log_target=True)
    assert found.manifest["open"].astype(str).unique().tolist() == ["1"] and len(found.manifest) == 60
    assert ("labels.csv", "left out", "60 rows, by data.leave_out") in found.notes.itertuples(index=False, name=None)
    for column, said in (("shut", "data.leave_out: "), ("open", "every row has open 0 or 1")):
        assert said in refused(tmp_path, table, leave_out=[LeftOut(column=column, values=[0, 1])])


def test_equal_rows_share_a_key_and_a_split(tmp_path):
    twice = pd.concat([small(), small()[:50]])
    twice.to_csv(tmp_path / "labels.csv", index=False)
    manifest = scanned(tmp_path).manifest
    assert manifest["key"].nunique() == 120 and (manifest.groupby("key")["split"].nunique() == 1).all()
    declared = twice.assign(split=["train"] * 100 + ["valid"] * 20 + ["test"] * 50)
    declared.to_csv(tmp_path / "labels.csv", index=False)
    splits = scanned(tmp_path).manifest["split"].value_counts()
    assert splits.to_dict() == {"train": 50, "excluded": 50, "test": 50, "valid": 20}  # no test row is learned from


def test_ids_name_rows_and_may_be_joined_on(tmp_path):
    (tmp_path / "more.csv").write_text("id,x\n" + "".join(f"n{i},{i % 3}\n" for i in range(120)))
    named = small(id=[f"n{i}" for i in range(120)])
    named.to_csv(tmp_path / "labels.csv", index=False)
    first = scanned(tmp_path, joins=[{"file": "more.csv", "on": ["id"]}]).manifest
    assert list(own_columns(first)) == ["a", "b", "day", "x"] and first["x"].notna().all()
    named.assign(a=0).to_csv(tmp_path / "labels.csv", index=False)
    again = scanned(tmp_path).manifest
    assert again["key"].equals(first["key"]) and again["split"].equals(first["split"])
    assert "row 4, column id: 'n1' is already in another row" in refused(
        tmp_path, named.assign(id=["n0", "n1", "n1", *range(117)])
    )
    assert "row 3, column id: empty" in refused(tmp_path, named.assign(id=["n0", "", *range(118)]))


def test_groups_stay_together(tmp_path):
    small(group=[f"g{i % 30}" for i in range(120)], patient=[f"p{i % 40}" for i in range(120)]).to_csv(
        tmp_path / "labels.csv", index=False
    )
    for manifest, name in ((scanned(tmp_path).manifest, 30), (scanned(tmp_path, group_column="patient").manifest, 40)):
        assert manifest["group"].nunique() == name and (manifest.groupby("group")["split"].nunique() == 1).all()
    assert "no column nosuch; columns found: a, b" in refused(tmp_path, small(), group_column="nosuch")


def test_time_order(tmp_path):
    table = small(group=[f"g{i % 3}" for i in range(120)])  # time alone decides, not this
    table.to_csv(tmp_path / "labels.csv", index=False)
    manifest = scanned(tmp_path, split_by="day").manifest
    dates = manifest.groupby("split")["day"].agg(["min", "max", "count"])
    assert dates.loc["train", "max"] < dates.loc["valid", "min"] <= dates.loc["valid", "max"] < dates.loc["test", "min"]
    assert dates["count"].sum() == 120 and dates.loc["test", "count"] >= 24
    ordered = table.drop(columns="group").sort_values("day")
    kept = ordered.assign(split=["train"] * 80 + ["valid"] * 20 + ["test"] * 20)
    days = ordered["day"].tolist()
    assert days[79] < days[80] or days[79] == days[80]
    kept.to_csv(tmp_path / "labels.csv", index=False)
    assert scanned(tmp_path, split_by="day").manifest["split"].value_counts().to_dict() == {
        "train": 80,
        "valid": 20,
        "test": 20,
    }
    early = kept.assign(split=["valid"] * 20 + ["train"] * 80 + ["test"] * 20)
    assert f"training rows are newer than {days[0]}, the oldest row to judge by" in refused(tmp_path, early, split_by="day")
    part = kept.assign(split=["train"] * 100 + ["valid"] * 20)
    assert "splits of its own, but no test rows" in refused(tmp_path, part, split_by="day")
    table.loc[3, "day"] = ""
    assert "1 rows without a date:\n    row 5: no date" in refused(tmp_path, table, split_by="day")
    assert "no rows are left for" in refused(tmp_path, small(day="2013-01-01"), split_by="day")
    assert "no column when; columns found: a, b, day" in refused(tmp_path, small(), split_by="when")
    new = small(label=np.where(small()["day"] > "2013-02-15", "new", "old"))
    assert "new" in refused(tmp_path, new, split_by="day")  # a class is never fetched from the future


def test_joins_neither_multiply_nor_lose_rows(tmp_path):
    shops = [{"file": "shops.csv", "on": ["a"]}]
    (tmp_path / "shops.csv").write_text("a,size\n1,10\n1,20\n")
    assert "the key a '1' occurs 2 times, in rows 2, 3" in refused(tmp_path, small(), joins=shops)
    (tmp_path / "shops.csv").write_text("a,size\n77,10\n")
    assert "no row has a partner on a" in refused(tmp_path, small(), joins=shops)
    (tmp_path / "shops.csv").write_text("size,a\n" + "".join(f"{i * 10},{i}\n" for i in range(20, -1, -1)))
    found = scanned(tmp_path, joins=shops)
    own = own_columns(found.manifest)
    assert len(own) == 120 and (own["size"].isna() == (own["a"].astype(int) > 20)).all()
    known = own.dropna()
    assert (known["size"].astype(int) == 10 * known["a"].astype(int)).all()
    assert "rows have no partner in shops.csv" in found.notes["text"].item()
    assert "'none.csv': no such file" in refused(tmp_path, small(), joins=[{"file": "none.csv", "on": ["a"]}])
    told = refused(tmp_path, small(), elapsed=[{"event": "a", "by": "b"}])
    assert "event a: its date is auto, but data.split_by is none" in told


def test_problems_of_labels_are_named_by_row(tmp_path):
    table = small().astype(object)
    table.loc[[3, 5], "label"] = ["", "many"]
    told = refused(tmp_path, table, target="number")
    assert "2 rows cannot be used:\n    row 5: the label is empty\n    row 7: the label is 'many'" in told
    assert "labels.csv row 5: the label is empty" in refused(tmp_path, table.drop(index=5))
    assert "row 2: the label is q = '2'" in refused(
        tmp_path, small(3, p=[0, 1, 1], q=[2, 0, 1]).drop(columns="label"), label_columns=["p", "q"]
    )
    assert "only one class ('x')" in refused(tmp_path, small(label=["x", " x", "x "] * 40))  # nobody can see the difference
    assert "row 1: no column y; columns found: a, b, day, label" in refused(tmp_path, small(), label_column="y")
    assert "row 4, column split: 'trian'" in refused(tmp_path, small(4, split=["train", "valid", "trian", "test"]))
    assert "column path is reserved" in refused(tmp_path, small(path="x"))
    assert "no rows" in refused(tmp_path, "a,label\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [("a,b\n1,2,3\n4,5\n", "row 2: 3 cells, but the header has 2 columns"), ("a,b\n1,2\n3\n", "row 3: 1 cells"),
     ("a,b\n\n1,2\n3,4,\n", "row 4: 3 cells"), ('a,b\n1,"2\n3,4\n', "line 3: unexpected end of data"), ("", "empty"),
     ("a,a\n1,2\n", "row 1: column a occurs twice"), ("a,\n1,2\n", "row 1: a column without a name")],
)  # fmt: skip
def test_cells_are_neither_dropped_nor_made_up(tmp_path, text, told):
    (tmp_path / "t.csv").write_text(text, newline="")
    with pytest.raises(InputError, match=re.escape(told)):
        read_table(tmp_path / "t.csv")


def test_rows_of_a_csv_file_have_their_numbers(tmp_path):
    path = tmp_path / "t.csv"
    for text, rows in (
        ("\n\na;b\n1;2\n\n3;4\n", {4: ["1", "2"], 6: ["3", "4"]}),
        ('\ufeffa\tb\r\n1\t"2\n3"\r\n\t\r\n', {2: ["1", "2\n3"], 3: ["", ""]}),
        ('"a",b\r1,NA\r#,"x ""y"""', {2: ["1", "NA"], 3: ["#", 'x "y"']}),
    ):
        path.write_text(text, newline="")
        found = read_table(path)
        assert list(found) == ["a", "b"] and dict(zip(found.index, found.to_numpy().tolist(), strict=True)) == rows


# Images and columns


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A project whose images say a class, or the other one if a column says so; its stages have run."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "images").mkdir()
    rows = [("path", "label", "notation", "weight")]
    for number in range(64):
        shown, plain = number % 2, number // 2 % 2 == 0
        (folder / f"images/{number:03}.png").write_bytes(encode(picture(shown, number)))
        label, notation = "ab"[shown if plain else 1 - shown], "plain" if plain else "swapped"
        rows.append((f"images/{number:03}.png", label, notation, "" if number % 9 == 0 else f"{number / 10}"))
    (folder / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    project = templates.add_mlflow(make_project(folder / "project"))
    (project / "data/both").symlink_to(folder / "linked")
    (folder / "linked").mkdir()
    for name in ("images", "labels.csv"):
        shutil.move(folder / name, folder / "linked" / name)
    columns = ["data.columns.categorical=[notation]", "data.columns.continuous=[weight]", "train_head.head=mlp"]
    head = ["layers=[8]", "dropouts=[0.0]", "members=2", "bins=4"]
    rates = ["train_head.lr=1e-2", "fine_tune.lr=1e-2", "data.test_fraction=0.4", "data.near_duplicates=keep"]
    set_params(
        project / "params.yaml", ["data.source=data/both", *columns, *rates, *(f"train_head.columns.{one}" for one in head)]
    )
    run_all(project)
    return project


def test_images_and_columns_are_learned_together(both):
    inputs = HeadInputs(both / "data/activations")
    manifest = read_manifest(both / "data/manifest.parquet")
    keys = list(manifest["key"])
    rows = inputs.rows(keys)
    assert inputs.width > 0 and rows.shape == (64, inputs.width + 3)  # weight, whether it is missing, notation
    assert torch.equal(rows[:, : inputs.width], inputs.pooled.rows(keys))
    assert torch.equal(rows[:, inputs.width :], inputs.columns.rows(keys))
    results = json.loads((both / "reports/metrics.json").read_text())
    assert {"head", "head_tta", "fine_tuned", "fine_tuned_tta"} <= results.keys()
    card = load_card(both / TUNED)
    assert card.head.columns.members == 2 and card.head.width == inputs.width and card.columns["encoders"]
    history = (both / "reports/fine_tune/history.csv").read_text().splitlines()
    assert len(history) == 3  # as it came, and an epoch: the file was read back with its columns


def test_a_tuned_networks_answer_depends_on_both(both):
    predictor = Predictor(both / TUNED)
    files = [(both / "data/both/images" / name).read_bytes() for name in ("000.png", "001.png")]
    plain, swapped = (
        predictor.encode(pd.DataFrame({"notation": [one] * 2, "weight": ["1"] * 2})) for one in ("plain", "swapped")
    )
    first = predictor.answers_of_bytes(files, plain)
    assert not torch.equal(first, predictor.answers_of_bytes(files, swapped)) and not torch.equal(first[0], first[1])
    with pytest.raises(InputError, match="takes columns of a table"):
        predictor.answers_of_bytes(files)
    served = Served()
    served.load_context(SimpleNamespace(artifacts={"model": str(both / TUNED)}))
    request = pd.DataFrame({"image": files, "notation": ["plain"] * 2, "weight": [1.0, 1.0]})
    assert served.predict(None, request)["predicted"].tolist() == [
        predictor.card.target.classes[i] for i in first.argmax(1).tolist()
    ]


def test_files_are_predicted_with_their_rows(both, tmp_path, monkeypatch):
    scorer = forks.command("-m", "headstart.prediction.scorer")
    monkeypatch.setattr(batch, "score_all", lambda paths, job: score_all(paths, job, scorer))
    folder, model = tmp_path / "new", both / TUNED
    shutil.copytree((both / "data/both").resolve(), folder)
    table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    (folder / "labels.csv").unlink()
    table.loc[0, "weight"] = "heavy"
    table.iloc[:-1].drop(columns="label").to_csv(tmp_path / "rows.csv", index=False)
    facts = {
        "model": model,
        "digest": sha256_file(model),
        "top": 1,
        "timeout": 20.0,
        "workers": 1,
        "threads": 1,
        "device": "cpu",
    }
    job = ScoringJob(**facts, table=str(tmp_path / "rows.csv"), root=str(folder))
    found = predict_folder(folder, job, state=tmp_path / "state.sqlite")
    rows = found.rows.set_index("path")
    wrong = {table["path"][0]: "the table rows.csv row 2, column weight: 'heavy' is not a number"}
    wrong |= {table["path"].iloc[-1]: "the table rows.csv has no row for it"}
    assert rows["error"].to_dict() == {path: wrong.get(path, "") for path in table["path"]}
    manifest = read_manifest(both / "data/manifest.parquet").set_index("path")
    predictor = Predictor(model, None, 16, 1)
    files = [(folder / path).read_bytes() for path in rows.index[1:-1]]
    wanted = predictor.answers_of_bytes(files, predictor.encode(own_columns(manifest.reset_index()).iloc[1:-1])).max(1)
    assert rows["predicted"].iloc[1:-1].tolist() == [predictor.card.target.classes[i] for i in wanted.indices.tolist()]
    np.testing.assert_allclose(rows["confidence"].iloc[1:-1].astype(float), wanted.values, atol=1e-6)
    with pytest.raises(InputError, match="takes columns of a table"):
        predict_folder(folder, ScoringJob(**facts), state=tmp_path / "other.sqlite")
    with pytest.raises(InputError, match="learned from images"):
        predict_table(tmp_path / "rows.csv", predictor)


def test_remembered_answers_depend_on_all_tables(both, sold, tmp_path):
    for name in ("labels.csv", "shops.csv"):
        shutil.copyfile(sold.parent / "shop" / name, tmp_path / name)
    facts = {"digest": "", "top": 1, "timeout": 20.0, "workers": 1, "threads": 1, "device": "cpu"}
    job = ScoringJob(model=sold / TUNED, **facts, table=str(tmp_path / "labels.csv"), root=str(tmp_path))
    seen = {batch._namespace(job)}
    for name in ("labels.csv", "shops.csv"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        seen.add(batch._namespace(job))
    assert len(seen) == 3


@pytest.mark.parametrize("columns", ["[]", "[notation]"])
def test_without_a_backbone_columns_must_be_named(tmp_path, columns):
    path = tmp_path / "params.yaml"
    shutil.copyfile(REPOSITORY / "params.yaml", path)
    if columns == "[]":
        with pytest.raises(InputError, match="backbone.name is none, so data.columns must name columns"):
            set_params(path, ["backbone.name=none"])
        with pytest.raises(InputError, match="path_column is none .rows without images., so backbone.name must be none"):
            set_params(path, ["data.path_column=none", "data.columns.categorical=[a]"])
    else:
        set_params(path, ["backbone.name=none", f"data.columns.categorical={columns}"])


# The head of columns

SPEC = ColumnSpec(
    edges=((-1.0, 0.0, 2.0), (0.0, 1.0)), cardinalities=(4, 7), hidden=(0.0, 0.0), layers=(6,), dropouts=(0.0,),
    embedding_dropout=0.0, embedding="lesson", members=3,
)  # fmt: skip


def rows_of(count: int = 9, width: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in SPEC.cardinalities], 1)
    return torch.cat([torch.randn(count, width + 2, generator=generator), codes], 1)


def test_numbers_come_piecewise_through_their_bins():
    x_nm = torch.tensor([[-5.0, 0.25], [-0.5, 9.0], [1.0, -1.0], [9.0, 1.0]])
    found = PiecewiseLinear(SPEC.edges)(x_nm)
    plain = [
        [
            min(max((value - low) / (high - low), 0), 1)
            for value, ends in zip(row, SPEC.edges, strict=True)
            for low, high in itertools.pairwise(ends)
        ]
        for row in x_nm.tolist()
    ]
    assert found.tolist() == plain == [[0, 0, 0.25], [0.5, 0, 1], [1, 0.5, 0], [1, 1, 1]]


def test_edges_are_quantiles_of_the_training_rows():
    rng = np.random.default_rng(0)
    numbers = np.stack([rng.normal(size=1000), np.full(1000, 3.0), rng.integers(0, 2, 1000)], 1).astype(np.float32)
    many, one, two = bin_edges(numbers, [8, 8, 8])
    assert len(many) == 9 and many == tuple(sorted(many))
    counts = np.histogram(numbers[:, 0], many)[0]
    assert counts.sum() == 1000 and counts.max() - counts.min() <= 2
    assert one == (3.0, 4.0) and two == (0.0, 1.0)
    assert bin_edges(numbers[:1], [4, 4, 4])[1] == (3.0, 4.0)
    assert PiecewiseLinear([many, one, two])(torch.from_numpy(numbers)).isfinite().all()


@pytest.mark.parametrize(
    ("codes", "lesson", "fastai"), [(2, 1, 2), (3, 2, 3), (8, 4, 5), (99, 50, 21), (10_000, 50, 278), (10**6, 50, 600)]
)
def test_widths_of_embeddings(codes, lesson, fastai):
    assert (embedding_width(codes, "lesson"), embedding_width(codes, "fastai")) == (lesson, fastai)


def test_categories_are_hidden_as_often_as_they_are_unknown():
    spec = ColumnSpec(**SPEC.__dict__ | {"hidden": (0.3, 0.0)})
    torch.manual_seed(0)
    entities = Entities(spec)
    codes = torch.tensor([[2, 5]]).expand(4000, 2)
    whole = torch.cat([entities.tables[0].weight[2], entities.tables[1].weight[5]])
    hidden = torch.cat([entities.tables[0].weight[0], entities.tables[1].weight[5]])
    assert entities.width == len(whole) == 2 + 4
    assert torch.equal(entities.eval()(codes), whole.expand(4000, -1))
    found = entities.train()(codes)
    is_hidden = (found == hidden).all(1)
    assert (is_hidden | (found == whole).all(1)).all()
    assert is_hidden.float().mean() == pytest.approx(0.3, abs=0.03)
    assert "hidden_k" not in entities.state_dict()  # the card has it


@pytest.mark.parametrize("width", [0, 5])
def test_members_are_networks_side_by_side(width):
    head = build_head(HeadSpec("mlp", width, 3, SPEC), seed=1)
    assert isinstance(head, ColumnHead)
    x_nd = rows_of(width=width)
    assert members_of(head) == 3 and head.train()(x_nd.repeat(3, 1)).shape == (27, 3)
    first, second, _ = head(x_nd.repeat(3, 1)).chunk(3)
    assert not torch.equal(first, second)  # each begins elsewhere
    if not width:
        apart = [member(part) for member, part in zip(head.members, x_nd.chunk(3), strict=True)]
        torch.testing.assert_close(head(x_nd), torch.cat(apart))  # each part by its own member
    twin = build_head(HeadSpec("mlp", width, 3, SPEC), seed=1)
    assert state_digest(twin) == state_digest(build_head(HeadSpec("mlp", width, 3, SPEC), seed=1))
    with torch.inference_mode():
        twin.eval()
        alone = torch.stack([plain_member(member, x_nd, width) for member in twin.members]).mean(0)
        torch.testing.assert_close(twin(x_nd), alone)
        torch.testing.assert_close(twin(x_nd)[:1], twin(x_nd[:1]))


def test_a_member_learns_as_it_would_alone():
    """The loss is a mean over members; a member's gradient is that of its own loss, and an activation's is the mean."""
    head, y_n = build_head(HeadSpec("mlp", 5, 1, SPEC), seed=1), torch.randn(9)
    parts = [rows_of(width=5).requires_grad_() for _ in range(3)]
    per_member(Number(False, 0.0, 1.0).loss(LossRule(), y_n))(head.train()(torch.cat(parts)), y_n).backward()
    found = [[p.grad.clone() for p in member.parameters()] for member in head.members]
    of_rows = [part.grad.clone() for part in parts]
    for member, part, gradients, row in zip(head.members, parts, found, of_rows, strict=True):
        head.zero_grad()
        part.grad = None
        logits = member(torch.cat([head.standardise(part[:, :5]), part[:, 5:]], 1))
        F.mse_loss(logits[:, 0], y_n).backward()
        torch.testing.assert_close(gradients, [p.grad for p in member.parameters()])
        torch.testing.assert_close(row, part.grad / 3)


def near_ends(x_nm: torch.Tensor) -> torch.Tensor:
    """Hat functions: 1 at the end of a bin, 0 at its neighbours and beyond; the last stays 1 beyond its end."""
    ends = [[*edges, 2 * edges[-1] - edges[-2]] for edges in SPEC.edges]
    hats = [
        np.interp(x_nm[:, i].clamp(edges[0], edges[-2]), edges, np.eye(len(edges))[place])
        for i, edges in enumerate(ends)
        for place in range(1, len(edges) - 1)
    ]
    return torch.tensor(np.stack(hats, 1), dtype=torch.float32)


def plain_member(member: torch.nn.Module, x_nd: torch.Tensor, width: int) -> torch.Tensor:
    parts = [x_nd[:, :width], member.bins(x_nd[:, width : width + 2])]
    parts += [table.weight[x_nd[:, width + 2 + i].long()] for i, table in enumerate(member.entities.tables)]
    _, norm, *_, last = member.layers
    parts.insert(2, near_ends(x_nd[:, width : width + 2]))
    weight = torch.cat([member.first.fixed, member.first.near, member.first.embedded], 1)
    h = F.relu(torch.cat(parts, 1) @ weight.T + member.first.bias)
    h = (h - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
    return h @ last.weight.T + last.bias


def test_the_folded_weight_has_the_gradient_of_its_formula():
    """It has a function of its own for speed; the plain formula, which autograd can follow, gives the same bits."""
    first = First(3, SPEC.edges, 0, 4)
    fixed_hd, near_hb = first.fixed.detach().clone().requires_grad_(), first.near.detach().clone().requires_grad_()
    of_bins_hb = near_hb - F.pad(near_hb[:, :-1], (1, 0)) * first.continues_b
    plain_hd = fixed_hd + F.pad(of_bins_hb, (3, 0))
    weight_hd, gradient_hd = first.weight(), torch.randn_like(plain_hd)
    assert torch.equal(weight_hd, plain_hd)
    weight_hd.backward(gradient_hd)
    plain_hd.backward(gradient_hd)
    assert torch.equal(first.fixed.grad, fixed_hd.grad) and torch.equal(first.near.grad, near_hb.grad)


def test_running_statistics_are_right_after_few_batches():
    """The first batches count 1, 2, 3 …: nothing is left of the initial mean 0 and variance 1. A reload continues the same."""
    torch.manual_seed(0)
    batches = 3 + 2 * torch.randn(5, 64, 2)
    norm, weights = SteadyBatchNorm(2).train(), torch.arange(1.0, 6)
    for x_nh in batches[:3]:
        norm(x_nh)
    again = SteadyBatchNorm(2).train()
    again.load_state_dict(norm.state_dict())
    for x_nh in batches[3:]:
        assert torch.equal(norm(x_nh), again(x_nh))
    wanted = (weights[:, None] * batches.mean(1)).sum(0) / 15, (weights[:, None] * batches.var(1)).sum(0) / 15
    torch.testing.assert_close((norm.running_mean, norm.running_var), wanted)
    assert torch.equal(norm.running_mean, again.running_mean) and torch.equal(norm.running_var, again.running_var)
    for _ in range(300):
        norm(batches[0])
    assert norm.momentum == 0.01


def test_a_short_last_batch_hardly_moves_the_running_statistics():
    """66 rows in batches of 64: the last two of an epoch may have any variance."""
    torch.manual_seed(0)
    x_nh = torch.randn(66, 1)
    norm = SteadyBatchNorm(1).train()
    for _ in range(3):
        for part in x_nh[torch.randperm(66)].split(64):
            norm(part)
            assert float(norm.running_var) == pytest.approx(float(x_nh.var()), rel=0.1)


def test_a_spec_survives_json():
    again = ColumnSpec.from_dict(json.loads(json.dumps(SPEC.as_dict())))
    assert again == SPEC and hash(again) == hash(SPEC) and SPEC.width == 4
    empty = ColumnSpec((), (3,), (0.5,), (), (), 0.0, "fastai", 1)
    assert ColumnSpec.from_dict(json.loads(json.dumps(empty.as_dict()))) == empty
    assert build_head(HeadSpec("linear", 0, 2, empty), 0)(torch.tensor([[1.0], [2.0]])).shape == (2, 2)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_loss_of_members_is_the_mean_of_their_losses(balance):
    torch.manual_seed(0)
    logits_snc, y_n = torch.randn(3, 10, 4), torch.arange(10) % 4
    loss = SingleLabel(tuple("abcd")).loss(LossRule(0.1, balance), y_n)
    wanted = torch.stack([loss(logits_nc, y_n) for logits_nc in logits_snc]).mean()
    torch.testing.assert_close(per_member(loss)(logits_snc.flatten(0, 1), y_n), wanted)
    torch.testing.assert_close(per_member(loss)(logits_snc[0], y_n), loss(logits_snc[0], y_n))
    number, y = Number(False, 0.0, 1.0).loss(LossRule(), torch.randn(10)), torch.randn(10)
    wanted = torch.stack([F.mse_loss(logits_nc[:, 0], y) for logits_nc in logits_snc]).mean()
    torch.testing.assert_close(per_member(number)(logits_snc.flatten(0, 1)[:, :1], y), wanted)
