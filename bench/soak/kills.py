"""Kill flows and `dvc repro` at random moments by kill -9; a plain rerun must end with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from bench.soak.project import (
    FLOW,
    REPRO,
    Failure,
    check,
    clean,
    environment,
    forget,
    from_scratch,
    leftovers,
    new,
    outs,
    run,
)  # fmt: skip
from flows.param_edits import set_params
from tests.projects import mlflow_runs

REPAIR = (sys.executable, "-m", "flows.repair")  # `make repro` runs it before `dvc repro`
OF_DVC = re.compile(r"dvc\.lock' (validation failed|is invalid)|RWLock-file")
SEEDS = 4
LONGEST = 18.0  # seconds until the kill; a whole run takes about as long


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Kill `rounds` runs, and return a summary in words.

    Raises:
        Failure: a rerun failed, its outs differ, or it left something behind.
    """
    rng = random.Random(seed)
    oracle = new(folder / "oracle")
    wanted = {number: from_scratch(oracle, f"seed={number}") for number in range(SEEDS)}
    project = new(folder / "killed")
    died: Counter[str] = Counter()
    repaired = 0
    for number in range(rounds):
        choice = number % SEEDS
        forget(project)
        set_params(project / "params.yaml", [f"seed={choice}"])
        died[killed(project, rng, api)] += 1
        command = rng.choice([FLOW, REPRO])
        again = run(project, command, api)
        if command is REPRO and again.returncode and OF_DVC.search(again.stderr):
            repaired += 1
            check(run(project, REPAIR, api).returncode == 0, f"round {number}: not repaired")
            again = run(project, command, api)
        what = f"round {number}, seed {choice}, after {dict(died)}"
        check(again.returncode == 0, f"{what}: the rerun failed:\n{again.stdout[-3000:]}{again.stderr[-3000:]}")
        check(outs(project) == wanted[choice][0], f"{what}: the outs differ")
        check((project / "dvc.lock").read_bytes() == wanted[choice][1], f"{what}: dvc.lock differs")
        check(clean(project), f"{what}: not clean")
        check(not leftovers(project), f"{what}: left behind: {leftovers(project)}")
    check(run(project, FLOW, api).returncode == 0, "the last run failed")
    running = [one.info.run_name for one in mlflow_runs(project) if one.info.status == "RUNNING"]
    check(not running, f"left RUNNING in MLflow: {running}")
    check(not prefects_running(api), f"left Running in Prefect: {prefects_running(api)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(died.items()))
    return f"{rounds} kills ({kinds}): every rerun completed with the same bytes, none left running; \
{repaired} after `python -m flows.repair`, because DVC had half written a file of its own"


def killed(project: Path, rng: random.Random, api: str) -> str:
    """Start a flow or a repro and kill all its processes or only the first; return what was killed, in words."""
    command, alone = rng.choice([FLOW, REPRO]), rng.random() < 0.5
    log = (project / "killed.log").open("wb")
    process = subprocess.Popen(command, cwd=project, env=environment(api), stdout=log, stderr=log, start_new_session=True)
    try:
        process.wait(rng.uniform(0.3, LONGEST))
    except subprocess.TimeoutExpired:
        if alone:
            process.kill()  # the processes that it started survive
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{command[-1].rpartition('.')[2]}{', alone' if alone and command is REPRO else ''}"
    if process.returncode:
        raise Failure(f"a run that was not killed failed: {(project / 'killed.log').read_text()[-3000:]}")
    return "done before the kill"


def prefects_running(api: str) -> list[str]:
    """Return the names of the flow runs that Prefect takes for running."""
    time.sleep(1)
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}).encode()
    request = urllib.request.Request(f"{api}/flow_runs/filter", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [run["name"] for run in json.load(answer)]
