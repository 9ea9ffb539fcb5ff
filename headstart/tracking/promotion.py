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
from headstart.statistics import FEWEST
from headstart.targets.target import Answered, Target
from headstart.tracking.registry import Registry, Version


@dataclass(frozen=True)
class PromotionRule:
    """The conditions under which a challenger becomes champion; see params.yaml, section promote.

    Args:
        alpha: significance level of the paired test that suits the target.
        margin: least gain: in accuracy, in F-beta, or as a share of a number's mean error.
        seed: of the bootstrap.
    """

    alpha: float
    margin: float
    seed: int


@dataclass(frozen=True)
class PresentData:
    """The present data, whose test images judge: the manifest, and what its labels are."""

    manifest: pd.DataFrame
    target: Target


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
    data: PresentData,
    rule: PromotionRule,
    answers_of: Callable[[Version, pd.DataFrame], Answered],
) -> PromotionDecision:
    """Decide whether a version becomes champion, by its and the champion's answers to the same test images.

    Args:
        data: the present data; images that either version learned from are left out.
        answers_of: answers for test images (rows of the manifest) by a version.
    """
    if champion is not None and champion.digest == version.digest:
        return PromotionDecision(version.number, True, "it was the champion before")
    by_hand = f"python -m flows.register --champion {version.number}"
    if version.rolled_back:
        return PromotionDecision(version.number, False, f"it was rolled back ({by_hand} makes it champion again)")
    fair = unseen_test_images(registry, data.manifest, [version] if champion is None else [version, champion])
    if len(fair) < FEWEST:
        return PromotionDecision(version.number, False, undecidable(len(fair), version.number))
    answered = data.target.align(answers_of(version, fair))
    truth = data.target.truth(fair["label"])
    beats_guess, sentence = against_guess(answered, truth, data, rule)
    if champion is None or not beats_guess:
        return PromotionDecision(version.number, beats_guess, f"it is the first; {sentence}" if champion is None else sentence)
    known, reason = _target_of(champion, data.target.kind)
    if known is None:
        earlier = f"the champion, version {champion.number}, {reason} and cannot be compared; decide by hand: {by_hand}"
        return PromotionDecision(version.number, False, earlier)
    champions = data.target.align(answers_of(champion, fair))
    better, sentence = against_champion(answered, champions, truth, champion.number, rule)
    return PromotionDecision(version.number, better, sentence + _lacking(data.target.classes, known.classes))


def _target_of(champion: Version, kind: str) -> tuple[Target | None, str]:
    """Return what a champion answers; None, and why, if it cannot be compared with a model of this kind."""
    try:
        known = load_card(champion.file).target
    except Outdated:
        return None, "was written by an earlier version of Headstart"
    return (known, "") if known.kind == kind else (None, "answers another question")


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


def against_guess(answered: Answered, truth: torch.Tensor, data: PresentData, rule: PromotionRule) -> tuple[bool, str]:
    """Return whether a model beats the best constant answer, beyond chance, and the figures in words.

    Args:
        answered: the answers for test images that the model did not learn from.
        truth: these images' labels, see `Target.truth`.
    """
    training = data.manifest.loc[data.manifest["split"] == "train", "label"]
    constant_c, words = answered.target.constant(list(training))  # by the model's own F-beta
    guessed = Answered(constant_c.expand(len(truth), -1), data.target)  # a model's thresholds may exclude a class
    found = data.target.compare(guessed, answered, truth, rule.seed)
    figures = data.target.verdict(answered, guessed, truth).format(other=f"always answering {words}")
    test = f"{found.test} p = {found.p_value:.2g}; promotion needs p below {rule.alpha:g}"
    sentence = f"of {len(truth):,} test images {figures} ({test})"
    return found.gain > 0 and found.p_value < rule.alpha, sentence


def against_champion(
    answered: Answered, champions: Answered, truth: torch.Tensor, champion: int, rule: PromotionRule
) -> tuple[bool, str]:
    """Return whether a model beats the champion on the same test images, and the figures in words.

    Args:
        champion: the champion's version number.
    """
    found = answered.target.compare(champions, answered, truth, rule.seed)
    sentence = (
        f"of {found.images:,} test images {found.versus(f'version {champion}')}, p = {found.p_value:.2g}"
        f" (promotion needs a gain above 0 of at least {rule.margin:.2%}, and p below {rule.alpha:g})"
    )
    return found.gain > 0 and found.gain >= rule.margin and found.p_value < rule.alpha, sentence


def _lacking(classes: Sequence[str], known: Sequence[str]) -> str:
    """Name the classes of the data that the champion does not know, as the end of a sentence."""
    lacking = sorted(set(classes) - set(known))
    shown = f"{', '.join(map(repr, lacking[:3]))}{', …' if len(lacking) > 3 else ''}"
    return f"; the champion does not know {shown}" if lacking else ""
