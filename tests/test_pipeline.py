"""The whole pipeline on a small project: DVC, flow and MLflow share one state."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows import pipeline
from flows.execution import FRESH, RAN, RESTORED, check_inputs, execute
from flows.param_edits import set_params
from flows.summary import summary_text
from headstart.core import files
from headstart.core.errors import InputError, Unavailable
from headstart.core.graph import load_graph
from headstart.core.params import load_params
from headstart.core.stages import run_stage
from headstart.images.loader import ImageSource
from headstart.images.preprocessing import normalise
from headstart.images.transforms import Augmentation
from headstart.models.trained import load_classifier
from headstart.tracking.registry import NAME, Registry
from headstart.training import checkpoints
from headstart.versioning import workspace
from tasks.evaluate import evaluate
from tests import forks
from tests.conftest import make_project, write_shapes
from tests.projects import ENVIRONMENT, dvc_here, flow, flow_here, forked_python, how, mlflow_runs, ran, run, run_here
from tests.templates import add_mlflow
from tests.test_graph import ORDER


def test_the_flow_writes_every_out_and_ends_with_a_summary(done):
    log = (done / "run.log").read_text()
    for stage in load_graph(done, load_params(done / "params.yaml")).values():
        assert f"{stage.name}: running" in log
        assert all((done / out).exists() for out in stage.outs)
    for text in ("suggested LR", "frozen head", "fine-tuned, TTA", "images/s", "reports/report.html", "make ui"):
        assert text in log
    for noise in ("prefect.", "Prefect", "alembic", "INFO", "Traceback", "Beginning flow", "Created task"):
        assert noise not in log.replace("MLflow on", "").replace("Prefect on http", ""), noise


def test_metrics_and_predictions_are_of_the_test_split_alone(done):
    metrics = json.loads((done / "reports/metrics.json").read_text())
    models = {"head", "head_tta", "fine_tuned", "fine_tuned_tta"}
    assert set(metrics) == {"n_test", "n_test_files", "comparisons"} | models
    scores = {"accuracy", "accuracy_low", "accuracy_high", "log_loss", "calibration_error"}
    assert all(set(metrics[key]) == scores for key in models)
    assert "fine_tuned against head" in metrics["comparisons"]
    manifest = pd.read_parquet(done / "data/manifest.parquet")
    predictions = pd.read_parquet(done / "reports/predictions.parquet")
    assert list(predictions.columns) == ["path", "label", "predicted", "probabilities"]
    test = manifest[manifest["split"] == "test"]
    assert list(predictions["path"]) == list(test["path"])
    assert list(predictions["label"]) == list(test["label"])
    assert metrics["n_test"] == len(test)
    right = (predictions["label"] == predictions["predicted"]).sum()
    assert metrics["fine_tuned_tta"]["accuracy"] == right / len(test)
    assert all(abs(row.sum() - 1) < 1e-9 for row in predictions["probabilities"])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_predictions_are_those_of_the_model_in_plain_float32(copied, engine):
    """Mean over all views, each normalised and classified here without folding, engine or batches."""
    params = set_params(copied / "params.yaml", [f"precompute.engine={engine}", "precompute.precision=float32"])
    run_stage(load_graph(copied, params)["evaluate"], evaluate, copied, params)
    model, card = load_classifier(copied / "models/fine_tuned.safetensors")
    augmentation = Augmentation(**params.precompute.augment.model_dump())
    images = ImageSource(copied / params.data.source, 10**7, card.preprocessing, augmentation, params.precompute.view_seed)
    manifest = pd.read_parquet(copied / "data/manifest.parquet")
    expected = [
        torch.stack([model(normalise(view[None], card.preprocessing))[0] for view in images.views(path, key, range(2))])
        .double()
        .softmax(1)
        .mean(0)
        for path, key in manifest.loc[manifest["split"] == "test", ["path", "key"]].itertuples(index=False)
    ]
    found = pd.read_parquet(copied / "reports/predictions.parquet")["probabilities"]
    assert np.allclose(np.stack(found), torch.stack(expected).detach().numpy(), atol=2e-3)


def test_after_the_flow_dvc_is_clean_runs_nothing_and_git_is_clean(copied):
    run(copied, "git", "add", "-A")
    run(copied, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "ran")
    assert "up to date" in run(copied, "dvc", "status")
    assert "Running stage" not in run(copied, "dvc", "repro")
    assert set(how(copied).values()) == {FRESH}
    assert run(copied, "git", "status", "--porcelain") == ""


@pytest.mark.parametrize("python", ["forked", pytest.param("real", marks=pytest.mark.e2e)])
def test_two_fresh_clones_flow_and_repro_give_identical_outs(done, tmp_path, python):
    """One clone by the flow (`done`), one by `dvc repro`; other folder, other image folder, several processes."""
    project = add_mlflow(make_project(tmp_path / "elsewhere"))
    log = run(project, "dvc", "repro", env=forked_python(tmp_path / "bin") if python == "forked" else ENVIRONMENT)
    assert log.count("Running stage") == len(ORDER)
    assert (project / "dvc.lock").read_bytes() == (done / "dvc.lock").read_bytes()
    assert str(project) not in (project / "dvc.lock").read_text()
    assert set(how(project).values()) == {FRESH}
    runs = mlflow_runs(project)
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert len(parents) == 1, "dvc repro records one parent"
    assert "fine_tuned_tta_accuracy" in parents[0].data.metrics


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("evaluate.tta=blend", ["evaluate"]),
        ("fine_tune.lr=2e-3", ["fine_tune", "evaluate"]),
        ("train_head.epochs=3", ["train_head", "fine_tune", "evaluate"]),
        ("find_lr.default=2e-3", ["find_lr", "evaluate"]),
        ("precompute.views=0", ["precompute", "find_lr", "train_head", "fine_tune", "evaluate"]),
        ("data.test_fraction=0.6", ORDER[1:]),
        ("runtime.threads=2", []),
    ],
)
def test_one_changed_param_reruns_exactly_what_depends_on_it(copied, assignment, expected):
    outcome = how(copied, assignment)
    late = {"find_lr", "train_head", "fine_tune"} - set(expected)
    assert [stage for stage in ran(outcome) if stage not in late] == expected  # later ones only if their inputs changed
    assert "up to date" in dvc_here(copied, "status")


def test_a_param_put_back_is_restored_from_the_run_cache(copied):
    before = (copied / "dvc.lock").read_bytes()
    how(copied, "evaluate.tta=blend")
    assert how(copied, "evaluate.tta=mean")["evaluate"] == RESTORED
    assert (copied / "dvc.lock").read_bytes() == before


def test_lost_outs_are_restored_and_forced_stages_run_to_the_same_bytes(copied):
    before = (copied / "dvc.lock").read_bytes()
    shutil.rmtree(copied / "data/activations")
    (copied / "models/head.safetensors").unlink()
    outcome = how(copied)
    assert (outcome["precompute"], outcome["train_head"], ran(outcome)) == (RESTORED, RESTORED, [])
    assert ran(how(copied, force=("all",))) == ORDER
    assert (copied / "dvc.lock").read_bytes() == before


def test_a_directory_out_shrinks(copied, monkeypatch):
    """Three shards, then one: no file of the old three may stay, in the flow as in dvc repro."""
    from headstart.activations import build, compute

    whole = build.write_shards
    monkeypatch.setattr(compute, "BLOCK_BYTES", 40_000)  # about 40 rows
    monkeypatch.setattr(build, "write_shards", lambda *a, **k: whole(*a, **k, limit=1))
    how(copied, force=("precompute",))
    shards = copied / "data/activations/pooled"
    assert len(list(shards.iterdir())) > 2
    monkeypatch.undo()
    how(copied, force=("precompute",))
    assert [path.name for path in shards.iterdir()] == ["00000.arrow"]
    assert "nfiles: 1\n" in (copied / "dvc.lock").read_text().partition("precompute:")[2].partition("outs:")[2]


def test_new_images_run_what_they_change_and_code_edits_what_uses_them(copied):
    write_shapes((copied / "data/shapes").resolve(), each=24)
    outcome = how(copied)
    assert outcome["fetch_data"] == FRESH
    assert ran(outcome) == ORDER[1:]
    (copied / "data/shapes/a/.DS_Store").write_bytes(b"no image")
    stale = dvc_here(copied, "status")
    assert "link_data:" in stale
    # the manifest is what it was, so that nothing is computed anew; the report says how many files were ignored
    assert ran(how(copied)) == ["link_data", "evaluate"]
    with (copied / "headstart/targets/reports/classification.py").open("a") as file:
        file.write("# an edit\n")
    stale = dvc_here(copied, "status")
    assert "evaluate:" in stale
    assert "precompute:" not in stale


def test_a_stage_that_fails_leaves_the_last_outs_and_nothing_half_written(copied, monkeypatch):
    from tasks import train_head

    epochs = load_params(copied / "params.yaml").train_head.epochs
    before = {path: path.read_bytes() for path in (copied / "models").iterdir() if path.is_file()}

    def full(path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(train_head, "save_model", full)
    with pytest.raises(InputError, match=r"head\.safetensors: no space left"):
        how(copied, "train_head.epochs=3")
    assert {path: path.read_bytes() for path in before} == before
    assert not (copied / ".headstart/tmp/train_head").exists()
    monkeypatch.undo()
    runs = len(mlflow_runs(copied))
    assert set(how(copied, f"train_head.epochs={epochs}").values()) == {FRESH}
    assert len(mlflow_runs(copied)) == runs, "nothing was done, so there is nothing to record"
    assert ran(how(copied, "train_head.epochs=3")) == ["train_head", "fine_tune", "evaluate"]


def test_the_heads_checkpoint_is_of_the_rate_that_was_found(copied, monkeypatch):
    from tasks import train_head

    opened = []

    def remembered(*arguments):
        opened.append(checkpoints.open_checkpoint(*arguments))
        return opened[-1]

    monkeypatch.setattr(train_head, "open_checkpoint", remembered)
    params = load_params(copied / "params.yaml")
    assert params.train_head.lr == "auto"
    found = copied / "reports/find_lr/lr.json"
    for lr in (1e-3, 2e-3, 1e-3):
        files.write_checked_json(found, {**files.read_checked_json(found), "lr": lr})
        run_stage(load_graph(copied, params)["train_head"], train_head.train_head, copied, params)
    first, second, third = (one.path.parent for one in opened)
    assert first == third != second


def test_params_or_images_changed_under_a_running_stage_are_noticed(copied, monkeypatch):
    from tasks import train_head

    lock, head = (copied / "dvc.lock").read_bytes(), (copied / "models/head.safetensors").read_bytes()
    original = train_head.save_model

    def meddle_params(*arguments: object) -> None:
        original(*arguments)
        set_params(copied / "params.yaml", ["train_head.epochs=4"])

    monkeypatch.setattr(train_head, "save_model", meddle_params)
    with pytest.raises(InputError, match=r"params.yaml changed"):
        how(copied, "train_head.epochs=3")

    def meddle_input(*arguments: object) -> None:
        original(*arguments)
        os.utime(copied / "data/manifest.parquet", ns=(1, 1))

    monkeypatch.setattr(train_head, "save_model", meddle_input)
    with pytest.raises(InputError, match="an input changed"):
        how(copied, "train_head.epochs=3")
    assert (copied / "dvc.lock").read_bytes() == lock
    assert (copied / "models/head.safetensors").read_bytes() == head


@pytest.mark.parametrize(
    ("edited", "epochs"),
    [("headstart/web.py", 2), ("headstart/evaluation/report.html.j2", 2), ("headstart/training/loop.py", 3)],
)
def test_a_checkpoint_survives_an_edit_of_code_that_its_stage_does_not_import(copied, monkeypatch, edited, epochs):
    from headstart.core import code_digest, stages
    from headstart.training.loop import Trainer
    from tasks.train_head import train_head

    params = set_params(copied / "params.yaml", ["train_head.epochs=3"])
    stage, save, epoch, trained = load_graph(copied, params)["train_head"], checkpoints.Checkpoint.save, Trainer._epoch, []

    def interrupted(self, saved):
        save(self, saved)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_epoch", lambda self, *rest: (trained.append(self.what), epoch(self, *rest))[1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints.Checkpoint, "save", interrupted)
        stages.run_stage(stage, train_head, copied, params)
    assert len(trained) == 1
    monkeypatch.setitem(code_digest.CODE_AT_START, edited, "edited")  # as if this process had started after the edit
    monkeypatch.setattr(code_digest, "changed_since_start", lambda files: [])
    stages.run_stage(stage, train_head, copied, params)
    assert len(trained) == 1 + epochs


def test_changed_code_is_noticed(copied, monkeypatch):
    from headstart.core import code_digest

    monkeypatch.setitem(code_digest.CODE_AT_START, "headstart/core/stages.py", "of another state of the code")
    with pytest.raises(InputError, match="code changed since"):
        how(copied, "evaluate.tta=blend")


def test_a_held_lock_names_its_holder(copied):
    with contextlib.chdir(copied), workspace(copied):
        told = flow(copied, code=2)
    assert f"process {os.getpid()}" in told
    assert "Traceback" not in told


def test_a_stage_of_a_dvc_command_that_runs_is_named(copied):
    """DVC lets go of its lock while a stage runs; what such a stage reads and writes must not change meanwhile."""
    (copied / ".dvc/tmp").mkdir(exist_ok=True)
    command = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "dvc", "repro"])
    info = {"pid": command.pid, "cmd": "dvc repro"}
    (copied / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"/data/manifest.parquet": [info]}, "write": {}}))
    with pytest.raises(Unavailable, match=f"a stage of another dvc command runs, process {command.pid}"):
        how(copied)
    assert not (copied / ".headstart/dvc-lock-holder.json").exists()
    command.kill()
    command.wait()
    assert set(how(copied).values()) == {FRESH}


def test_an_innocent_process_in_the_list_of_dvc_holds_nothing_up(copied):
    """Ids are used again: what stands in the list may be anybody's by now. DVC itself would refuse to run."""
    (copied / ".dvc/tmp").mkdir(exist_ok=True)
    innocent = subprocess.Popen(["sleep", "600"])
    info = {"pid": innocent.pid, "cmd": "dvc repro"}
    (copied / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {}, "write": {str(copied / "models/head.safetensors"): info}}))
    assert set(how(copied, force=("train_head",)).values()) <= {FRESH, RAN}
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()


def test_a_half_written_rwlock_of_dvc_is_removed(copied):
    (copied / ".dvc/tmp").mkdir(exist_ok=True)
    (copied / ".dvc/tmp/rwlock").write_text('{"write": {"/some/pa')
    assert "corrupted" in dvc_here(copied, "repro", code=255)
    assert set(how(copied).values()) == {FRESH}
    assert "Running stage" not in dvc_here(copied, "repro")


def test_a_half_written_lock_file_of_dvc_is_made_anew(copied):
    whole = (copied / "dvc.lock").read_bytes()
    (copied / "dvc.lock").write_bytes(whole[: whole.rindex(b"md5:") + 2])  # within a key: no YAML
    assert "dvc.lock" in dvc_here(copied, "repro", code=255)
    assert ran(how(copied)) == []
    assert (copied / "dvc.lock").read_bytes() == whole
    (copied / "dvc.lock").write_bytes(whole[: whole.index(b"deps:") + 5])  # no dvc.lock, by DVC's schema
    assert "dvc.lock" in dvc_here(copied, "repro", code=255)
    assert "was half written and is now" in run_here(copied, "flows.repair")
    assert "Running stage" not in dvc_here(copied, "repro")
    assert (copied / "dvc.lock").read_bytes() == whole


def test_mlflow_has_parent_children_params_curves_artifacts(done):
    from headstart.tracking.store import store

    runs = mlflow_runs(done)
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert len(parents) == 1
    parent = parents[0]
    children = {one.data.tags["stage"]: one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"find_lr", "train_head", "fine_tune"}
    assert all(one.info.status == "FINISHED" for one in runs)
    assert parent.data.params["fine_tune.lr_ratio"] and parent.data.params["seed"] == "0"
    metrics = json.loads((done / "reports/metrics.json").read_text())
    assert parent.data.metrics["fine_tuned_tta_accuracy"] == metrics["fine_tuned_tta"]["accuracy"]
    assert len(parent.data.tags["dvc_lock"]) == len(parent.data.tags["data_digest"]) == 64
    assert len(parent.data.tags["mlflow.source.git.commit"]) == 40
    client, _ = store(done)
    history = client.get_metric_history(children["train_head"].info.run_id, "valid_log_loss")
    assert [point.step for point in history] == [0, 1]
    kept = {file.path for file in client.list_artifacts(parent.info.run_id, "reports")}
    assert {"reports/report.html", "reports/curve.png", "reports/metrics.json"} <= kept
    pictures = {file.path.rpartition("/")[2] for file in client.list_artifacts(parent.info.run_id, "reports/pictures")}
    assert pictures == {path.name for path in (done / "reports/pictures").iterdir()}  # those of the report
    assert {"confusion_matrix.png", "calibration.png", "most_wrong.png", "training.png"} <= pictures


def test_a_run_that_changed_nothing_makes_no_mlflow_run(copied):
    before = len(mlflow_runs(copied))
    assert set(how(copied).values()) == {FRESH}
    assert len(mlflow_runs(copied)) == before


PYFUNC = """
import sys, mlflow, pandas as pd
from pathlib import Path
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
files = [p.read_bytes() for p in sorted(Path(sys.argv[3]).rglob("*.png"))]
answer = model.predict(pd.DataFrame({"image": files}))
assert list(answer.columns) == ["predicted", "confidence", "probabilities"] and len(answer) == len(files)
assert not any("pkl" in p.name or "pickle" in p.name for p in Path(model._model_impl.__class__.__name__).parent.glob("*.pkl"))
try:
    model.predict(pd.DataFrame({"image": ["/etc/passwd"]}))
except Exception as error:
    print("refused", type(error).__name__)
print(answer["predicted"].tolist()[0])
"""


def test_the_logged_model_loads_elsewhere_and_takes_bytes_only(done, tmp_path):
    from headstart.tracking.store import store, tracking_uri

    client, experiment = store(done)
    (model,) = client.search_logged_models(experiment_ids=[experiment])
    assert not list(Path(model.artifact_location.removeprefix("file://")).rglob("*.pkl"))
    answer = run(tmp_path, sys.executable, "-c", PYFUNC, tracking_uri(done), model.model_uri, str(done / "data/shapes/"))
    assert "refused" in answer
    assert answer.split()[-1] in "abc"


def test_runs_that_a_dead_process_left_are_closed_and_an_execution_without_a_record_is_recorded(copied):
    """Killed in the middle of a stage, and between the last stage's commit and the record in MLflow."""
    before = {one.info.run_id for one in mlflow_runs(copied)}
    for at in ("headstart.training.head.train_head", "headstart.tracking.record.log_metrics"):
        module, name = at.rsplit(".", 1)
        code = f"""
import os, signal, sys
from pathlib import Path
import flows, {module}
{at} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
from flows import execution
from headstart.core.params import load_params
execution.execute(Path.cwd(), load_params(Path("params.yaml")), ["train_head"])
"""
        killed = forks.run("-c", code, cwd=copied, env=ENVIRONMENT)
        assert killed.returncode == -9, killed.stdout + killed.stderr
    left = [one for one in mlflow_runs(copied) if one.info.status == "RUNNING"]
    assert len(left) == 1 and left[0].info.run_name.endswith("-test_efficientnet"), "the stage's run went on"
    assert set(how(copied).values()) == {FRESH}
    made = [one for one in mlflow_runs(copied) if one.info.run_id not in before]
    assert sorted(one.info.status for one in made) == ["FINISHED", "FINISHED", "KILLED"]
    parents = [one for one in made if "stage" not in one.data.tags and one.info.status == "FINISHED"]
    assert len(parents) == 1 and "fine_tuned_tta_accuracy" in parents[0].data.metrics
    assert set(how(copied).values()) == {FRESH}
    assert len(mlflow_runs(copied)) == len(before) + 3


def test_parents_have_the_same_names_whatever_ran(copied):
    how(copied, "evaluate.tta=blend")
    parents = [one for one in mlflow_runs(copied) if "stage" not in one.data.tags]
    names = [(set(one.data.params), set(one.data.metrics)) for one in parents]
    assert len(parents) == 2 and names[0] == names[1]
    assert {"code_digest", "data_digest", "dvc_lock", "mlflow.source.git.commit"} <= set(parents[0].data.tags)


def test_nothing_heavy_is_imported_when_nothing_changed(copied):
    code = """
import sys
from pathlib import Path
from flows import execution
from headstart.core.params import load_params
done = execution.execute(Path.cwd(), load_params(Path("params.yaml")))
assert {one.how for one in done.outcomes} == {"fresh"} and done.mlflow_run is None
print("heavy:", sorted({"torch", "torchvision", "timm", "mlflow", "openvino", "sklearn", "matplotlib"} & set(sys.modules)))
"""
    assert "heavy: []" in run(copied, sys.executable, "-c", code)


def test_bad_input_is_one_screen_exit_2_and_changes_nothing(copied):
    lock = (copied / "dvc.lock").read_bytes()
    for run_flow, arguments, told in (
        (flow_here, ["--set", "data.source=data/nowhere"], "data/nowhere: no such folder"),
        (flow_here, ["--set", "train_head.epochs=0", "fine_tune.lr=fast"], "train_head.epochs = 0"),
        (flow_here, ["--force", "no_such_stage"], "no such stage"),
        (flow, ["--set", "backbone.name=resnt18"], "similar names"),
    ):
        params = (copied / "params.yaml").read_bytes()
        text = run_flow(copied, *arguments, code=2)
        assert told in text and "Traceback" not in text and len(text.splitlines()) < 25, text
        assert (copied / "params.yaml").read_bytes() == params
    assert "params.yaml is as it was before --set" in text, "the flow had begun"
    assert (copied / "dvc.lock").read_bytes() == lock


def test_fetch_data_refuses_a_link_at_its_out(copied, tmp_path):
    mine = write_shapes(tmp_path / "mine")
    shutil.rmtree(copied / "data/digits")
    (copied / "data/digits").symlink_to(mine)
    before = sorted(mine.rglob("*"))
    with pytest.raises(InputError, match="symbolic link"):
        how(copied, force=("fetch_data",))
    assert sorted(mine.rglob("*")) == before


def test_a_full_disk_is_told_before_anything_runs(copied, monkeypatch):
    from flows import execution
    from headstart.activations import build

    params = load_params(copied / "params.yaml")
    monkeypatch.setattr(execution, "free_bytes", lambda path: 5_000_000)
    with pytest.raises(InputError, match="5 MB free"):
        check_inputs(copied, params, [])
    monkeypatch.setattr(build, "free_bytes", lambda path: 10_000)
    before = (copied / "data/activations/pooled/00000.arrow").read_bytes()
    with pytest.raises(InputError, match=r"the activations need .* GB"):
        how(copied, force=("precompute",))
    assert (copied / "data/activations/pooled/00000.arrow").read_bytes() == before


@pytest.mark.parametrize(("address", "beats"), [(None, False), ("http://127.0.0.1:4200/api", True)])
def test_heartbeats_are_sent_where_a_server_may_hear_them(monkeypatch, address, beats):
    seen = []

    def headstart(force: list[str]) -> list[object]:
        seen.append(PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value())
        return []

    monkeypatch.setattr(pipeline, "headstart", headstart)
    monkeypatch.setattr(pipeline, "start_server", lambda: None)  # for a flow, and this one does nothing
    with temporary_settings({PREFECT_API_URL: address}):
        pipeline.run_here([])
    assert [bool(value) for value in seen] == [beats]


def test_force_names_and_summary(copied):
    params = load_params(copied / "params.yaml")
    with pytest.raises(InputError, match="fetch_data"):
        check_inputs(copied, params, ["nope"])
    with contextlib.chdir(copied):
        outcomes = execute(copied, params).outcomes
    text = summary_text(copied, params, outcomes, 1.0)
    assert text.count("fresh") == len(ORDER)
    assert "when they were computed" in text


def test_what_was_kept_is_said_in_log_report_mlflow_and_registry(done):
    kept = json.loads((done / "reports/fine_tune/kept.json").read_text())
    said = "The fine-tuned network of epoch 1 is kept: " if kept["epoch"] else "The trained head is kept without fine-tuning"
    assert kept["sentence"].startswith(said)
    assert kept["sentence"] in (done / "run.log").read_text()
    assert kept["sentence"] in (done / "reports/report.html").read_text()
    parents = [one for one in mlflow_runs(done) if "mlflow.parentRunId" not in one.data.tags]
    assert [one.data.tags["fine_tune.kept"] for one in parents] == [kept["sentence"]]
    assert Registry(done).client.get_model_version(NAME, "1").tags["headstart.kept"] == kept["sentence"]


def test_a_pipeline_s_run_lasts_from_its_first_stage_to_its_end(done):
    """It was made at the end, and lasted 2.4 s of a pipeline of 69."""
    runs = mlflow_runs(done)
    (parent,) = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    children = [one for one in runs if one is not parent]
    assert len(children) >= 3
    assert parent.info.start_time <= min(child.info.start_time for child in children)
    assert parent.info.end_time >= max(child.info.end_time for child in children)


def test_images_are_images_and_views_are_views(done):
    (parent,) = [one for one in mlflow_runs(done) if "mlflow.parentRunId" not in one.data.tags]
    rates = parent.data.metrics
    assert rates["precompute_views_per_second"] == pytest.approx(2 * rates["precompute_images_per_second"], rel=0.01)
    log = (done / "run.log").read_text()
    assert "0 of 120 views are in the cache, 120 to compute" in log
    assert f"{rates['precompute_images_per_second']:,.0f} images/s" in log


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("backbone.name=vit_tiny_patch16_224", "backbone.image_size=100"), "a multiple of 16"),
        (
            ("backbone.name=vit_tiny_patch16_224", "backbone.image_size=32",
             "fine_tune.gradual=[{unfreeze_from: all, epochs: 1, lr: 1.0e-3, image_size: 48}]"),
            "fine_tune.gradual[0].image_size: vit_tiny_patch16_224 refuses 48 pixels",
        ),
        (("backbone.weights=none.pth",), "there is no file"),
    ],
)  # fmt: skip
def test_sizes_and_weights_are_refused_before_any_image_is_read(project, settings, said):
    with pytest.raises(InputError) as error:
        how(project, *settings)
    assert said in str(error.value)
    assert not (project / "data/manifest.parquet").exists()
