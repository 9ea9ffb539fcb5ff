"""Write the short summary at the end of a pipeline run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart.core.files import read_checked_json
from headstart.core.graph import load_graph
from headstart.core.params import Params
from headstart.core.stages import last_record
from headstart.targets.tables import METRICS

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
    unit = json.loads((root / "reports/data/summary.json").read_text())["unit"]
    lines += _test_results(results, METRICS[json.loads((root / "data/target.json").read_text())["kind"]], unit)
    lines += ["", "  report          reports/report.html", "  metrics         reports/metrics.json"]
    lines += ["  compare runs    make ui     (MLflow on http://127.0.0.1:5000, Prefect on http://127.0.0.1:4200)"]
    return "\n".join(lines)


def _test_results(results: Mapping[str, Any], words: Mapping[str, str], unit: str) -> list[str]:
    """Return a title with the first metric, and a line for each model."""
    (first, title), *further = words.items()
    note = " (log-loss without temperature scaling)" if "log_loss" in words else ""
    lines = [f"  {f'test {title}':<15} on {results['n_test']:,} {unit}{note}"]
    for key, name in MODELS.items():
        if key in results:
            more = "".join(f"   {text} {results[key][metric]:.4f}" for metric, text in further if metric in results[key])
            lines.append(f"    {name:<17} {results[key][first]:.4f}{more}")
    return lines
