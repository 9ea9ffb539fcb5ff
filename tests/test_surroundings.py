"""What surrounds a run and is none of its business: proxies, other servers' addresses, limits, accounts, languages."""

from __future__ import annotations

import errno
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import prefect_client
from flows.prefect_client import check_server, server_there
from headstart.core.command_line import guarded
from headstart.core.errors import Unavailable
from headstart.tracking import record, store
from tests.conftest import REPOSITORY, make_project
from tests.projects import ENVIRONMENT, mlflow_runs, run

WHAT_IS_SET = "import json, os, headstart; print(json.dumps({k: v for k, v in os.environ.items() if 'proxy' in k.lower()}))"


def proxies(**given: str) -> dict[str, str]:
    """The variables of proxies, as they are for a process of ours and its children."""
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    said = subprocess.check_output([sys.executable, "-c", WHAT_IS_SET], cwd=REPOSITORY, env=clean | given, text=True)
    found: dict[str, str] = json.loads(said)
    return found


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_loopback_is_off_every_proxy_beside_what_else_is(name):
    own = {name: "http://proxy.example:8080"}
    expected = "127.0.0.1,localhost,::1"
    assert proxies(**own) == own | {"NO_PROXY": expected, "no_proxy": expected}
    found = proxies(**own, NO_PROXY="intranet.example, 127.0.0.1", no_proxy=".lower.example")
    expected = "intranet.example,127.0.0.1,.lower.example,localhost,::1"
    assert (found["NO_PROXY"], found["no_proxy"]) == (expected, expected)


def test_without_a_proxy_nothing_is_set():
    assert proxies() == {}
    assert proxies(NO_PROXY="x") == {"NO_PROXY": "x"}


def test_a_socks_proxy_that_no_library_can_use_is_forgotten():
    pytest.importorskip("httpx")
    assert "ALL_PROXY" not in proxies(ALL_PROXY="socks5://127.0.0.1:9")
    assert proxies(ALL_PROXY="socks5h://x:9", HTTP_PROXY="http://y:1")["HTTP_PROXY"] == "http://y:1"


def test_clients_of_both_kinds_reach_loopback_though_a_dead_proxy_is_set():
    with listening(200) as port:
        code = (
            f"import headstart, httpx, requests, urllib.request as u; a = 'http://127.0.0.1:{port}/'\n"
            "print(httpx.get(a).status_code, requests.get(a).status_code, u.urlopen(a).status)"
        )
        environment = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "no_proxy": "x"}
        environment.pop("NO_PROXY", None)
        said = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, text=True)
    assert said.split() == ["200", "200", "200"]


class listening:
    """An HTTP server on loopback that answers every request with one status."""

    def __init__(self, status: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> int:
        self.thread.start()
        return int(self.server.server_port)

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def test_a_prefect_server_that_does_not_answer_is_named_before_any_work(silent, monkeypatch):
    monkeypatch.setattr(prefect_client, "SECONDS_TO_ANSWER", 0.5)
    for port, told in ((9, "does not answer"), (silent, "does not answer")):
        address = f"http://someone:secret@127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: address}), pytest.raises(Unavailable) as error:
            start = time.monotonic()
            check_server()
        assert time.monotonic() - start < 30, "it does not try again and again"
        assert told in str(error.value) and f"http://127.0.0.1:{port}/api (PREFECT_API_URL)" in str(error.value)
        assert "secret" not in str(error.value) and "unset PREFECT_API_URL" in str(error.value)
    for status in (404, 401):
        refused = pytest.raises(Unavailable, match=f"answers {status}")
        with listening(status) as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}), refused:
            check_server()
    with listening(200) as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        check_server()
    with temporary_settings({PREFECT_API_URL: None}):
        check_server()


def test_a_server_that_goes_away_or_does_not_start_is_told_and_bugs_are_not():
    import httpx

    with pytest.raises(Unavailable, match="does not answer"), server_there():
        raise httpx.ConnectError("refused")
    with pytest.raises(Unavailable, match="did not start"), server_there():
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")
    with pytest.raises(RuntimeError, match="a bug"), server_there():
        raise RuntimeError("a bug")


def test_the_command_names_a_dead_server_and_leaves_params_alone(project):
    before = (project / "params.yaml").read_bytes()
    command = [sys.executable, "-m", "flows.pipeline", "--set", "train_head.epochs=3"]
    environment = ENVIRONMENT | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "PREFECT_API_URL" in done.stderr and len(done.stderr.splitlines()) < 8
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("module", ["flows.clean", "tasks.fetch_data", "flows.cache"])
def test_a_python_without_assertions_is_refused(project, level, module):
    command = [sys.executable, "-m", module, *(["stat"] if module == "flows.cache" else [])]
    environment = ENVIRONMENT | {"PYTHONOPTIMIZE": level}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "unset PYTHONOPTIMIZE" in done.stderr
    assert not (project / "data/digits").exists()


def test_another_mlflow_is_said_not_to_be_used_once_and_without_its_password(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store.logger, "propagate", True)
    store._say_where.cache_clear()
    monkeypatch.setattr(store, "ELSEWHERE", "https://me:secret@mlflow.example:5000/x?token=secret")
    store._say_where(tmp_path)
    store._say_where(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("MLFLOW_TRACKING_URI (https://mlflow.example) is not used yet: runs and models are stored in ")
    assert line.endswith(f"{tmp_path}/mlflow.db") and "secret" not in line
    caplog.clear()
    for ours in (None, "", store.tracking_uri(tmp_path)):
        store._say_where.cache_clear()
        monkeypatch.setattr(store, "ELSEWHERE", ours)
        store._say_where(tmp_path)
    assert not caplog.records
    store._say_where.cache_clear()


def test_provenance_without_git_or_outside_a_repository(tmp_path, monkeypatch):
    assert record._git_commit(tmp_path) is None
    assert len(record._git_commit(REPOSITORY) or "") == 40
    monkeypatch.setenv("PATH", "/nonexistent")
    assert record._git_commit(REPOSITORY) is None


def test_only_one_place_asks_git():
    users = [path for top in ("headstart", "flows", "tasks") for path in (REPOSITORY / top).rglob("*.py")]
    assert [path.name for path in users if '"git"' in path.read_text()] == ["record.py"]


PIPELINE = [sys.executable, "-m", "flows.pipeline"]
CLOSED = "http://127.0.0.1:9"
SPACED = "Fotos & Söhne (2)"


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in ENVIRONMENT.items() if name not in names}


def somebody() -> list[str]:
    """A command line's start that makes it another user's than root's, who may read all (this Python may be in /root)."""
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [shutil.which("setpriv") or "", "--reuid=65534", "--regid=65534", "--clear-groups", *capability]


def somebody_runs() -> bool:
    """Whether root is who tests, and such a user can run this very Python."""
    if os.geteuid() != 0 or not somebody()[0]:
        return False
    command = [*somebody(), sys.executable, "-c", "import os, sys; print(os.geteuid(), sys.version)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == f"65534 {sys.version}"


SURROUNDINGS = {
    "a path with spaces and umlauts": (PIPELINE, ENVIRONMENT),
    "LANG=C": (PIPELINE, ENVIRONMENT | {"LANG": "C", "LC_ALL": "C"}),
    "no HOME": (PIPELINE, without("HOME")),
    "no TMPDIR": (PIPELINE, without("TMPDIR", "TEMP", "TMP")),
    "128 file descriptors": (["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", *PIPELINE], ENVIRONMENT),
    "umask 077": (["sh", "-c", 'umask 077 && exec "$@"', "sh", *PIPELINE], ENVIRONMENT),
    "a proxy": (PIPELINE, without("NO_PROXY", "no_proxy") | {"HTTP_PROXY": CLOSED, "HTTPS_PROXY": CLOSED, "ALL_PROXY": CLOSED}),
    "a SOCKS proxy": (PIPELINE, without("NO_PROXY", "no_proxy") | {"ALL_PROXY": "socks5h://127.0.0.1:9"}),
    "no git": (PIPELINE, ENVIRONMENT | {"PATH": "/nonexistent"}),
    "another MLflow": (
        PIPELINE,
        ENVIRONMENT | {"MLFLOW_TRACKING_URI": CLOSED, "MLFLOW_REGISTRY_URI": CLOSED, "MLFLOW_RUN_ID": "x"},
    ),
    "another user than root": ([*somebody(), *PIPELINE], ENVIRONMENT | {"HOME": "/nonexistent"}),
}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("_pava.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("can't start new thread"),
    ],
)
def test_no_memory_left_is_one_screen(error, capsys):
    def main() -> int:
        raise error

    assert guarded(main) == 2
    said = capsys.readouterr().err
    assert "no memory is left" in said and "ulimit -v" in said and "Traceback" not in said


def test_a_bug_keeps_its_traceback():
    def main() -> int:
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError):
        guarded(main)


@pytest.mark.e2e
@pytest.mark.parametrize("gigabytes", [1, 2, 4, 6, 8])
def test_a_limit_of_address_space_is_kept_to_or_said(gigabytes, tmp_path):
    project = make_project(tmp_path / "project")
    command = ["sh", "-c", f'ulimit -v {gigabytes}000000 && exec "$@"', "sh", *PIPELINE]
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0 or (done.returncode == 2 and "ulimit -v" in done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    run(project, *PIPELINE)  # nothing is lost: without the limit it goes on


@pytest.mark.e2e
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_whole_flow_runs_in(name, tmp_path):
    command, environment = SURROUNDINGS[name]
    project = make_project(tmp_path / (SPACED if name.startswith("a path") else "project"))
    if name.startswith("another user"):
        if not somebody_runs():
            pytest.skip("needs root, and a setpriv that may pass a capability on")
        for folder in [*project.parents][:3]:
            folder.chmod(0o755)  # pytest's own are root's alone
        run(tmp_path, "chown", "-R", "65534:65534", str(tmp_path))
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert (project / "reports/report.html").exists() and "champion" in done.stderr
    assert ("MLFLOW_TRACKING_URI (http://127.0.0.1) is not used" in done.stderr) == (name == "another MLflow")
    if name != "another user than root":  # git and the database are that user's
        parents = [one for one in mlflow_runs(project) if "mlflow.parentRunId" not in one.data.tags]
        assert [one.info.status for one in parents] == ["FINISHED"]
        assert ("mlflow.source.git.commit" in parents[0].data.tags) == (name != "no git")
    again = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, errors="replace", check=False)
    assert again.returncode == 0 and again.stderr.count(": fresh") == 7, again.stdout + again.stderr
