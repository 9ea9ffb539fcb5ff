"""Notice when the first steps of a phase destroy what a trained network had learned."""

from __future__ import annotations

from collections.abc import Sequence

from headstart.targets.target import WORSE

WATCHED = 20  # a phase is watched for a collapse over this many steps, and over 32 times as many images
RECENT = 5  # the mean loss is taken over this many steps, and over 32 times as many images
LEAST = 0.25  # limit: at least this many nats above a guess's loss (unequal classes: noise)
FAR_WORSE = 2.0  # limit as a factor on the first loss, if that already exceeds a guess's loss
RETREAT, MOST_RETREATS = 3.0, 3  # a collapse divides the rates by this, at most this many times


class Collapsed(Exception):
    """The first steps of a phase have destroyed what the network had learned."""


def is_spoilt(losses: Sequence[tuple[float, int]], guess: float, worse: float = WORSE) -> bool:
    """Return whether a trained network has become worse than a guess, by its loss over the last steps.

    A network whose first loss already exceeds a guess's (overconfident, or with classes of very unequal size) counts as
    spoilt when that loss doubles.

    Args:
        losses: (mean loss, images) of the steps so far; each loss is taken before its step.
        guess: the loss of the best constant answer, in nats.
        worse: the factor on it that counts as worse.
    """
    first = losses[0][0] if losses else 0.0
    limit = max(worse * guess, guess + LEAST, FAR_WORSE * first if first > guess else 0.0)
    steps = images = 0
    total = 0.0
    for loss, count in reversed(losses):
        steps, images, total = steps + 1, images + count, total + loss * count
        if steps >= RECENT and images >= 32 * RECENT:
            return total / images > limit
    return False
