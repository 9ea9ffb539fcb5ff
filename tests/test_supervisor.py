"""The process that classifies may hang or die outside of decoding: that ends with a report, and costs no answer."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from headstart.core.errors import InputError, Unavailable
from headstart.prediction import batch, supervisor
from headstart.prediction.batch import predict_folder
from headstart.prediction.supervisor import ScoringJob, score_all
from tests.conftest import write_shapes

IDLE = 2.0
JOB = ScoringJob(Path("no model"), "", 1, 0.5, 1, 1, "cpu")
# Fake scorers, which keep to the protocol. `start` gets the job; `answer` answers the file of an index.
START = """
import json, pathlib, socket, sys, time
job = json.loads(sys.stdin.readline())
connection = socket.socket(fileno=int(sys.argv[-2]))
def answer(index):
    row = {"predicted": "a", "confidence": 1.0, "abstained": False, "label_1": "a", "probability_1": 1.0}
    found = {"row": row, "key": job["paths"][index], "final": True}
    connection.sendall(json.dumps([[index, found]]).encode() + b"\\n")
"""
HANGS = "import time; time.sleep(600)"
HANGS_AFTER_ONE = f"{START}\nanswer(0)\n{HANGS}"
SLOW = f"{START}\ntime.sleep(2)\n[answer(i) for i in range(len(job['paths']))]"
WELL = f"{START}\n[answer(i) for i in range(len(job['paths']))]"
# Answers one file the first time it is started, and hangs at once from then on.
HANGS_LATER = f"""
import os, sys, time
if os.path.exists(sys.argv[1]):
    time.sleep(600)
open(sys.argv[1], "w").close()
{HANGS_AFTER_ONE}
"""


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", IDLE)


def command(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *arguments]  # it starts in 20 ms, far within IDLE


def test_a_hang_before_the_first_answer_is_reported():
    with pytest.raises(Unavailable, match=r"gave no sign of life for \d+ s") as error:
        list(score_all(["x"], JOB, command(HANGS)))
    assert "to do:" in str(error.value)


def test_whoever_hangs_before_it_reads_its_job_does_not_hold_its_starter_up():
    paths = [f"{number:0200}" for number in range(20_000)]  # more than a socket or a pipe holds
    with pytest.raises(Unavailable, match="no sign of life"):
        list(score_all(paths, JOB, command(HANGS)))


def test_after_a_hang_another_goes_on_with_what_is_left(caplog):
    found = list(score_all(["x", "y"], JOB, command(HANGS_AFTER_ONE)))
    assert [path for path, _ in found] == ["x", "y"]
    assert "another one continues with 1 files" in caplog.text


def card_alone(path: Path) -> Path:
    """A model file without tensors, whose card has the target alone."""
    card = json.dumps({"target": {"kind": "single_label", "classes": ["a"]}})
    header = json.dumps({"__metadata__": {"headstart": card}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_what_was_answered_before_a_hang_is_kept(tmp_path, monkeypatch):
    folder = write_shapes(tmp_path / "shapes", classes=1, each=3)
    job = ScoringJob(**JOB.__dict__ | {"model": card_alone(tmp_path / "m.safetensors")})
    time.sleep(0.05)  # what changed this instant is not remembered

    def scored(code: list[str]) -> None:
        monkeypatch.setattr(batch, "score_all", lambda paths, job: score_all(paths, job, code))

    scored(command(HANGS_LATER, str(tmp_path / "mark")))
    with pytest.raises(Unavailable, match="no sign of life"):
        predict_folder(folder, job, state=tmp_path / "s.sqlite")
    scored(command(WELL))
    again = predict_folder(folder, job, state=tmp_path / "s.sqlite")
    assert again.computed == 2 and len(again.rows) == 3 and (again.rows["predicted"] == "a").all()


def test_who_computes_is_given_longer_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "_processor_seconds", lambda process: 10 * time.monotonic())
    quick = ScoringJob(**JOB.__dict__ | {"timeout": 0.1})
    assert [path for path, _ in score_all(["x"], quick, command(SLOW))] == ["x"]
    monkeypatch.setattr(supervisor, "BUSY_SECONDS", 1.0)
    with pytest.raises(Unavailable, match="no sign of life"):
        list(score_all(["x"], quick, command(HANGS)))


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("import sys; print('no such engine', file=sys.stderr); sys.exit(3)", r"\(exit 3\): no such engine"),
        ("raise MemoryError('of the network')", r"\(exit 1\): MemoryError: of the network"),
        ("import os; os.kill(os.getpid(), 9)", r"\(SIGKILL\): no error output"),
    ],
)
def test_a_death_before_the_first_answer_says_what_was_said(code, wanted):
    with pytest.raises(InputError, match=wanted) as error:
        list(score_all(["x"], JOB, command(code)))
    assert "Traceback" not in str(error.value) and len(str(error.value).splitlines()) < 5


def test_whoever_hangs_in_its_own_end_is_ended(monkeypatch):
    monkeypatch.setattr(supervisor, "SECONDS_TO_END", 0.5)
    with pytest.raises(InputError, match="SIGKILL"):
        list(score_all(["x"], JOB, command(f"{START}\nconnection.close()\n{HANGS}")))


def test_a_program_that_is_not_there_is_reported():
    with pytest.raises(Unavailable, match="could not be started: No such file"):
        list(score_all(["x"], JOB, ["/no/such/python"]))
