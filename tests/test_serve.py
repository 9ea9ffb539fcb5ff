"""The champion over HTTP: what is answered, what is refused, and that one bad request harms no other."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.servers import answers, free_port
from headstart.prediction.predictor import Predictor
from headstart.tracking.registry import Registry
from tests import forks, templates
from tests.conftest import encode, picture
from tests.projects import ENVIRONMENT

pytestmark = pytest.mark.xdist_group("serve")  # one server for all
MAX_MB = 1.0


@pytest.fixture(scope="module")
def served(done, tmp_path_factory) -> Path:
    """A copy of the finished project for this server alone: other tests start, and kill, commands in `done`."""
    return templates.copy_project(done, tmp_path_factory.mktemp("served") / "project")


@pytest.fixture(scope="module")
def address(served) -> Iterator[str]:
    with serving(lambda *words: forks.start(*words, cwd=served, env=ENVIRONMENT)) as address:
        yield address


@contextlib.contextmanager
def serving(start: Callable[..., forks.Forked | subprocess.Popen]) -> Iterator[str]:
    """Serve the champion while the block runs; `start` gets what would follow `python`. The address."""
    port = free_port(5200 + os.getpid() % 400)  # a server of another test must not answer in its place
    process = start("-m", "flows.serve", "--port", str(port), "--max-mb", str(MAX_MB))
    try:
        while not answers(port):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 or process.returncode == 143


JSON = {"content-type": "application/json"}


def ask(address: str, rows: list[str], **headers: str) -> tuple[int, Any]:
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[row] for row in rows]}}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, JSON | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


IMAGES = [encode(picture(number % 3, number)) for number in range(12)]


def test_answers_are_the_models(address, done):
    status, rows = ask(address, [text(image) for image in IMAGES])
    champion = Registry(done).get_alias("champion")
    assert champion is not None
    expected = Predictor(champion.file).answers_of_bytes(IMAGES)
    assert status == 200
    for row, p in zip(rows, expected.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(p, abs=1e-6)
        assert row["confidence"] == pytest.approx(max(p), abs=1e-6) and row["predicted"] in "abc"
    assert ask(address, [text(IMAGES[3])])[1][0]["probabilities"] == pytest.approx(expected[3].tolist(), abs=1e-6)


@pytest.mark.e2e
def test_the_real_command_serves_and_ends_on_a_signal(served):
    """The server of the other tests is a fork (tests/forks.py)."""

    def start(*words: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *words], cwd=served, env=ENVIRONMENT)

    with serving(start) as address:
        status, rows = ask(address, [text(IMAGES[0])])
        assert status == 200 and rows[0]["predicted"] in "abc"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (text(b"no image"), "row 1: not an image"),
        (text(IMAGES[0][:-20]), "row 1: damaged image"),
        (text(b""), "row 1: "),
        (text(b"/etc/passwd"), "row 1: not an image"),
        (text(b"http://127.0.0.1/x.png"), "row 1: not an image"),
        ("/etc/passwd", "Incorrect padding"),
    ],
)
def test_a_bad_image_is_a_4xx_that_names_the_row(address, bad, told):
    status, said = ask(address, [text(IMAGES[0]), bad])
    assert status == 400 and told in said and "root:" not in said


def test_others_are_unharmed(address):
    """Good and bad requests at once, from eight clients."""
    good, bad = [text(image) for image in IMAGES], [text(b"no image")]
    alone = ask(address, good)

    def one(number: int) -> tuple[int, Any]:
        return ask(address, bad if number % 3 == 0 else good)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(60)))
    assert [status for status, _ in found] == [400 if number % 3 == 0 else 200 for number in range(60)]
    assert all(said == alone[1] for status, said in found if status == 200)


def test_caps(address):
    pieces = (b"A" * 1_000_000 for _ in range(3))  # chunked: no length is stated
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(urllib.request.Request(f"{address}/invocations", pieces, JSON), timeout=60)
    assert ask(address, ["A" * int(MAX_MB * 1.1e6)])[0] == 413
    status, said = ask(address, [text(IMAGES[0])] * 257)
    assert status == 400 and "257 rows" in said
    assert ask(address, []) == (200, [])


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_sites_are_refused(address, headers):
    assert ask(address, [text(IMAGES[0])], **headers)[0] == 403
