"""Mix flows, `dvc repro` and edits of parameters, images and code in random order; `dvc status` must always be right.

After every step `dvc status` must be clean exactly if inputs, parameters and code are those of the last run, and the outs
must be those that a project computes from nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from bench.soak.project import FLOW, REPRO, Digests, check, clean, from_scratch, new, outs, run
from flows.param_edits import set_params
from tests.conftest import encode, picture

EDITED = "headstart/evaluation/curves.py"


@dataclass(frozen=True)
class State:
    """The inputs that the soak edits: a parameter of an early and of a late stage, an image, a comment in the code."""

    seed: int = 0
    tta: str = "mean"
    extra: bool = False
    comment: bool = False


def soak(folder: Path, rounds: int, seed: int, api: str) -> str:
    """Take `rounds` random steps, and return a summary in words.

    Raises:
        Failure: `dvc status` was wrong, a run failed, or its outs differ from those of a run from nothing.
    """
    rng = random.Random(seed)
    project, oracle = new(folder / "turns"), new(folder / "oracle")
    code = (project / EDITED).read_text()
    wanted: dict[State, Digests] = {}
    now, last = State(), None
    steps: Counter[str] = Counter()

    def apply(root: Path, state: State) -> None:
        set_params(root / "params.yaml", [f"seed={state.seed}", f"evaluate.tta={state.tta}"])
        image = root / "data/shapes/a/extra.png"
        if state.extra != image.exists():
            image.write_bytes(encode(picture(0, 500))) if state.extra else image.unlink()
        text = code + ("# a comment\n" if state.comment else "")
        if (root / EDITED).read_text() != text:
            (root / EDITED).write_text(text)

    for number in range(rounds):
        step = rng.choice(["flow", "repro", "seed", "tta", "image", "code"])
        steps[step] += 1
        if step in ("flow", "repro"):
            done = run(project, FLOW if step == "flow" else REPRO, api)
            check(done.returncode == 0, f"step {number}: {step} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            last = now
            key = replace(now, comment=False)  # a comment changes no out
            if key not in wanted:
                apply(oracle, key)
                wanted[key] = from_scratch(oracle)[0]
            check(outs(project) == wanted[key], f"step {number}: outs differ from a run from nothing, {now}")
        else:
            changed = {
                "seed": replace(now, seed=1 - now.seed),
                "tta": replace(now, tta="blend" if now.tta == "mean" else "mean"),
                "image": replace(now, extra=not now.extra),
                "code": replace(now, comment=not now.comment),
            }
            now = changed[step]
            apply(project, now)
        check(clean(project) == (now == last), f"step {number}, {step}: dvc status was wrong; last run {last}, now {now}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(steps.items()))
    return (
        f"{rounds} steps ({kinds}; {len(wanted)} states compared with runs from nothing): dvc status was right after every step"
    )
