"""What people see: MLflow's and Prefect's pages of a project with two runs, in a real browser."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.servers import free_port
from headstart.tracking.registry import Registry
from tests import templates
from tests.projects import ENVIRONMENT, how, mlflow_runs

pytestmark = pytest.mark.e2e
CHROMIUM = "chromium"  # of Debian: apt install chromium


class Pages:
    """MLflow's pages on `mlflow`, Prefect's on `prefect`, of `project`."""

    def __init__(self, project: Path, mlflow: str, prefect: str) -> None:
        self.project, self.mlflow, self.prefect = project, mlflow, prefect
        self.parents = [one for one in mlflow_runs(project) if "stage" not in one.data.tags]

    def text(self, address: str, *wanted: str) -> str:
        """The text of a page once it shows what is wanted; it is shown in the failure otherwise."""
        text = ""
        for budget in (10_000, 30_000, 60_000):  # of the page's own clock
            browser = [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--window-size=1400,6000",
                f"--virtual-time-budget={budget}",
                "--dump-dom",
            ]
            page = subprocess.run([*browser, address], capture_output=True, text=True, check=True, timeout=120).stdout
            text = " ".join(html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)).split())
            if all(part in text for part in wanted):
                return text
        raise AssertionError(f"{[part for part in wanted if part not in text]} not on {address}:\n{text[:3000]}")


@pytest.fixture(scope="module")
def pages(done, tmp_path_factory) -> Iterator[Pages]:
    project = templates.copy_project(done, tmp_path_factory.mktemp("browser") / "project")
    how(project, "fine_tune.lr=2e-3", "evaluate.tta=blend")
    ports = free_port(5100), free_port(4400)
    command = [sys.executable, "-m", "flows.ui", "--mlflow-port", str(ports[0]), "--prefect-port", str(ports[1])]
    process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert "Ctrl-C ends both" in said[2], said
        yield Pages(project, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_list_of_runs(pages):
    experiment = pages.parents[0].info.experiment_id
    names = [one.info.run_name for one in pages.parents]
    assert len(set(names)) == 2
    pages.text(f"{pages.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning", "matching runs", "shapes (")


def test_two_runs_compared(pages):
    ids, experiment = [one.info.run_id for one in pages.parents], pages.parents[0].info.experiment_id
    query = f"runs={urllib.parse.quote(json.dumps(ids))}&experiments={urllib.parse.quote(json.dumps([experiment]))}"
    metrics = ("fine_tuned_tta_accuracy", "head_accuracy", "fine_tuned_log_loss", "suggested_lr")  # as many as fit
    params = ("fine_tune.lr", "0.002", "0.001", "evaluate.tta", "blend", "mean")
    text = pages.text(f"{pages.mlflow}/#/compare-runs?{query}", "Comparing 2 Runs from 1 Experiment", *metrics, *params)
    assert "comparisons" not in text


def test_a_runs_own_page(pages):
    run = pages.parents[0]
    address = f"{pages.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    pages.text(address, run.info.run_name, "Finished", "fine_tune", "data_digest", "dvc_lock", "shapes (", "Training")


def test_a_stages_curves(pages):
    children = {one.data.tags["stage"]: one for one in mlflow_runs(pages.project) if "stage" in one.data.tags}
    for stage, wanted in (("train_head", ("valid_log_loss", "lr")), ("find_lr", ("smoothed_loss", "lr"))):
        run = children[stage].info
        pages.text(f"{pages.mlflow}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics", stage, *wanted)


def test_the_models_page(pages):
    pages.text(f"{pages.mlflow}/#/models/headstart", "Version 1", "Version 2", "champion", "challenger", "headstart.ve")
    number = Registry(pages.project).wanted("challenger").number
    page = f"{pages.mlflow}/#/models/headstart/versions/{number}"
    pages.text(page, "challenger", f"version {number} ")


def test_prefects_pages(pages):
    for address in (pages.prefect, pages.prefect.replace("127.0.0.1", "localhost")):
        pages.text(f"{address}/runs", "headstart", "Completed")
        pages.text(f"{address}/v2/runs", "headstart", "Completed")
    pages.text(f"{pages.prefect}/artifacts", "confusion-matrix", "learning-rate-curve", "summary")


@pytest.mark.parametrize("which", ["mlflow", "prefect"])
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_sites_get_nothing(pages, which, headers):
    path = {"mlflow": "/api/2.0/mlflow/experiments/search", "prefect": "/api/flow_runs/filter"}[which]
    request = urllib.request.Request(
        getattr(pages, which) + path, b'{"max_results": 5}', {"content-type": "application/json"} | headers
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_servers_listen_on_loopback_alone(pages):
    import psutil

    ports = {int(address.rpartition(":")[2]) for address in (pages.mlflow, pages.prefect)}
    time.sleep(0.1)
    listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port in ports]
    assert {one.port for one in listening} == ports and {one.ip for one in listening} == {"127.0.0.1"}
