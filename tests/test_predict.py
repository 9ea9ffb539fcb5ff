"""Batch prediction: every file gets a row, whatever it is; what was predicted is not predicted twice."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from flows import predict as predict_command
from flows.predict import table_rows
from headstart.core.command_line import guarded
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.core.params import load_params
from headstart.images.decode import FORMATS
from headstart.images.preprocessing import normalise
from headstart.ingest.labels import OWN, RESERVED
from headstart.manifest import COLUMNS
from headstart.models.trained import load_card, load_classifier, save_model
from headstart.prediction import batch
from headstart.prediction.batch import Predictions, predict_folder, write_predictions
from headstart.prediction.export import CARD, export
from headstart.prediction.predictor import Predictor
from headstart.prediction.supervisor import ScoringJob, score_all
from headstart.tracking.registry import Registry
from tests import forks
from tests.conftest import encode, picture, scan_folder, write_shapes
from tests.projects import ENVIRONMENT, run

SCORER = "headstart.prediction.scorer"


@pytest.fixture(scope="module")
def model(done, tmp_path_factory) -> Path:
    """The finished project's, trained with small limits."""
    return limited(done / "models/fine_tuned.safetensors", tmp_path_factory.mktemp("model") / "m.safetensors", 10_000)


def limited(model: Path, out: Path, max_pixels: int) -> Path:
    """A model file with other limits in its card."""
    network, card = load_classifier(model)
    limits = {"max_pixels": max_pixels, "min_side": 4, "formats": list(FORMATS)}
    save_model(out, network, dataclasses.replace(card, limits=limits))
    return out


def job(model: Path, **changes: object) -> ScoringJob:
    facts = {"model": model, "digest": sha256_file(model), "top": 2, "timeout": 20.0}
    return ScoringJob(**facts | {"workers": 2, "threads": 1, "device": "cpu"} | changes)


def test_another_model_at_the_same_path_is_refused(model, folder, tmp_path):
    """A pipeline may publish a new one between the answers of the old."""
    with pytest.raises(InputError, match="changed while"):
        predict_folder(folder, job(model, digest="0" * 64), state=tmp_path / "state.sqlite")


@pytest.fixture(autouse=True)
def quick_scorers(monkeypatch) -> None:
    """Scorers of this process are forks (tests/forks.py); those of a real command are real."""
    monkeypatch.setattr(batch, "score_all", lambda paths, job: score_all(paths, job, forks.command("-m", SCORER)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in nested folders, and a file of every bad kind beside them."""
    folder = write_shapes(tmp_path / "any", each=9)
    (folder / "deep/deeper").mkdir(parents=True)
    (folder / "deep/deeper/x.png").write_bytes(encode(picture(1, 55)))
    (folder / "a/text.jpg").write_text("no image")
    (folder / "a/cut.png").write_bytes(encode(picture(0, 3))[:-30])
    (folder / "a/large.png").write_bytes(encode(np.zeros((200, 200, 3), np.uint8)))
    (folder / "a/small.png").write_bytes(encode(np.zeros((3, 3, 3), np.uint8)))
    (folder / "empty.png").write_bytes(b"")
    (folder / "=1+1.png").write_bytes(encode(picture(2, 5)))
    (folder / ".DS_Store").write_bytes(b"of the system")
    time.sleep(0.05)  # what changed this instant is not remembered
    return folder


def test_every_file_gets_a_row_and_reasons_are_those_of_training(folder, model, tmp_path):
    found = predict_folder(folder, job(model), state=tmp_path / "s.sqlite")
    rows = found.rows.set_index("path")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {".DS_Store"}
    assert set(rows.index) == files and found.ignored == 1 and list(rows.index) == sorted(rows.index)
    errors = rows[rows["error"] != ""]
    scanned = scan_folder(
        folder, max_quarantined=1.0, nested_folders=True, near_duplicates="keep", on_label_conflict="quarantine"
    )
    reasons = dict(zip(scanned.quarantine["path"], scanned.quarantine["reason"], strict=True))
    assert set(errors.index) == {"a/text.jpg", "a/cut.png", "a/large.png", "a/small.png", "empty.png"}
    for path in set(errors.index) - {"empty.png"}:  # which is no file of a class folder: not decoded there
        assert errors.loc[path, "error"] == reasons[path]
    assert errors["predicted"].isna().all() and errors["confidence"].isna().all()
    assert found.summary()["files"] == len(files) and found.summary()["errors"] == 5


def test_predictions_are_those_of_the_model(folder, model, tmp_path):
    rows = predict_folder(folder, job(model, top=3), state=tmp_path / "s.sqlite").rows
    network, card = load_classifier(model)
    from headstart.images.decode import decode
    from headstart.images.transforms import base_view

    for row in rows[rows["error"] == ""].itertuples():
        x = normalise(base_view(decode((folder / row.path).read_bytes()), card.preprocessing)[None], card.preprocessing)
        with torch.no_grad():
            p = network(x).softmax(1)[0]
        assert row.label_1 == row.predicted and row.confidence == row.probability_1
        found = {row.label_1: row.probability_1, row.label_2: row.probability_2, row.label_3: row.probability_3}
        assert [found[label] for label in card.target.classes] == pytest.approx(
            p.tolist(), abs=0.02
        )  # bfloat16, where there is
        assert row.probability_1 >= row.probability_2 >= row.probability_3


def test_the_same_bytes_come_out_whatever_was_known(folder, model, tmp_path):
    first = predict_folder(folder, job(model), state=tmp_path / "s.sqlite")
    write_predictions(tmp_path / "1.parquet", first, "parquet", {"model": "x"})
    (folder / "b/new.png").write_bytes(encode(picture(1, 77)))
    time.sleep(0.05)  # a file changed this instant is not remembered
    second = predict_folder(folder, job(model), state=tmp_path / "s.sqlite")
    assert second.computed < first.computed / 2 and len(second.rows) == len(first.rows) + 1
    (folder / "b/new.png").unlink()
    third = predict_folder(folder, job(model), state=tmp_path / "s.sqlite")
    write_predictions(tmp_path / "3.parquet", third, "parquet", {"model": "x"})
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "3.parquet").read_bytes()
    fresh = predict_folder(folder, job(model, workers=1), state=tmp_path / "other.sqlite")
    assert fresh.rows.equals(first.rows)


def test_a_changed_file_model_or_limit_is_never_answered_from_before(folder, model, tmp_path):
    state = tmp_path / "s.sqlite"
    predict_folder(folder, job(model), state=state)
    time.sleep(0.05)
    (folder / "a/000.png").write_bytes(encode(picture(2, 99)))
    os.utime(folder / "a/000.png", ns=(1, 1))
    after = predict_folder(folder, job(model), state=state).rows.set_index("path")
    assert after.loc["a/000.png", "sha256"] == __import__("hashlib").sha256(encode(picture(2, 99))).hexdigest()
    other = limited(model, tmp_path / "other.safetensors", 9_999)
    assert predict_folder(folder, job(other), state=state).computed == len(after)
    assert predict_folder(folder, job(model, top=1), state=state).computed == len(after)


def test_a_class_of_any_name_leaves_the_counts_alone():
    names = ["errors", "files", "abstained", "classes", "files"]
    rows = pd.DataFrame({"predicted": [*names, None], "abstained": [False] * 5 + [True], "error": ""})
    found = Predictions(rows, {"predicted": "string", "abstained": "bool", "error": "string"}, 6, 0, 1.0)
    counts = {"errors": 1, "files": 2, "abstained": 1, "classes": 1}
    assert found.summary() == {"files": 6, "errors": 0, "abstained": 1, "classes": counts}
    table = table_rows(found)
    assert {row["class"]: row["files"] for row in table if row["what"] == "predicted"} == counts
    assert [row["files"] for row in table if not row["class"]] == [6, 0, 1]


def test_no_column_of_a_labels_file_can_take_the_name_of_one_of_the_manifest():
    assert set(COLUMNS) <= {*OWN, *RESERVED}


def test_abstaining_and_top_k(folder, model, tmp_path):
    rows = predict_folder(folder, job(model, top=9), state=tmp_path / "s.sqlite", abstain_below=1.0).rows
    fine = rows[rows["error"] == ""]
    assert fine["abstained"].sum() == (fine["confidence"] < 1).sum() > 0
    assert fine.loc[fine["abstained"], "predicted"].isna().all() and fine["label_1"].notna().all()
    assert fine["label_4"].isna().all(), "there are three classes"


def test_a_csv_starts_no_formula(folder, model, tmp_path):
    found = predict_folder(folder, job(model), state=tmp_path / "s.sqlite")
    write_predictions(tmp_path / "p.csv", found, "csv", {})
    text = (tmp_path / "p.csv").read_text()
    assert '"\'=1+1.png"' in text and len(pd.read_csv(tmp_path / "p.csv")) == len(found.rows)


# Dies or hangs on files of these names, as a broken decoder would; the real worker that looks at the suspects does not.
BROKEN = """
import os, signal, sys, time
from headstart.prediction import scorer
original = scorer.usable
def broken(path, *rest):
    if path.endswith("crash.png"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.endswith("hang.png"):
        time.sleep(600)
    return original(path, *rest)
scorer.usable = broken
scorer.main(int(sys.argv[1]), int(sys.argv[2]))
"""


def broken(paths: list[Path], model: Path, timeout: float = 3.0) -> dict[str, dict]:
    answers = score_all([str(path) for path in paths], job(model, timeout=timeout), forks.command("-c", BROKEN))
    return {Path(path).name: answer for path, answer in answers}


def test_a_crash_or_a_hang_costs_its_file_alone(folder, model):
    crash, hang = folder / "a/crash.png", folder / "b/hang.png"
    for path in (crash, hang):
        shutil.copy(folder / "a/000.png", path)
    files = sorted(path for path in folder.rglob("*.png"))
    answers = broken(files, model)
    assert len(answers) == len({path.name for path in files})
    assert answers["crash.png"]["error"] == "the decoder crashed (SIGSEGV)"
    assert answers["hang.png"]["error"] == "the decoder hung for 3 s (data.file_timeout)"
    assert {name for name, answer in answers.items() if "error" in answer and not answer["final"]} == {"crash.png", "hang.png"}


def test_who_was_only_near_a_crash_is_answered(folder, model):
    """With one thread too few to tell them apart: files that were decoded beside it are tried alone."""
    for name in ("crash.png", "other.png"):
        shutil.copy(folder / "a/000.png", folder / "a" / name)
    answers = broken([folder / "a/crash.png", folder / "a/other.png", folder / "a/cut.png"], model)
    assert {name for name, answer in answers.items() if "error" in answer} == {"crash.png", "cut.png"}


# The command as it is, but that its scorers are started by the command line in the first argument.
COMMAND = """
import functools, json, sys
from headstart.core.command_line import command_line, guarded
from headstart.prediction import batch
from flows.predict import main
batch.score_all = functools.partial(batch.score_all, command=json.loads(sys.argv.pop(1)))
command_line()
sys.exit(guarded(main))
"""


def start_predict(project: Path, *arguments: str) -> forks.Forked:
    scorer = json.dumps(forks.command("-m", SCORER))
    return forks.start("-c", COMMAND, scorer, *arguments, cwd=project, env=ENVIRONMENT)


def predict(project: Path, *arguments: str, code: int = 0) -> str:
    process = start_predict(project, *arguments)
    said = "".join(process.communicate())
    assert process.wait() == code, said
    return said


def test_the_command_with_every_way_to_name_a_model(done, folder, tmp_path):
    number = Registry(done).get_alias("champion")
    assert number is not None
    outs = []
    for name in ("champion", "challenger", str(number.number), number.run_id, "models/fine_tuned.safetensors"):
        outs.append(tmp_path / f"{len(outs)}.parquet")
        arguments = "--images", str(folder), "--out", str(outs[-1]), "--model", name
        said = predict(done, *arguments) if len(outs) > 1 else run(done, sys.executable, "-m", "flows.predict", *arguments)
        assert "4 with an error" in said and "Traceback" not in said
    tables = [pq.read_table(out) for out in outs]
    assert all(table.equals(tables[0]) for table in tables)
    about = json.loads(tables[0].schema.metadata[b"headstart"])
    assert about["sha256"] == number.digest
    predict(done, "--images", str(folder), "--out", str(tmp_path / "p.txt"), "--format", "csv", "--top", "3")
    assert "label_3" in (tmp_path / "p.txt").read_text().splitlines()[0]


BAD = [
    (["--images", "nowhere"], "--images nowhere: no such folder\n  wanted: a folder: every file in it"),
    (["--images", "params.yaml"], "--images params.yaml: a file, not a folder"),
    (["--model", "grandmaster"], "no version of the model is called 'grandmaster'"),
    (["--model", "no.safetensors"], "no.safetensors: no such file"),
    (["--out", "p.txt"], "the name does not say which format"),
    (["--out", "nowhere/p.csv"], "nowhere: no such folder"),
    (["--out", "data"], "--out data: a folder"),
    (["--out", "/proc/p.csv"], "/proc: cannot be written to"),
    (["--top", "0"], "a whole number of 1 or more"),
    (["--abstain-below", "1.5"], "from 0 to 1"),
    (["--abstain-below", "nan"], "from 0 to 1"),
    (["--model", "models/head.safetensors"], "models/head.safetensors"),
]


def given(folder: Path, out: Path, arguments: list[str]) -> list[str]:
    """A sound command line with some of its arguments replaced."""
    pairs = {"--images": str(folder), "--out": str(out), "--model": "champion"}
    return [text for pair in (pairs | dict(zip(arguments[::2], arguments[1::2], strict=True))).items() for text in pair]


@pytest.mark.parametrize(("arguments", "told"), BAD)
def test_bad_arguments_are_one_screen(done, folder, tmp_path, arguments, told, monkeypatch, capfd):
    monkeypatch.chdir(done)
    monkeypatch.setattr(predict_command, "PROJECT", done)
    monkeypatch.setattr(sys, "argv", ["predict", *given(folder, tmp_path / "p.csv", arguments)])
    try:
        code = guarded(predict_command.main)
    except SystemExit as end:
        code = end.code
    said = "".join(capfd.readouterr())
    assert code == 2 and told in said and "Traceback" not in said and len(said.splitlines()) < 12, said
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(("arguments", "told"), [BAD[2], BAD[8]])
def test_bad_arguments_end_the_command_with_2(done, folder, tmp_path, arguments, told):
    said = predict(done, *given(folder, tmp_path / "p.csv", arguments), code=2)
    assert told in said and "Traceback" not in said and len(said.splitlines()) < 12, said
    assert not (tmp_path / "p.csv").exists()


def test_a_killed_run_goes_on_where_it_was(copied, tmp_path):
    folder = write_shapes(tmp_path / "many", each=400)
    process = start_predict(copied, "--images", str(folder), "--out", str(tmp_path / "p.parquet"))
    state = copied / ".headstart/predictions.sqlite"
    before = _kept(state)
    while _kept(state) == before:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "p.parquet").exists()
    said = predict(copied, "--images", str(folder), "--out", str(tmp_path / "p.parquet"))
    again = int(re.search(r": ([\d,]+) (?:classified|predicted) in this run", said)[1].replace(",", ""))
    assert 0 < again <= 1200 - batch.REMEMBER
    assert len(pd.read_parquet(tmp_path / "p.parquet")) == 1200


def _kept(state: Path) -> int:
    import sqlite3

    if not state.exists():
        return 0
    with sqlite3.connect(state) as database:
        try:
            return int(database.execute("SELECT count(*) FROM files").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


ELSEWHERE = """
import sys, torch, json
extra = {"headstart.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
about = json.loads(extra["headstart.json"])
views = torch.load(sys.argv[2], weights_only=True)
torch.save(program(views), sys.argv[3])
print(about["classes"], "headstart" in sys.modules, "timm" in sys.modules)
"""


def test_an_exported_model_runs_without_this_project(model, tmp_path):
    about = export(model, tmp_path / "m.pt2")
    size = about["preprocessing"]["image_size"]
    views = torch.randint(0, 256, (7, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(views, tmp_path / "views")
    said = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, "m.pt2", "views", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == "['a', 'b', 'c'] False False"
    network, card = load_classifier(model)
    with torch.no_grad():
        wanted = network(normalise(views, card.preprocessing)).softmax(1)
    assert torch.allclose(torch.load(tmp_path / "out", weights_only=True), wanted, atol=1e-5)
    assert CARD == "headstart.json"


def test_the_limits_a_model_was_trained_with_hold_wherever_it_is_used(done, model, tmp_path):
    """The server once had limits of its own: 50 megapixels, 8 px, all formats."""
    card = load_card(done / "models/fine_tuned.safetensors")
    data = load_params(done / "params.yaml").data
    assert card.limits == {"max_pixels": data.max_pixels, "min_side": data.min_side, "formats": list(data.formats)}
    predictor = Predictor(model)
    assert predictor.limits.max_pixels == 10_000
    with pytest.raises(InputError, match="101 x 101 pixels are more than 10,000"):
        predictor.answers_of_bytes([encode(picture(0, 1, side=101))])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/large.png").write_bytes(encode(picture(0, 1, side=101)))
    rows = predict_folder(tmp_path / "images", job(model), state=tmp_path / "s.sqlite").rows
    assert "101 x 101 pixels are more than 10,000" in rows["error"][0]
