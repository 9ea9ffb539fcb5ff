"""`dvc repro` and its relatives: clones, remotes, cache types, experiments; whoever ran last, the state is one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.param_edits import set_params
from headstart.core.yaml_text import read_yaml
from tests import templates
from tests.conftest import make_project
from tests.projects import ENVIRONMENT, flow, how, ran, run
from tests.test_graph import ORDER

GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t")


def commit(project: Path) -> None:
    run(project, "git", "add", "-A")
    run(project, *GIT, "commit", "-qm", "ran")


@pytest.fixture(scope="module")
def shared(done, tmp_path_factory) -> Path:
    """A finished project whose images are a copy in DVC's care; committed, as a team would."""
    project = templates.copy_project(done, tmp_path_factory.mktemp("reproduce") / "project")
    images = str((done / "data/shapes").resolve())
    run(project, sys.executable, "-m", "flows.link", "--from", images, "--name", "kept", "--copy-into-dvc")
    how(project, "data.source=data/kept")
    commit(project)
    return project


@pytest.fixture
def s3() -> Iterator[str]:
    """The address of an S3 served by moto, with a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="team")
    yield address
    server.stop()


def clone(project: Path, folder: Path) -> Path:
    run(project, "git", "clone", "-q", str(project), str(folder))
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_clone_that_pulls_has_everything_and_repro_runs_nothing(shared, tmp_path, kind, request, monkeypatch):
    project = clone(shared, tmp_path / "origin")
    shutil.copytree(shared / ".dvc/cache", project / ".dvc/cache", dirs_exist_ok=True)
    settings = [("url", str(tmp_path / "store"))]
    if kind == "s3":
        settings = [("url", "s3://team/store"), ("endpointurl", request.getfixturevalue("s3"))]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setitem(ENVIRONMENT, name, "test")
        monkeypatch.setitem(ENVIRONMENT, "AWS_DEFAULT_REGION", "us-east-1")
    run(project, "dvc", "remote", "add", "-d", "team", settings[0][1])
    for name, value in settings[1:]:
        run(project, "dvc", "remote", "modify", "team", name, value)
    commit(project)
    run(project, "dvc", "push")
    other = clone(project, tmp_path / "clone")
    assert not (other / "data/kept").exists() and not (other / "models").exists()
    run(other, "dvc", "pull")
    for path in ("data/kept/a/000.png", "data/activations/pooled/00000.arrow", "models/fine_tuned.safetensors"):
        assert (other / path).read_bytes() == (shared / path).read_bytes()
    assert "Running stage" not in run(other, "dvc", "repro")
    assert "up to date" in run(other, "dvc", "status")
    outcome = how(other)
    assert set(outcome.values()) == {"fresh"}


@pytest.mark.e2e
def test_a_clone_without_the_linked_folder_is_told_which_one(done, tmp_path):
    project = templates.copy_project(done, tmp_path / "origin")
    commit(project)
    other = clone(project, tmp_path / "clone")
    for told in (run(other, "dvc", "repro", code=255), flow(other, code=2)):
        assert "data/shapes" in told and "Traceback" not in told
    assert "flows.link --from" in flow(other, code=2)
    (other / "data").mkdir(exist_ok=True)
    (other / "data/shapes").symlink_to((done / "data/shapes").resolve())
    assert ran(how(other)) == ORDER[1:], "without a remote everything is computed again (the repro came to fetch_data)"
    assert (other / "dvc.lock").read_bytes() == (project / "dvc.lock").read_bytes(), "to the same hashes"
    assert str(tmp_path) not in (other / "dvc.lock").read_text()


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
@pytest.mark.e2e
def test_other_cache_types(done, tmp_path, kind):
    """Outs are links into DVC's cache: they are replaced, never written through."""
    project = make_project(tmp_path / "project")
    run(project, "dvc", "config", "cache.type", kind)
    assert ran(how(project)) == ORDER
    model = project / "models/fine_tuned.safetensors"
    assert model.is_symlink() if kind == "symlink" else model.stat().st_nlink > 1
    assert (project / "dvc.lock").read_bytes() == (done / "dvc.lock").read_bytes()
    first, before = model.read_bytes(), read_yaml(project / "params.yaml")["fine_tune"]["lr"]
    assert "fine_tune" in ran(how(project, "fine_tune.lr=2e-3"))
    assert model.read_bytes() != first
    assert "up to date" in run(project, "dvc", "status")
    outcome = how(project, f"fine_tune.lr={before}")
    assert ran(outcome) == [] and outcome["fine_tune"] == "restored"
    assert model.read_bytes() == first, "the cache's copy was not touched"
    assert "Running stage" not in run(project, "dvc", "repro")


@pytest.mark.e2e
def test_an_experiment_and_what_it_changed(copied):
    commit(copied)
    run(copied, "dvc", "exp", "run", "-S", "train_head.epochs=3")
    assert read_yaml(copied / "params.yaml")["train_head"]["epochs"] == 3
    assert "train_head.epochs" in run(copied, "dvc", "params", "diff")
    changed = run(copied, "dvc", "metrics", "diff")
    assert "reports/metrics.json" in changed and "head.log_loss" in changed
    assert set(how(copied).values()) == {"fresh"}, "the flow sees what the experiment computed"
    assert "train_head" in run(copied, "dvc", "exp", "show", "--csv")


@pytest.mark.e2e
def test_flow_and_repro_take_turns(copied):
    lock = copied / "dvc.lock"
    for number, (by_flow, change) in enumerate(((False, "3"), (True, "4"), (False, "3"), (True, "4"))):
        set_params(copied / "params.yaml", [f"train_head.epochs={change}"])
        if by_flow:
            how(copied)
        else:
            run(copied, "dvc", "repro")
        assert "up to date" in run(copied, "dvc", "status"), number
        before = lock.read_bytes()
        assert set(how(copied).values()) == {"fresh"}
        assert "Running stage" not in run(copied, "dvc", "repro")
        assert lock.read_bytes() == before


@pytest.mark.e2e
def test_two_at_once_one_waits_or_says_who(copied):
    """A flow while `dvc repro` runs a stage: it says who is at work, and changes nothing."""
    set_params(copied / "params.yaml", ["train_head.epochs=5"])
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=copied, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Running stage" in line:
            break
    os.killpg(process.pid, signal.SIGSTOP)  # it stays there, in DVC's lock or just out of it with the stage listed
    try:
        told = flow(copied, code=2)
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    assert "lock is held by another dvc" in told or f"another dvc command runs, process {process.pid}" in told, told
    assert "Traceback" not in told
    rest = threading.Thread(target=process.stdout.read)
    rest.start()
    assert process.wait(120) == 0
    rest.join()
    assert set(how(copied).values()) == {"fresh"}


@pytest.mark.e2e
def test_a_repro_while_the_flow_runs_is_refused_and_nothing_is_lost(copied):
    set_params(copied / "params.yaml", ["fine_tune.epochs=4"])
    command = [sys.executable, "-m", "flows.pipeline"]
    process = subprocess.Popen(command, cwd=copied, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    holder = copied / ".headstart/dvc-lock-holder.json"
    while not holder.exists():
        assert process.poll() is None
        time.sleep(0.02)
    told = run(copied, "dvc", "repro", code=255)
    assert "lock" in told
    assert process.communicate(timeout=120) and process.returncode == 0
    assert "Running stage" not in run(copied, "dvc", "repro")
