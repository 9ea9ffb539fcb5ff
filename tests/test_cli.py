"""The runner, progress, installing: what a command line shows and leaves."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.core import files, progress
from headstart.core.command_line import guarded
from headstart.core.errors import InputError, explain
from tests.conftest import REPOSITORY


def test_errors_that_a_user_can_put_right_become_one_message_and_exit_2(capsys):
    def fail() -> int:
        raise InputError("x.csv: found", wanted="better", fix="do it")

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: x.csv: found\n  wanted: better\n  to do:  do it\n"
    assert "No space" in explain(OSError(28, "No space left on device", "/disk/file"))
    assert "/disk/file" in explain(OSError(28, "No space left on device", "/disk/file"))


def test_bugs_keep_their_traceback():
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(fail)
    with pytest.raises(ConnectionError):
        guarded(lambda: (_ for _ in ()).throw(ConnectionError()))


def test_progress_without_a_terminal_is_plain_lines_with_rate_and_time_left(monkeypatch, caplog):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress.logger, "propagate", True)
    with caplog.at_level(logging.INFO, "headstart"):
        assert list(progress.track(range(9), "reading", 90, weigh=lambda item: 10)) == list(range(9))
    lines = [record.message.strip() for record in caplog.records]
    assert lines[0] == "reading: 30 of 90 images, 5/s, 12 s left"
    assert len(lines) == 3


def test_a_rate_leaves_out_what_comes_before_the_first_is_done(monkeypatch, caplog):
    """ "0.055/s, 109 s left" for 7 files: processes were starting, and a network was compiled."""
    clock = iter([0.0, 100.0, 101.0, 102.0, 107.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.logger, "propagate", True)
    with caplog.at_level(logging.INFO, "headstart"):
        list(progress.track(range(4), "classifying", 8, unit="files"))
    lines = [record.message.strip() for record in caplog.records]
    assert lines == ["classifying: 1 of 8 files", "classifying: 4 of 8 files, 0.43/s, 9 s left"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress.track(range(4), "reading", 4)) == [0, 1, 2, 3]


def test_a_stage_lock_waits_for_its_holder(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from headstart.core.files import locked\n"
        "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout.readline() == b"held\n"
        with files.locked(path, "x"):
            assert holder.poll() is not None or holder.wait(1) == 0


def test_a_wrong_folder_is_told(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "tasks.link_data"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "run from the project's root" in done.stderr


PIP = """#!/bin/sh
[ "$1" = -c ] && exit 0
[ "$1 $2" = "-m pip" ] || exit 1
[ "$3" = --version ] && exit 0
echo "$@" >> "{log}"
[ ! -e "{log}.cut" ] || exit 1
"""


@pytest.fixture
def installer(tmp_path):
    """scripts/install.sh with a stand-in for Python: what it would have pip do is written to a log."""
    log, venv = tmp_path / "log", tmp_path / "venv"
    (tmp_path / "requirements.lock").write_text("a==1\n")
    fake = tmp_path / "python"
    inner = PIP.format(log=log)
    fake.write_text(
        f"""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  rm -rf "{venv}"; mkdir -p "{venv}/bin"; echo venv >> "{log}"
  cp "{tmp_path}/inner" "{venv}/bin/python"; exit 0
fi
exec {sys.executable} "$@"
"""
    )
    (tmp_path / "inner").write_text(inner)
    for path in (fake, tmp_path / "inner"):
        path.chmod(0o755)

    def install(code: int = 0) -> list[str]:
        log.write_text("")
        done = subprocess.run(
            ["sh", str(REPOSITORY / "scripts/install.sh")],
            cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHON": str(fake), "VENV": str(venv)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return [
            "venv" if line == "venv" else "force" if "--force-reinstall" in line else "pip"
            for line in log.read_text().splitlines()
        ]

    return install, tmp_path


def test_installing_from_any_state(installer):
    install, folder = installer
    assert install() == ["venv", "pip"]  # nothing there
    assert install() == []  # a second run
    (folder / "requirements.lock").write_text("a==2\n")
    assert install() == ["pip"]  # after a pull with a changed lock
    (folder / "requirements.lock").write_text("a==3\n")
    (folder / "log.cut").touch()
    assert install(code=1) == ["pip"]  # cut off
    (folder / "log.cut").unlink()
    assert install() == ["venv", "pip"]  # begun afresh
    (folder / "venv/.headstart-ours").unlink()  # somebody else's environment
    (folder / "venv/.headstart-begun").touch()
    (folder / "venv/.headstart-lock").unlink()
    assert install() == ["force"]
    assert install() == []


def test_the_lock_serves_python_3_11_to_3_13_with_hashes():
    text = (REPOSITORY / "requirements.lock").read_text()
    pins = {
        line.split("==")[0]: line.split("==")[1].split()[0] for line in text.splitlines() if "==" in line and line[0].isalnum()
    }
    assert (pins["torch"], pins["torchvision"], pins["timm"]) == ("2.14.1", "0.29.1", "1.0.31")
    assert pins["prefect"].startswith("3.8.") and pins["sqlalchemy"].startswith("2.0.") and pins["mlflow"].startswith("3.17.")
    assert text.count("--hash=sha256:") > len(pins)


def test_make_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in text for target in ("install", "run", "repro", "test", "ui", "bench", "seeds", "clean"))


def test_readme_names_every_param_and_every_stage():
    from tests.test_graph import ORDER, PARAMS

    readme = (Path(REPOSITORY) / "README.md").read_text()
    assert all(f"`{stage}`" in readme for stage in ORDER)
    for section, values in PARAMS.model_dump().items():
        for key in values if isinstance(values, dict) else ():
            assert key in readme, f"{section}.{key}"
