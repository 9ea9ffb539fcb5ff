"""`python -m flows.register [--rollback | --champion VERSION]`: judge the new model, or choose the champion by hand.

The fine-tuned model becomes the challenger, and the champion if it beats the present one on the same test images. This is not a
stage: the registry is not a file of this project, and its decisions depend on which model was champion before.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import pandas as pd
from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError
from headstart.core.files import locked, sha256_file
from headstart.core.params import Params, load_params
from headstart.images.loader import ImageSource
from headstart.images.transforms import NO_AUGMENTATION
from headstart.manifest import own_columns, read_manifest
from headstart.prediction.predictor import Predictor
from headstart.runtime import configure
from headstart.targets.kinds import read_target
from headstart.targets.target import Answered
from headstart.tracking import pending
from headstart.tracking.promotion import PresentData, PromotionDecision, PromotionRule, decide
from headstart.tracking.registry import CHALLENGER, CHAMPION, Registry, Version
from headstart.tracking.store import full_disk_as_input_error

from flows.arguments import whole

logger = logging.getLogger("headstart")
MODEL = "models/fine_tuned.safetensors"
KEPT = "reports/fine_tune/kept.json"
BATCH = 16


def register(root: Path, params: Params) -> PromotionDecision:
    """Register models/fine_tuned.safetensors and decide whether it becomes champion.

    A second call, even after a kill at any point, adds no second version and comes to the same decision. Calls in several
    processes wait for each other.

    Raises:
        InputError: no run has logged the model, an image changed, or a file of the registry is damaged.
    """
    with locked(root / ".headstart" / "locks" / "register.lock", "the model registry"), full_disk_as_input_error(root):
        registry = Registry(root)
        version = registry.add(sha256_file(root / MODEL))
        registry.set_alias(CHALLENGER, version)
        champion = registry.get_alias(CHAMPION)
        decision = judge(root, params, registry, version, champion)
        registry.tag(version, verdict=decision.sentence(), kept=json.loads((root / KEPT).read_text())["sentence"])
        if decision.promoted and (champion is None or champion.number != version.number):
            registry.promote(version)
        pending.settle(root, "register")
    logger.info("  %s", decision.sentence())
    return decision


def judge(root: Path, params: Params, registry: Registry, version: Version, champion: Version | None) -> PromotionDecision:
    """Decide with `promotion.decide`. Both models classify the test images now, as `flows.predict` does."""
    device, workers = configure(params.runtime.threads, params.runtime.device), params.runtime.workers

    def answers_of(asked: Version, test: pd.DataFrame) -> Answered:
        predictor = Predictor(asked.file, device, BATCH, workers)
        target, columns = predictor.card.target, predictor.encode(own_columns(test))
        if predictor.card.preprocessing is None:
            return Answered(target.answers(predictor.logits(columns=columns)), target)
        images = ImageSource(
            root / params.data.source, params.data.max_pixels, predictor.card.for_images, NO_AUGMENTATION, seed=0
        )
        files = list(zip(test["path"], test["key"], strict=True))
        what = f"classifying with version {asked.number}"
        logits_vnc = predictor.logits_of_files(images, files, what=what, columns=columns)
        return Answered(target.answers(logits_vnc[0]), target)

    rule = PromotionRule(params.promote.alpha, params.promote.margin, params.seed)
    data = PresentData(read_manifest(root / "data/manifest.parquet"), read_target(root / "data/target.json"))
    return decide(registry, version, champion, data, rule, answers_of)


def promote(root: Path, number: int | None) -> PromotionDecision:
    """Make a version the champion by hand: the given one or, for None, the one that the champion replaced.

    Raises:
        InputError: there is no such version, or it is damaged.
    """
    with locked(root / ".headstart" / "locks" / "register.lock", "the model registry"):
        registry = Registry(root)
        if number is None:
            version = registry.roll_back()
            return PromotionDecision(version.number, True, "rolled back")
        version = registry.version(number)
        registry.promote(version)
        return PromotionDecision(version.number, True, "by hand")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.register", description="Judge the new model, or name the champion.")
    by_hand = parser.add_mutually_exclusive_group()
    by_hand.add_argument("--rollback", action="store_true", help="make the previous champion the champion again")
    by_hand.add_argument("--champion", type=whole(1), metavar="VERSION", help="make this version the champion by hand")
    options = parser.parse_args()
    root = Path.cwd()
    if options.rollback or options.champion is not None:
        logger.info("%s", promote(root, options.champion).sentence())
        return 0
    if not (root / MODEL).is_file():
        raise InputError(f"{MODEL}: no such file", fix="run the pipeline first")
    register(root, load_params(root / "params.yaml"))
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
