"""The report of a number an image: errors, true against predicted, residuals, the interval's coverage.

Shape legend: n test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from sklearn import metrics as sklearn

from headstart.statistics import wilson_interval
from headstart.targets.number import Number
from headstart.targets.reports import plots
from headstart.targets.reports.judged import Caption, Judged, KindOfReport, most, no_groups

BANDS = 10
MEANINGS = {
    "largest errors": "The largest errors (of the logarithm, where that is learned): wrong labels, or what the model lacks.",
    "smallest errors": "The smallest errors.",
}


def summarise(answers_nc: torch.Tensor, truth_n: torch.Tensor, target: Number) -> dict[str, float]:
    """Return RMSE, MAE, R², Spearman's rank correlation, RMSPE if all numbers are above zero, and the interval's coverage."""
    from scipy.stats import spearmanr

    said, true = answers_nc[:, 0].numpy(), truth_n.numpy()
    low, high = (end.numpy() for end in target.interval(answers_nc))
    varies = np.ptp(true) > 0 and np.ptp(said) > 0
    return {
        "rmse": float(np.sqrt(np.mean((said - true) ** 2))),
        "mae": float(np.mean(np.abs(said - true))),
        "r2": float(sklearn.r2_score(true, said)) if len(true) > 1 else 0.0,
        "spearman": float(spearmanr(true, said).statistic) if varies else 0.0,
        **({"rmspe": float(np.sqrt(np.mean(((true - said) / true) ** 2)))} if (true > 0).all() else {}),
        "coverage": float(np.mean((low <= true) & (true <= high))),
        "interval_width": float(np.mean(high - low)),
    }


def in_words(row: Mapping[str, Any]) -> str:
    """Return a model's errors."""
    rmspe = f", RMSPE {row['rmspe']:.4f}" if "rmspe" in row else ""
    return f"test RMSE {row['rmse']:.4g}{rmspe}, MAE {row['mae']:.4g}, R² {row['r2']:.4f}"


def rankings(judged: Judged) -> dict[str, list[int]]:
    """Rank test images: the largest errors (of the logarithm, if that was learned), and the smallest."""
    error_n = torch.from_numpy(-judged.target.score_of_each(judged.answers, judged.truth))
    return {"largest errors": most(error_n), "smallest errors": most(error_n, descending=False)}


def caption(judged: Judged, i: int) -> Caption:
    """Return an image's true and predicted number, and the interval."""
    low, high = (float(end[0]) for end in judged.target.interval(judged.answers[i : i + 1]))
    true, said = float(judged.truth[i]), float(judged.answers[i, 0])
    html = Markup("true <b>{:.4g}</b>, predicted <b>{:.4g}</b> ({:.4g} to {:.4g})").format(true, said, low, high)
    return Caption(html, f"true {true:.4g}, predicted {said:.4g}", f"{true:.4g}\nas {said:.4g}")


def pictures(judged: Judged) -> dict[str, bytes]:
    """Draw predicted.png (over true numbers) and residuals.png."""
    true, said = judged.truth.numpy(), judged.answers[:, 0].numpy()
    return {"predicted.png": plots.predicted_against_true(true, said), "residuals.png": plots.residuals(said, said - true)}


def context(judged: Judged, manifest: pd.DataFrame) -> dict[str, Any]:
    """Return errors and coverage in up to ten ranges of the true number with equally many images, and the overall coverage."""
    true, said = judged.truth.numpy(), judged.answers[:, 0].numpy()
    low, high = (end.numpy() for end in judged.target.interval(judged.answers))
    inside = (low <= true) & (true <= high)
    band_n = pd.qcut(true, min(BANDS, len(true)), labels=False, duplicates="drop") if np.ptp(true) else np.zeros(len(true), int)
    rows = []
    for band in sorted(set(band_n)):
        chosen = band_n == band
        error = said[chosen] - true[chosen]
        rows.append(
            {
                "low": float(true[chosen].min()), "high": float(true[chosen].max()), "images": int(chosen.sum()),
                "bias": float(error.mean()), "mae": float(np.abs(error).mean()), "coverage": float(inside[chosen].mean()),
            }
        )  # fmt: skip
    covered = wilson_interval(int(inside.sum()), len(inside))
    return {"bands": rows, "covered": float(inside.mean()), "covered_low": covered[0], "covered_high": covered[1]}


REPORT = KindOfReport("number.html.j2", "rmse", summarise, in_words, MEANINGS, rankings, no_groups, caption, pictures, context)
