"""Secrets stay in the environment, servers ask for passwords where they are told to, nothing is unpickled."""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows.servers import answers, free_port
from tests.conftest import REPOSITORY
from tests.projects import CANARY, ENVIRONMENT


def holding(folder: Path, text: bytes) -> list[str]:
    """Files below a folder that hold a text, plainly or in base64."""
    wanted = (text, base64.b64encode(text)[:-2])
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [str(path.relative_to(folder)) for path in files if any(part in path.read_bytes() for part in wanted)]


def test_a_secret_of_the_environment_is_nowhere(done, tmp_path):
    """Not in MLflow's or Prefect's database, logs, artifacts, records, outs, dvc.lock or DVC's cache."""
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] == CANARY, "the flow that made the project had it"
    assert holding(done, CANARY.encode()) == []
    copied = shutil.copytree(done, tmp_path / "copied", symlinks=True)
    (copied / "planted").write_text(f"key={CANARY}")
    assert holding(copied, CANARY.encode()) == ["planted"], "it would have been found"


def test_nothing_is_pickled(done):
    kept = [path.name for path in done.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")]
    assert kept == []
    sources = [path for top in ("headstart", "tasks", "flows") for path in (REPOSITORY / top).rglob("*.py")]
    for path in sources:
        text = path.read_text()
        assert "import pickle" not in text and "yaml.load(" not in text.replace('YAML(typ="safe"', ""), path
        assert "torch.load(" not in text or "weights_only=True" in text, path


def test_the_lock_pins_hashes_of_everything():
    for lock in ("requirements.lock", "bench/requirements.lock"):
        entries = [
            block for block in (REPOSITORY / lock).read_text().split("\n") if "==" in block and not block.startswith((" ", "#"))
        ]
        assert len(entries) > 100 and all(entry.rstrip().endswith("\\") for entry in entries), lock


@pytest.mark.e2e
def test_prefects_server_asks_for_a_password_where_it_has_one(done):
    port = free_port(4600)
    environment = ENVIRONMENT | {"PREFECT_SERVER_API_AUTH_STRING": f"user:{CANARY}"}
    command = [sys.executable, "-m", "flows.prefect_server", "--port", str(port)]
    process = subprocess.Popen(command, cwd=done, env=environment)
    try:
        while not answers(port):
            assert process.poll() is None
            time.sleep(0.2)
        address = f"http://127.0.0.1:{port}/api/flow_runs/filter"
        for password, status in ((None, 401), ("user:wrong", 401), (f"user:{CANARY}", 200)):
            token = {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"} if password else {}
            request = urllib.request.Request(address, b"{}", {"content-type": "application/json"} | token)
            try:
                assert urllib.request.urlopen(request, timeout=60).status == status
            except urllib.error.HTTPError as error:
                assert error.code == status
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert holding(done / ".headstart/prefect", CANARY.encode()) == []
