"""`bn_freeze: auto`: choose between two variants, trained alike except for batch norm, by the validation images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from headstart.statistics import Comparison, ScoreComparison
from headstart.targets.target import Answered

RESNET34_CONVOLUTIONS = 36


@dataclass(frozen=True)
class BatchNormChoice:
    """The choice of a batch norm variant, and its reason.

    Args:
        bn_freeze: the choice.
        decided: whether the variants differ on the validation images beyond chance; if not, the rule of thumb chose.
        comparison: moving statistics (B) against frozen ones (A).
        convolutions: number in the body, for the rule of thumb.
    """

    bn_freeze: bool
    decided: bool
    comparison: Comparison | ScoreComparison
    convolutions: int

    def as_json(self) -> dict[str, Any]:
        """Return the content of bn_freeze.json."""
        return asdict(self) | {"sentence": self.sentence()}

    def sentence(self) -> str:
        """Return the choice in words."""
        chosen = "frozen" if self.bn_freeze else "moving"
        measured = self.comparison.words("frozen statistics", "moving statistics", "validation images")
        if self.decided:
            return f"{chosen} batch norm is better: {measured}"
        rule = f"{self.convolutions} convolutions are {'more' if self.bn_freeze else 'no more'} than ResNet-34's"
        return f"undecided: {measured}; {chosen} by the rule of thumb of fast.ai's lesson 3 ({rule})"


def choose(frozen: Answered, moving: Answered, truth: torch.Tensor, body: nn.Module, seed: int) -> BatchNormChoice:
    """Choose the better variant; if neither paired test decides, freeze in bodies deeper than ResNet-34.

    Source of the rule: fast.ai's lesson 3 (2018), `learn.bn_freeze(True)`.

    Args:
        frozen, moving: the two variants' answers for the validation images.
        truth: these images' labels, see `Target.truth`.
        body: its convolutions are counted.
        seed: seeds the bootstrap.
    """
    comparison = frozen.target.compare(frozen, moving, truth, seed)
    better = comparison.better()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in body.modules())
    freeze = better == "a" if better != "undecided" else convolutions > RESNET34_CONVOLUTIONS
    return BatchNormChoice(freeze, better != "undecided", comparison, convolutions)
