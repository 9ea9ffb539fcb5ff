"""Answers for a table's test rows: by the network, and by gradient boosting on the same encoded rows."""

from __future__ import annotations

import logging
import time

import pandas as pd
import torch
from torch import nn

from headstart.activations.inputs import HeadInputs
from headstart.targets.boosting import boosted_answers
from headstart.targets.target import Answered, DecisionRule, Target
from headstart.training.validation import collect_logits

logger = logging.getLogger("headstart")
CHUNK = 8192


def table_answers(
    inputs: HeadInputs, network: nn.Module, target: Target, splits: dict[str, pd.DataFrame], rule: DecisionRule, seed: int
) -> dict[str, Answered]:
    """Return the answers of boosting and of the network for the test rows, by name.

    Args:
        target: the network's own; boosting's thresholds or intervals are fitted on the same validation rows.
        splits: the manifest's rows of train, valid and test.
    """
    x = {split: inputs.rows(rows["key"]) for split, rows in splits.items()}
    answers = target.answers(collect_logits(network, x["test"].split(CHUNK)))
    encoders, start = inputs.encoders(), time.monotonic()
    assert encoders is not None
    categorical = [False] * len(encoders.continuous_names) + [True] * len(encoders.cardinalities)
    train = (x["train"].numpy(), list(splits["train"]["label"]))
    judged = torch.cat([x["valid"], x["test"]]).numpy()
    boosted = boosted_answers(target, train, judged, categorical, seed)
    logger.info("  gradient boosting fitted to %s rows in %.1f s", f"{len(x['train']):,}", time.monotonic() - start)
    valid = boosted[: len(x["valid"])]
    fitted = target.fitted(valid, target.truth(splits["valid"]["label"]), rule)
    return {"boosting": Answered(boosted[len(x["valid"]) :], fitted), "network": Answered(answers, target)}
