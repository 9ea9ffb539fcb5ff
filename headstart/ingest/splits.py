"""Assign train, valid, test and folds by a hash, so that an image keeps its split whatever is added later."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pandas as pd

from headstart.core.errors import InputError
from headstart.core.text import listing
from headstart.manifest import SPLITS
from headstart.seeds import share_and_fold
from headstart.targets.labels import LabelFormat

EXCLUDED = "excluded"
_RANK = {split: i for i, split in enumerate(SPLITS)}


def assign(
    frame: pd.DataFrame,
    labels: LabelFormat,
    *,
    seed: int,
    valid_fraction: float,
    test_fraction: float,
    folds: int,
    fold: int | Literal["none"],
) -> tuple[list[str], list[int], list[str]]:
    """Assign each image its split and fold.

    A source's own split is kept. A missing split is taken from train by the hash of `group`, or of `key` if the
    group is empty. A class without a training image gets the image (with its group) whose hash is nearest to train;
    only then may images that are added later move an old one. If a source's own splits separate copies, or images
    of a group, those in test are kept before those in valid, and those before train; the others are excluded.

    Args:
        frame: columns key, group, label, declared (the source's own split, or "").
        labels: how the labels are written.
        folds: number of folds; test images are in fold -1.
        fold: the fold that is the validation split, instead of `valid_fraction`.

    Raises:
        InputError: `fold` is set, but the source has a validation split of its own.

    Returns:
        Splits (train, valid, test, excluded), folds, and the classes that got an image back from valid or test.
    """
    declared = set(frame["declared"].unique()) - {""}
    if fold != "none" and "valid" in declared:
        raise InputError(f"data.fold is {fold}, but the source has validation images of its own", fix="--set data.fold=none")
    units = frame["group"].where(frame["group"] != "", frame["key"]).astype(object)
    hashed = {unit: share_and_fold(seed, unit, folds) for unit in units.unique()}
    shares, numbers = ({unit: pair[i] for unit, pair in hashed.items()} for i in (0, 1))

    def split_of(unit: str, own: str) -> str:
        if own in ("valid", "test"):
            return own
        share = shares[unit]
        if "test" not in declared and share < test_fraction:
            return "test"
        if "valid" in declared:
            return "train"
        if fold != "none":
            return "valid" if numbers[unit] == fold else "train"
        start = 0 if "test" in declared else test_fraction
        return "valid" if share < start + valid_fraction else "train"

    splits = pd.Series(
        [split_of(*pair) for pair in zip(units.tolist(), frame["declared"].tolist(), strict=True)], index=frame.index
    )
    movable = ~frame["declared"].isin(["valid", "test"])
    rescued = _rescue(labels.exploded(frame[["label"]])["label"], units, splits, shares, movable)
    splits = _one_split_each(frame["key"], _one_split_each(units, splits))
    number = np.where(splits == "test", -1, units.map(numbers)).astype(int)
    return list(splits), list(number), rescued


def _rescue(classes: pd.Series, units: pd.Series, splits: pd.Series, shares: dict[str, float], movable: pd.Series) -> list[str]:
    """Move one image (and its group) of each class without training images to train. Return the classes.

    Args:
        classes: each class of each image; the index is the image's.
        movable: which images the source itself did not put into valid or test.
    """
    rescued = sorted(set(classes) - set(classes[splits.loc[classes.index] == "train"]))
    free = classes[movable.loc[classes.index]]
    moved = []
    for label in rescued:
        if (splits.loc[classes.index[classes == label]] == "train").any():
            continue  # an image that was moved for another class has it too
        candidates = units.loc[free.index[free == label]]
        if len(candidates):
            unit = max(candidates.unique(), key=lambda one: (shares[one], one))
            splits[(units == unit) & movable] = "train"
            moved.append(label)
    return moved


def _one_split_each(keys: pd.Series, splits: pd.Series) -> pd.Series:
    rank = splits.map(_RANK).fillna(-1)
    best = rank.groupby(keys).transform("max")
    return splits.where(rank == best, EXCLUDED)


def split_by_group(frame: pd.DataFrame) -> pd.Series:
    """Return which rows (columns group, key, split) are excluded because of their group; the other excluded ones are copies."""
    used = frame[frame["split"] != EXCLUDED]
    return (frame["split"] == EXCLUDED) & frame["group"].isin(set(used["group"]) - {""}) & ~frame["key"].isin(used["key"])


def check(source: object, frame: pd.DataFrame, labels: LabelFormat, what: str = "image") -> None:
    """Refuse a manifest that cannot be used to train or to test; `what` are its rows.

    Raises:
        InputError: a split has no images, or a class no training images.
    """
    for split in SPLITS:
        if not (frame["split"] == split).any():
            held = int((frame["split"] == EXCLUDED).sum())
            more = f"add {what}s, or raise data.valid_fraction / data.test_fraction"
            counts = f"{len(frame)} {what}s in all, {held} excluded from training"
            raise InputError(
                f"{source}: no {what} is left in the {split} split ({counts})",
                wanted="at least one in each of train, valid, test",
                fix=f"add {what}s that are no copies of others" if split == "train" else more,
            )
    by_class = labels.exploded(frame)
    missing = sorted(set(by_class["label"]) - set(by_class.loc[by_class["split"] == "train", "label"]))
    if missing:
        raise InputError(
            f"{source}: no training {what} of {len(missing)} class(es):\n    {listing(missing)}",
            wanted=f"at least one that is no copy of a validation or test {what}",
            fix=f"add {what}s of these classes",
        )


def unusual_shares(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the classes whose share of a split differs by more than chance explains.

    It is a two-sided normal test of each class and split against the shares of all images, at the level 0.001 over all
    of them (Bonferroni). Groups, and a source's own splits, make such differences likely.

    Returns:
        Dictionaries of class, split, images, expected (a float); none if there are no classes.
    """
    if frame.empty:
        return []
    counts = pd.crosstab(frame["label"], frame["split"]).reindex(columns=list(SPLITS), fill_value=0)
    sizes = counts.sum(axis=1)
    shares = counts.sum() / counts.to_numpy().sum()
    limit = NormalDist().inv_cdf(1 - 0.0005 / counts.size)
    unusual = []
    for split in SPLITS:
        expected = sizes * shares[split]
        deviation = np.sqrt(np.maximum(expected * (1 - shares[split]), 1e-9))
        # a continuity correction of half an image, because counts are discrete
        off = (counts[split] - expected).abs() - 0.5 > limit * deviation
        unusual += [
            {"class": name, "split": split, "images": int(number), "expected": round(float(wanted), 1)}
            for name, number, wanted in zip(counts.index[off], counts.loc[off, split], expected[off], strict=True)
        ]
    return unusual
