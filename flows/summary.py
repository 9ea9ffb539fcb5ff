"""Write the short summary at the end of a pipeline run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from headstart.core.files import read_checked_json
from headstart.core.graph import load_graph
from headstart.core.params import Params
from headstart.core.stages import last_record

from flows.artifacts import MODELS
from flows.execution import RAN, Outcome


def summary_text(root: Path, params: Params, outcomes: Sequence[Outcome], total: float) -> str:
    """Return the summary of a run: seconds of each stage, speed, suggested rate, test accuracy, and where the reports are."""
    how = {outcome.stage: outcome.how for outcome in outcomes}
    results = json.loads((root / "reports/metrics.json").read_text())
    found = read_checked_json(root / "reports/find_lr/lr.json")
    computed = last_record(root, load_graph(root, params)["precompute"])
    rate = computed.summary.get("images_per_second") if computed else None
    own = sum(outcome.seconds for outcome in outcomes)
    lines = ["", f"  {'stage':<12}{'':<10}{'seconds':>8}"]
    lines += [f"  {o.stage:<12}{o.how:<10}{o.seconds:>8.1f}" for o in outcomes]
    lines += [f"  {'all':<12}{'':<10}{total:>8.1f}   of which {own:.1f} in stages", ""]
    if computed and rate:
        views = computed.summary.get("views_per_second")
        when = "" if how["precompute"] == RAN else " (when they were computed)"
        lines.append(f"  activations     {rate:,.0f} images/s, {views:,.0f} views/s{when}")
    abstained = " (find_lr.default: the search found no clear rate)" if found["abstained"] else ""
    lines.append(f"  suggested LR    {found['lr']:.2g}{abstained}")
    lines.append(f"  fine-tuning     {json.loads((root / 'reports/fine_tune/kept.json').read_text())['sentence']}")
    lines.append(f"  test accuracy   on {results['n_test']:,} images (log-loss without temperature scaling)")
    for key, name in MODELS.items():
        lines.append(f"    {name:<17} {results[key]['accuracy']:.4f}   log-loss {results[key]['log_loss']:.4f}")
    lines += ["", "  report          reports/report.html", "  metrics         reports/metrics.json"]
    lines += ["  compare runs    make ui     (MLflow on http://127.0.0.1:5000, Prefect on http://127.0.0.1:4200)"]
    return "\n".join(lines)
