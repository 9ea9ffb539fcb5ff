"""What tables show, by kind of target. A caller that only writes tables needs no torch."""

from __future__ import annotations

# The metrics of metrics.json that summaries show, with their names in words, most important first.
METRICS = {
    "single_label": {"accuracy": "accuracy", "log_loss": "log-loss"},
    "multi_label": {"f_beta": "F-beta", "mean_average_precision": "mean average precision", "log_loss": "log-loss"},
    "number": {"rmse": "RMSE", "rmspe": "RMSPE", "mae": "MAE", "r2": "R²", "coverage": "interval's coverage"},
}
# The picture of reports/pictures/ that best shows the result, and what it is.
PICTURE = {
    "single_label": ("confusion_matrix.png", "the confusion matrix of the test images"),
    "multi_label": ("precision_recall.png", "precision over recall of the test images"),
    "number": ("predicted.png", "predicted over true numbers of the test images"),
}


def prediction_columns(kind: str, top: int) -> dict[str, str]:
    """Return the names and Arrow types of what is predicted for an image or a row.

    Args:
        kind: of the target.
        top: classes to report, most probable first.
    """
    pairs = (("label", "string"), ("probability", "double"))
    ranked = {f"{what}_{rank}": of for rank in range(1, top + 1) for what, of in pairs}
    return {
        "single_label": {"predicted": "string", "confidence": "double", "abstained": "bool"} | ranked,
        "multi_label": {"predicted": "string"} | ranked,
        "number": {"predicted": "double", "low": "double", "high": "double"},
    }[kind]
