"""register: the fine-tuned model becomes the challenger, and the champion if it beats the champion on the same test images.

No stage of the graph: the registry is not a file of this project, and its verdicts depend on what was champion before.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError
from headstart.core.files import locked, sha256_file
from headstart.core.parallel import chunks
from headstart.core.params import Params, load_params
from headstart.core.progress import track
from headstart.hardware import resolve_workers
from headstart.images.loader import ImageSource, image_map
from headstart.images.transforms import Augmentation
from headstart.manifest import read_manifest, without_copies
from headstart.models.trained import Outdated, load_card
from headstart.prediction.predictor import Predictor
from headstart.runtime import configure
from headstart.statistics import FEWEST, compare, mcnemar
from headstart.tracking import pending
from headstart.tracking.registry import CHALLENGER, CHAMPION, Registry, Version
from headstart.tracking.store import full_disk_told

from flows.arguments import whole

logger = logging.getLogger("headstart")
MODEL = "models/fine_tuned.safetensors"
KEPT = "reports/fine_tune/kept.json"
BATCH = 16


@dataclass(frozen=True)
class Verdict:
    """What became of a model: its version, whether it is the champion now, and why."""

    version: int
    promoted: bool
    reason: str

    def sentence(self) -> str:
        return f"version {self.version} {'is the champion' if self.promoted else 'stays challenger'}: {self.reason}"


def register(root: Path, params: Params) -> Verdict:
    """Register models/fine_tuned.safetensors and judge it.

    Run again, after a death at any point too, it makes no second version and comes to the same end. Several at once
    wait for each other.

    Raises:
        InputError: no run has logged the model, an image changed, or what the registry keeps is damaged.
    """
    with locked(root / ".headstart" / "locks" / "register.lock", "the model registry"), full_disk_told(root):
        registry = Registry(root)
        version = registry.add(sha256_file(root / MODEL))
        registry.point(CHALLENGER, version)
        champion = registry.holder(CHAMPION)
        verdict = judge(root, params, registry, version, champion)
        registry.tag(version, verdict=verdict.sentence(), kept=what_was_kept(root))
        if verdict.promoted and (champion is None or champion.number != version.number):
            registry.crown(version)
        pending.settle(root, "register")
    logger.info("  %s", verdict.sentence())
    return verdict


def what_was_kept(root: Path) -> str:
    """Whether the model is the fine-tuned one or the trained head as it was, and why."""
    return str(json.loads((root / KEPT).read_text())["sentence"])


def judge(root: Path, params: Params, registry: Registry, version: Version, champion: Version | None) -> Verdict:
    """Whether a version is to be champion, from its and the champion's answers to the same test images, asked now."""
    if champion is not None and champion.digest == version.digest:
        return Verdict(version.number, True, "it was before")
    if version.rolled_back:
        return Verdict(version.number, False, f"it was rolled back (python -m flows.register --champion {version.number})")
    manifest = read_manifest(root / "data/manifest.parquet")
    seen = registry.trained_on(version)  # the manifest may be newer
    if champion is not None:
        seen |= registry.trained_on(champion)
    test = without_copies(manifest, "test")
    fair = test[~test["key"].isin(seen)]
    if len(fair) < FEWEST:
        return Verdict(version.number, False, undecidable(len(fair), version.number))
    classes, guess = sorted(set(manifest["label"])), most_frequent(manifest)
    answers = probabilities(root, params, version, fair)
    beats_guess, sentence = against_guess(answers, fair["label"], guess, params.promote.level)
    if champion is None or not beats_guess:
        return Verdict(version.number, beats_guess, f"it is the first; {sentence}" if champion is None else sentence)
    try:
        known = load_card(champion.file).classes
    except Outdated:
        by_hand = f"python -m flows.register --champion {version.number}"
        earlier = f"version {champion.number}, the champion, is of an earlier Headstart and cannot be asked; by hand: {by_hand}"
        return Verdict(version.number, False, earlier)
    a_nc, b_nc = (aligned(*found, classes) for found in (probabilities(root, params, champion, fair), answers))
    y_n = torch.tensor([classes.index(label) for label in fair["label"]])
    found = compare(a_nc, b_nc, y_n, params.seed)
    gain = (found.only_b - found.only_a) / found.images
    level, margin = params.promote.level, params.promote.margin
    lacking = sorted(set(classes) - set(known))
    lacks = (
        f"; that one does not know {', '.join(map(repr, lacking[:3]))}{', …' if len(lacking) > 3 else ''}" if lacking else ""
    )
    sentence = (
        f"of {found.images:,} test images it alone has {found.only_b} right, version {champion.number} alone {found.only_a}:"
        f" {gain:+.2%}, p = {found.p_value:.2g} (wanted above 0, at least {margin:.2%}, p below {level:g}){lacks}"
    )
    return Verdict(version.number, gain > 0 and gain >= margin and found.p_value < level, sentence)


def undecidable(images: int, number: int) -> str:
    """Why nothing was decided, and what a person can do."""
    return (
        f"of {images} test images that no training has seen nothing can be decided, at least {FEWEST} are needed;"
        f" add images, or choose it by hand: python -m flows.register --champion {number}"
    )


def most_frequent(manifest: pd.DataFrame) -> str:
    """The label of most training images, the first by name of several."""
    return str(manifest.loc[manifest["split"] == "train", "label"].mode()[0])


def against_guess(
    answers: tuple[torch.Tensor, tuple[str, ...]], labels: pd.Series, guess: str, level: float
) -> tuple[bool, str]:
    """Whether a model beats always saying the most frequent class, beyond chance, and the figures in words.

    Args:
        answers: probabilities [n, c] of test images that it did not learn from, and its classes.
        labels: of these images.
        guess: that class.
        level: of McNemar's test.
    """
    p_nc, classes = answers
    said = [classes[i] for i in p_nc.argmax(1).tolist()]
    right, guessed = (labels == said).to_numpy(), (labels == guess).to_numpy()
    p_value = mcnemar(int((guessed & ~right).sum()), int((right & ~guessed).sum()))
    sentence = (
        f"of {len(labels):,} test images it has {int(right.sum()):,} right, always saying {guess!r} has"
        f" {int(guessed.sum()):,} (McNemar p = {p_value:.2g}, wanted below {level:g})"
    )
    return bool(right.sum() > guessed.sum()) and p_value < level, sentence


def probabilities(root: Path, params: Params, version: Version, test: pd.DataFrame) -> tuple[torch.Tensor, tuple[str, ...]]:
    """A version's probabilities [n, c] of test images, and its classes; computed as `flows.predict` does."""
    device = configure(params.runtime.threads, params.runtime.device)
    predictor = Predictor(version.file, device, BATCH, workers=params.runtime.workers)
    nothing = Augmentation("none", False, 0.0, 1.0, 0.0)
    images = ImageSource(root / params.data.source, params.data.max_pixels, predictor.card.preprocessing, nothing, 0)
    files = list(zip(test["path"], test["key"], strict=True))

    def classify(part: list[tuple[str, str]]) -> torch.Tensor:
        return predictor.classify(torch.stack([images.plain(*file) for file in part]))

    workers = resolve_workers(params.runtime.workers)
    parts = image_map(classify, chunks(files, BATCH), workers, ahead=2 * workers)
    return torch.cat(list(track(parts, f"version {version.number}", len(files), weigh=len))), predictor.card.classes


def aligned(p_nc: torch.Tensor, own: tuple[str, ...], classes: list[str]) -> torch.Tensor:
    """Probabilities in the order of other classes: 0 for one that the model does not know."""
    columns = [p_nc[:, own.index(label)] if label in own else torch.zeros(len(p_nc)) for label in classes]
    return torch.stack(columns, dim=1)


def crown(root: Path, number: int | None) -> Verdict:
    """Make a version the champion by hand: the given one, or (None) the one that the champion replaced.

    Raises:
        InputError: there is no such version, or it is damaged.
    """
    with locked(root / ".headstart" / "locks" / "register.lock", "the model registry"):
        registry = Registry(root)
        if number is None:
            version = registry.roll_back()
            return Verdict(version.number, True, "rolled back")
        version = registry.version(number)
        registry.crown(version)
        return Verdict(version.number, True, "by hand")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.register", description="Judge the model, or move the champion.")
    by_hand = parser.add_mutually_exclusive_group()
    by_hand.add_argument("--rollback", action="store_true", help="back to the champion before")
    by_hand.add_argument("--champion", type=whole(1), metavar="VERSION", help="make this version the champion")
    options = parser.parse_args()
    root = Path.cwd()
    if options.rollback or options.champion is not None:
        verdict = crown(root, options.champion)
        logger.info("%s", verdict.sentence())
        return 0
    if not (root / MODEL).is_file():
        raise InputError(f"{MODEL}: no such file", fix="run the pipeline first")
    register(root, load_params(root / "params.yaml"))
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
