"""A few rounds of each part of bench.soak, with one Prefect server for all; `python -m bench.soak` is the whole of it."""

import subprocess
import sys

import pytest

from bench.soak.__main__ import PARTS
from tests.conftest import REPOSITORY
from tests.projects import ENVIRONMENT


@pytest.mark.e2e
def test_five_rounds_of_each():
    command = [sys.executable, "-m", "bench.soak", "--rounds", "5", "--seed", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(PARTS)
