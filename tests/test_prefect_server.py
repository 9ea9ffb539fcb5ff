"""A flow run against Prefect's own server, as `make schedule` starts it (tests/test_schedule.py has worker and schedule)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.servers import answers, free_port
from tests.projects import ENVIRONMENT, run


@pytest.fixture
def server(copied) -> Iterator[str]:
    """Prefect's server for a finished project, behind our check of Host and Origin; its API's address."""
    port = free_port(4800)
    command = [sys.executable, "-m", "flows.prefect_server", "--port", str(port)]
    process = subprocess.Popen(command, cwd=copied, env=ENVIRONMENT)
    try:
        while not answers(port):
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait(60)


def ask(api: str, path: str, **headers: str) -> Any:
    request = urllib.request.Request(f"{api}/{path}", b"{}", {"content-type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_the_server_keeps_a_flow_run_its_stages_and_what_its_pages_show(server, copied):
    before = {one["id"] for one in ask(server, "flow_runs/filter")}
    environment = ENVIRONMENT | {"PREFECT_API_URL": server}
    said = run(copied, sys.executable, "-m", "flows.pipeline", "--force", "evaluate", env=environment)
    assert "evaluate    ran" in said and "train_head  fresh" in said
    (flow_run,) = (one for one in ask(server, "flow_runs/filter") if one["id"] not in before)
    assert flow_run["state"]["type"] == "COMPLETED"
    stages = [one for one in ask(server, "task_runs/filter") if one["flow_run_id"] == flow_run["id"]]
    assert len(stages) == 7 and {one["state"]["type"] for one in stages} == {"COMPLETED"}
    shown = {one["key"] for one in ask(server, "artifacts/filter") if one["flow_run_id"] == flow_run["id"]}
    assert {"confusion-matrix", "stages", "summary", "mlflow"} <= shown
    assert not list((Path(copied) / ".headstart/alive").glob("prefect-*")), "the run has ended"
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            ask(server, "flow_runs/filter", **headers)
