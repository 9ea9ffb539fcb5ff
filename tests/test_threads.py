"""OpenMP's threads sleep soon while they wait, in every process of ours, and no result changes by that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PLAIN = {name: value for name, value in os.environ.items() if name not in NAMES}
# Runs a module or a file as the main one and says which is imported first: headstart, which sets the environment, or torch.
FIRST = """
import os, runpy, sys
class Look:
    def find_spec(self, name, *_):
        if name in ("headstart", "torch"):
            print(name, flush=True)
            os._exit(0)
sys.meta_path.insert(0, Look())
if sys.argv[1].endswith(".py"):
    runpy.run_path(sys.argv[1])
else:
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
TRAIN = """
import hashlib
from headstart.runtime import configure
import torch
configure(2, "cpu")
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3),
                          torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(net.parameters())
for step in range(2):
    loss = torch.nn.functional.cross_entropy(net(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
print(hashlib.sha256(weights).hexdigest())
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=PLAIN | environment, capture_output=True, text=True, check=True)


def entries() -> list[str]:
    """Every module that is started as a command or by us; and the flows, which Prefect's worker loads by path."""
    found = [
        path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
        for package in ("headstart", "tasks", "flows", "bench")
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        if '__name__ == "__main__"' in path.read_text() and path.name != "guardian.py"
    ]
    return [*found, "flows/pipeline.py", "flows/predict.py"]


def test_every_entry_is_looked_at():
    assert {"tasks.precompute", "flows.pipeline", "headstart.ingest.worker", "headstart.prediction.scorer"} < set(entries())


@pytest.mark.parametrize("entry", entries())
def test_the_environment_is_set_before_torch_is_imported(entry):
    assert python(FIRST, entry).stdout == "headstart\n"


def setting(**environment: str) -> list[str]:
    code = f"import headstart, os, subprocess, sys\nprint([os.environ.get(name) for name in {NAMES}])"
    nested = f"{code}\nsubprocess.run([sys.executable, '-c', {code!r}])"  # what a child gets
    first, second = python(nested, **environment).stdout.splitlines()
    return sorted({first, second})


def test_what_the_user_set_stays_and_children_inherit_it():
    (default,) = setting()
    assert default.startswith("[None, '")
    assert setting(GOMP_SPINCOUNT="77") == ["[None, '77']"]
    assert setting(OMP_WAIT_POLICY="active") == ["['active', None]"]


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP there")
def test_the_library_reads_it():
    said = python("import headstart, os, torch; print(os.environ['GOMP_SPINCOUNT'])", OMP_DISPLAY_ENV="verbose")
    assert f"GOMP_SPINCOUNT = '{said.stdout.strip()}'" in said.stderr


def test_training_gives_the_same_bits_however_threads_wait():
    settings = ({}, {"GOMP_SPINCOUNT": "30000"}, {"OMP_WAIT_POLICY": "passive"})
    assert len({python(TRAIN, **environment).stdout for environment in settings}) == 1
