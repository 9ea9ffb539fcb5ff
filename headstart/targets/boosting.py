"""The baseline of a table: scikit-learn's gradient boosting on the same rows, by kind of target.

Source: Ke et al. 2017, LightGBM; https://scikit-learn.org/stable/modules/ensemble.html#histogram-based-gradient-boosting.
Shape legend: n rows, m numbers and categories, c outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from headstart.targets.target import Target

TREES, LEAVES = 400, 63
MOST_CATEGORIES = 255  # that scikit-learn splits as sets; others are ordered by their code


def boosted_answers(
    target: Target,
    train: tuple[NDArray[np.float32], Sequence[str]],
    test_nm: NDArray[np.float32],
    categorical: Sequence[bool],
    seed: int,
) -> torch.Tensor:
    """Fit gradient boosting to training rows and return its answers [n, c] for test rows, as `Target.answers` has them.

    Args:
        train: encoded rows [n, m] and their labels.
        categorical: which of the m columns are codes.
    """
    x, labels = train
    few = [bool(is_code) and float(x[:, i].max()) < MOST_CATEGORIES for i, is_code in enumerate(categorical)]
    settings: dict[str, Any] = {"max_iter": TREES, "max_leaf_nodes": LEAVES, "early_stopping": False, "random_state": seed}
    settings["categorical_features"] = few if any(few) else None
    return FITS[target.kind](target, x, target.encode(labels).numpy(), _known(x, test_nm, few), settings)


def _known(train: NDArray[np.float32], test: NDArray[np.float32], few: Sequence[bool]) -> NDArray[np.float32]:
    """Return test rows whose categories that training lacks are missing: scikit-learn then treats them as missing."""
    test = test.copy()
    for i in np.flatnonzero(few):
        test[~np.isin(test[:, i], np.unique(train[:, i])), i] = np.nan
    return test


def _number(target: Any, x: Any, y: Any, test: Any, settings: dict[str, Any]) -> torch.Tensor:
    said = HistGradientBoostingRegressor(**settings).fit(x, y).predict(test)
    answers: torch.Tensor = target.natural(torch.from_numpy(said)).unsqueeze(1)
    return answers


def _single(target: Any, x: Any, y: Any, test: Any, settings: dict[str, Any]) -> torch.Tensor:
    model = HistGradientBoostingClassifier(**settings).fit(x, y)
    p = torch.zeros(len(test), target.outputs, dtype=torch.float64)
    p[:, model.classes_.tolist()] = torch.from_numpy(model.predict_proba(test))
    return p


def _multi(target: Any, x: Any, y: Any, test: Any, settings: dict[str, Any]) -> torch.Tensor:
    columns = []
    for i in range(target.outputs):
        if y[:, i].min() == y[:, i].max():
            columns.append(torch.full((len(test),), float(y[0, i]), dtype=torch.float64))
        else:
            model = HistGradientBoostingClassifier(**settings).fit(x, y[:, i])
            columns.append(torch.from_numpy(model.predict_proba(test)[:, 1]))
    return torch.stack(columns, dim=1)


FITS = {"number": _number, "single_label": _single, "multi_label": _multi}
