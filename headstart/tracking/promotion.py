"""Promotion: decide whether a challenger becomes champion, by test images that neither version's training has seen.

Shape legend: n images, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from headstart.manifest import without_copies
from headstart.models.trained import Outdated, load_card
from headstart.statistics import FEWEST, compare, mcnemar
from headstart.tracking.registry import Registry, Version

# Probabilities [n, c] of test images, and the model's classes in the order of the columns.
Answers = tuple[torch.Tensor, tuple[str, ...]]


@dataclass(frozen=True)
class PromotionRule:
    """The conditions under which a challenger becomes champion; see params.yaml, section promote.

    Args:
        alpha: significance level of McNemar's exact test.
        margin: least gain in accuracy.
        seed: of the bootstrap.
    """

    alpha: float
    margin: float
    seed: int


@dataclass(frozen=True)
class PromotionDecision:
    """The decision about a model: its version, whether it is the champion now, and why."""

    version: int
    promoted: bool
    reason: str

    def sentence(self) -> str:
        """Return the decision in words."""
        return f"version {self.version} {'is the champion' if self.promoted else 'stays challenger'}: {self.reason}"


def decide(
    registry: Registry,
    version: Version,
    champion: Version | None,
    manifest: pd.DataFrame,
    rule: PromotionRule,
    answers_of: Callable[[Version, pd.DataFrame], Answers],
) -> PromotionDecision:
    """Decide whether a version becomes champion, by its and the champion's answers to the same test images.

    Args:
        manifest: of the present data; images that either version learned from are left out.
        answers_of: classifies test images (rows of the manifest) with a version.
    """
    if champion is not None and champion.digest == version.digest:
        return PromotionDecision(version.number, True, "it was the champion before")
    if version.rolled_back:
        by_hand = f"python -m flows.register --champion {version.number}"
        return PromotionDecision(version.number, False, f"it was rolled back ({by_hand} makes it champion again)")
    fair = unseen_test_images(registry, manifest, [version] if champion is None else [version, champion])
    if len(fair) < FEWEST:
        return PromotionDecision(version.number, False, undecidable(len(fair), version.number))
    answers = answers_of(version, fair)
    beats_guess, sentence = against_guess(answers, fair["label"], most_frequent(manifest), rule.alpha)
    if champion is None or not beats_guess:
        return PromotionDecision(version.number, beats_guess, f"it is the first; {sentence}" if champion is None else sentence)
    try:
        known = load_card(champion.file).classes
    except Outdated:
        by_hand = f"python -m flows.register --champion {version.number}"
        earlier = (
            f"the champion, version {champion.number}, was written by an earlier version of Headstart and cannot be compared;"
            f" decide by hand: {by_hand}"
        )
        return PromotionDecision(version.number, False, earlier)
    classes = sorted(set(manifest["label"]))
    better, sentence = against_champion(answers, answers_of(champion, fair), fair["label"], classes, champion.number, rule)
    return PromotionDecision(version.number, better, sentence + _lacking(classes, known))


def unseen_test_images(registry: Registry, manifest: pd.DataFrame, versions: Sequence[Version]) -> pd.DataFrame:
    """Return the manifest's test images, copies once, that these versions were not trained on; the manifest may be newer."""
    seen = frozenset[str]().union(*map(registry.trained_on, versions))
    test = without_copies(manifest, "test")
    return test[~test["key"].isin(seen)]


def undecidable(images: int, number: int) -> str:
    """Return the reason why nothing was decided, and what the user can do."""
    return (
        f"{images} test images that no training has seen are too few for a decision, which needs at least {FEWEST};"
        f" add images, or promote it by hand: python -m flows.register --champion {number}"
    )


def most_frequent(manifest: pd.DataFrame) -> str:
    """Return the most frequent label of the training images; of several, the first by name."""
    return str(manifest.loc[manifest["split"] == "train", "label"].mode()[0])


def against_guess(answers: Answers, labels: pd.Series, guess: str, alpha: float) -> tuple[bool, str]:
    """Return whether a model beats always answering the most frequent class, beyond chance, and the figures in words.

    Args:
        answers: for test images that the model did not learn from.
        labels: of these images.
        guess: the most frequent class.
        alpha: significance level of McNemar's test.
    """
    p_nc, classes = answers
    predicted = [classes[i] for i in p_nc.argmax(1).tolist()]
    right, guessed = (labels == predicted).to_numpy(), (labels == guess).to_numpy()
    p_value = mcnemar(int((guessed & ~right).sum()), int((right & ~guessed).sum()))
    sentence = (
        f"of {len(labels):,} test images it classifies {int(right.sum()):,} correctly; always answering {guess!r} would be"
        f" correct for {int(guessed.sum()):,} (McNemar p = {p_value:.2g}; promotion needs p below {alpha:g})"
    )
    return bool(right.sum() > guessed.sum()) and p_value < alpha, sentence


def against_champion(
    answers: Answers, champions: Answers, labels: pd.Series, classes: list[str], champion: int, rule: PromotionRule
) -> tuple[bool, str]:
    """Return whether a model beats the champion on the same test images, and the figures in words.

    Args:
        classes: of the data, sorted.
        champion: the champion's version number.
    """
    a_nc, b_nc = (aligned(*one, classes) for one in (champions, answers))
    y_n = torch.tensor([classes.index(label) for label in labels])
    found = compare(a_nc, b_nc, y_n, rule.seed)
    gain = (found.only_b - found.only_a) / found.images
    sentence = (
        f"of {found.images:,} test images it alone is right on {found.only_b}, version {champion} alone on {found.only_a}:"
        f" accuracy {gain:+.2%}, p = {found.p_value:.2g} (promotion needs a gain above 0 of at least {rule.margin:.2%},"
        f" and p below {rule.alpha:g})"
    )
    return gain > 0 and gain >= rule.margin and found.p_value < rule.alpha, sentence


def _lacking(classes: list[str], known: Sequence[str]) -> str:
    """Name the classes of the data that the champion does not know, as the end of a sentence."""
    lacking = sorted(set(classes) - set(known))
    shown = f"{', '.join(map(repr, lacking[:3]))}{', …' if len(lacking) > 3 else ''}"
    return f"; the champion does not know {shown}" if lacking else ""


def aligned(p_nc: torch.Tensor, own: tuple[str, ...], classes: list[str]) -> torch.Tensor:
    """Return probabilities in the order of `classes`, with 0 for each class that the model does not know."""
    columns = [p_nc[:, own.index(label)] if label in own else torch.zeros(len(p_nc)) for label in classes]
    return torch.stack(columns, dim=1)
