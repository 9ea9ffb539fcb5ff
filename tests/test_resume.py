"""Resume = never interrupted, to the bit (invariant 4): real kills at many points, and what lies on disk meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from headstart.core.files import sha256_file
from headstart.models.weights import state_digest
from headstart.training.checkpoints import Checkpoint, Saved, load_optimizer, open_checkpoint, optimizer_tensors
from headstart.training.head import train_head
from headstart.training.interrupts import WholeSteps
from headstart.training.loop import History, TrainingRun, history_files
from headstart.training.optimizers import build_optimizer
from headstart.training.options import Options
from tests import forks
from tests.test_training import TARGET, in_memory, rows, silent


def run(folder: Path, point: str = "none", arm: str = "moving") -> subprocess.CompletedProcess[str]:
    return forks.run("-m", "tests.resuming", str(folder), arm, *point.split())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    done = run(tmp_path_factory.mktemp("undisturbed"))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("point", ["step 3", "validate 2", "save 2", "saved 1", "step 17", "step 8", "saved 2", "saved 4"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, undisturbed, point):
    assert run(tmp_path, point).returncode == -signal.SIGKILL
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == undisturbed


def test_a_killed_training_with_frozen_batch_norm_goes_on_to_the_same_bits(tmp_path):
    (tmp_path / "whole").mkdir()
    undisturbed = run(tmp_path / "whole", arm="frozen")
    assert undisturbed.returncode == 0, undisturbed.stderr
    for point in ("step 8", "saved 1", "term 2", "saved 1"):
        assert run(tmp_path, point, "frozen").returncode in (-signal.SIGKILL, 143)
    assert run(tmp_path, arm="frozen").stdout == undisturbed.stdout


@pytest.mark.parametrize("arm", ["several", "columns"])
def test_a_killed_training_of_another_target_goes_on_to_the_same_bits(tmp_path, undisturbed, arm):
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", arm=arm)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout != undisturbed
    for point in ("step 8", "saved 1", "term 2", "save 1"):
        assert run(tmp_path, point, arm).returncode in (-signal.SIGKILL, 143)
    assert run(tmp_path, arm=arm).stdout == whole.stdout


def test_a_training_killed_again_and_again_goes_on_to_the_same_bits(tmp_path, undisturbed):
    for point in ("step 7", "save 1", "saved 1", "validate 1"):
        assert run(tmp_path, point).returncode == -signal.SIGKILL
    assert run(tmp_path).stdout == undisturbed


@pytest.mark.parametrize(("point", "epochs", "batches"), [("term 3", 0, 3), ("term 8", 1, 3), ("term-validate 4", 2, 5)])
def test_sigterm_saves_the_step_it_is_in_and_exits_with_143(tmp_path, undisturbed, point, epochs, batches):
    told = run(tmp_path, point)
    assert told.returncode == 143, told.stderr
    saved = Checkpoint(tmp_path, "training").load()
    assert (saved.progress["done"], saved.progress["batch"]) == (epochs, batches)
    assert run(tmp_path).stdout == undisturbed


def checkpointed(folder: Path, **options) -> tuple[nn.Module, History]:
    from headstart.models.heads import HeadSpec, build_head

    x, y = rows()
    head = build_head(HeadSpec("mlp", 8, 3), seed=1)
    history = train_head(
        head, in_memory(x, y), in_memory(x[1:], y), TARGET, epochs=3, lr=1e-2,
        options=Options(**({"batch_size": 16} | options)), run=TrainingRun(0, silent, checkpoint=Checkpoint(folder, "head")),
    )  # fmt: skip
    return head, history


def test_a_finished_training_is_not_run_again(tmp_path):
    head, history = checkpointed(tmp_path)
    before = sha256_file(tmp_path / "head.safetensors")
    twin, same = checkpointed(tmp_path)
    assert state_digest(head) == state_digest(twin)
    assert history == same and history_files(history) == history_files(same)
    assert sha256_file(tmp_path / "head.safetensors") == before


def test_a_damaged_checkpoint_is_reported_and_training_begins_anew(tmp_path, caplog):
    head, _ = checkpointed(tmp_path)
    path = tmp_path / "head.safetensors"
    whole = path.read_bytes()
    for data in (whole[:1000], whole[:-3], whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:], b"", b"{}" * 50):
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level("WARNING", logger="headstart"):
            again, _ = checkpointed(tmp_path)
        assert "is damaged" in caplog.text
        assert state_digest(again) == state_digest(head)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizers_state_survives_to_the_bit(tmp_path, kind):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 2)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 3, 3)

    def stepped(optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    first = build_optimizer([(list(model.parameters()), 0.01)], kind)
    stepped(first)
    checkpoint = Checkpoint(tmp_path, "x")
    checkpoint.save(Saved(model.state_dict(), {}, optimizer_tensors(first), {}, {}))
    stepped(first)
    expected = state_digest(model)
    saved = checkpoint.load()
    model.load_state_dict(saved.model)
    second = build_optimizer([(list(model.parameters()), 0.01)], kind)
    load_optimizer(second, saved.optimizer)
    stepped(second)
    assert state_digest(model) == expected


def test_a_checkpoint_is_of_one_identity_and_older_ones_are_deleted(tmp_path):
    stage = tmp_path / "fine_tune"
    a, b = (open_checkpoint(stage, {"lr": 1e-3}, name) for name in ("frozen", "moving"))
    assert a.path.parent == b.path.parent
    assert a.path != b.path
    assert a.remember(lambda: [1, 2.5]) == [1, 2.5]
    assert open_checkpoint(stage, {"lr": 1e-3}, "frozen").remember(lambda: []) == [1, 2.5]
    c = open_checkpoint(stage, {"lr": 2e-3}, "frozen")
    assert c.path.parent != a.path.parent
    assert not a.path.parent.exists()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert open_checkpoint(stage, {"lr": 2e-3}, "frozen").path.parent != c.path.parent
    finally:
        torch.set_num_threads(threads)


def test_signals_wait_for_the_steps_end_and_only_there():
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("told"))
    try:
        with WholeSteps() as whole:
            with whole.step():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                assert told == []
            assert told == ["told"]
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert told == ["told"] * 2
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert told == ["told"] * 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_within_a_step_that_fails_is_not_lost():
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("told"))
    try:
        with pytest.raises(ValueError, match="not finite"), WholeSteps() as whole, whole.step():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert told == []
            raise ValueError("not finite")
        assert told == ["told"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_training_outside_the_main_thread_works(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(checkpointed(tmp_path)))
    thread.start()
    thread.join()
    assert len(found[0][1].epochs) == 3


def stage(project: Path, name: str, is_real: bool = False) -> forks.Forked | subprocess.Popen[str]:
    """The command of a stage: a fork (tests/forks.py), or the real interpreter with the project's own code."""
    if is_real:
        return subprocess.Popen([sys.executable, "-m", f"tasks.{name}"], cwd=project, stderr=subprocess.PIPE, text=True)
    return forks.start("-m", f"tasks.{name}", cwd=project)


def wait_for(project: Path, process: forks.Forked | subprocess.Popen[str], pattern: str) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = list((project / ".headstart/checkpoints").glob(pattern))
        if found:
            return found[0]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def test_a_killed_stage_goes_on_with_its_run_and_gives_the_same_bytes(project):
    """The real stage, killed from outside: by SIGKILL, then by SIGTERM, in the search and in both arms of bn_freeze: auto."""
    from mlflow import MlflowClient

    from flows.param_edits import set_params

    quick = ["fine_tune.bn_freeze=auto", "fine_tune.lr=auto", "find_lr.unfrozen.steps=20", "find_lr.unfrozen.seeds=1"]
    set_params(project / "params.yaml", [*quick, "fine_tune.epochs=6", "runtime.threads=1"])
    for name in ("link_data", "precompute", "find_lr", "train_head", "fine_tune"):
        process = stage(project, name)
        assert process.wait() == 0, process.communicate()[1]
    outs = [project / "models/fine_tuned.safetensors", *sorted((project / "reports/fine_tune").iterdir())]
    expected = {path.name: sha256_file(path) for path in outs}
    assert not (project / ".headstart/checkpoints/fine_tune").exists()  # done: nothing to go on with
    for path in outs:
        path.unlink()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs_before = {run.info.run_id for run in client.search_runs(experiments)}
    for pattern, number in (("fine_tune/*/search.json", signal.SIGKILL), ("fine_tune/*/frozen.safetensors", signal.SIGKILL),
                            ("fine_tune/*/moving.safetensors", signal.SIGTERM)):  # fmt: skip
        process = stage(project, "fine_tune", is_real=number == signal.SIGTERM)
        wait_for(project, process, pattern)
        process.send_signal(number)
        assert process.wait(timeout=10) == (143 if number == signal.SIGTERM else -number), process.communicate()[1]
        assert not any(path.exists() for path in outs)
    process = stage(project, "fine_tune")
    assert process.wait() == 0, process.communicate()[1]
    assert {path.name: sha256_file(path) for path in outs} == expected
    new = [run for run in client.search_runs(experiments) if run.info.run_id not in runs_before]
    assert {run.info.run_name: run.info.status for run in new} == {
        "fine_tune frozen": "FINISHED",
        "fine_tune moving": "FINISHED",
    }
    assert len(new) == 2  # each goes on with its own run
    verdict = json.loads((project / "reports/fine_tune/bn_freeze.json").read_text())
    assert verdict["sentence"]
