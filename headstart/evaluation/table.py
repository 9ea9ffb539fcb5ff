"""Answers for a table's test rows: by the network, and by gradient boosting on the same rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from headstart.activations.inputs import HeadInputs
from headstart.columns.encoders import Encoders
from headstart.targets.boosting import boosted_answers
from headstart.targets.target import Answered, DecisionRule, Target
from headstart.training.validation import collect_logits

logger = logging.getLogger("headstart")
CHUNK = 8192
MOSTLY = 0.5  # share of unknown validation rows


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
    assert inputs.columns is not None
    kept, categorical = boosted_columns(encoders, inputs.columns.meta["unknown"])
    train = (x["train"][:, kept].numpy(), list(splits["train"]["label"]))
    judged = torch.cat([x["valid"], x["test"]])[:, kept].numpy()
    boosted = boosted_answers(target, train, judged, categorical, seed)
    logger.info("  gradient boosting fitted to %s rows in %.1f s", f"{len(x['train']):,}", time.monotonic() - start)
    valid = boosted[: len(x["valid"])]
    fitted = target.fitted(valid, target.truth(splits["valid"]["label"]), rule)
    return {"boosting": Answered(boosted[len(x["valid"]) :], fitted), "network": Answered(answers, target)}


def boosted_columns(encoders: Encoders, unknown: Sequence[float]) -> tuple[list[int], list[bool]]:
    """Return which encoded columns boosting gets, by place, and which of them it takes as categories.

    The parts of dates are ordered, so it gets their codes as numbers. A category that most validation rows do not know would
    mislead it: the network hides it in training, boosting goes without it.
    """
    first, names = len(encoders.continuous_names), encoders.categorical_names
    known = [place for place, share in enumerate(unknown) if share <= MOSTLY]
    kept = [*range(first), *(first + place for place in known)]
    return kept, [False] * first + [names[place] in encoders.roles.categorical for place in known]
