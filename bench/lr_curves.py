"""Record the curves that tests/test_lr_search.py reads, and what fastai's own rules suggest for them.

Run it after `make run`, in the benchmarks' environment: `python -m bench.lr_curves > tests/data/lr_curves.json`. The curves
come from range tests of heads on the digits' activations, and of the unfrozen network with the trained head on their images.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import fastai
import torch
from fastai.callback import schedule

from headstart.activations.store import Activations
from headstart.core.params import load_params
from headstart.images.loader import ImageSource
from headstart.images.transforms import Augmentation
from headstart.manifest import read_manifest
from headstart.models.backbones import build_backbone
from headstart.models.heads import Classifier, HeadSpec, build_head, fit_standardiser
from headstart.models.trained import load_head
from headstart.runtime import to_device
from headstart.targets.kinds import read_target
from headstart.training import activation_dataset, batch_sources
from headstart.training.activation_dataset import activations_of
from headstart.training.batch_sources import TrainingImages
from headstart.training.fine_tune import Network, UnfreezePhase, network_prepare
from headstart.training.head import head_prepare
from headstart.training.lr_search import RULES, Curve, range_test, trim
from headstart.training.options import Options

CPU = torch.device("cpu")
HEADS: tuple[tuple[str, int, dict[str, Any], int], ...] = (  # head, seed, options, steps
    *((head, seed, {}, 100) for head, seed in itertools.product(("linear", "mlp"), range(3))),
    *((head, 0, {"optimizer": "sgd"}, 100) for head in ("linear", "mlp")),
    *((head, 1, {"batch_size": 16}, 100) for head in ("linear", "mlp")),
    ("mlp", 2, {"label_smoothing": 0.1}, 100),
    ("linear", 2, {}, 200),
    ("mlp", 3, {}, 60),
    ("linear", 3, {"balance": "sampling"}, 100),
)
UNFROZEN = tuple(itertools.product((True, False), (1.0, 10.0), (0,))) + (
    (True, 3.0, 1),
    (False, 3.0, 1),
)  # bn_freeze, lr_ratio, seed


def head_curves(root: Path) -> list[tuple[str, Curve]]:
    """Run range tests of heads, as the stage find_lr does."""
    manifest, activations = read_manifest(root / "data/manifest.parquet"), Activations(root / "data/activations/pooled")
    target, rows = read_target(root / "data/target.json"), manifest[manifest["split"] == "train"]
    y = target.encode(rows["label"])
    found = []
    for kind, seed, changes, steps in HEADS:
        options = Options(**changes)
        train = activations_of(activations, rows["key"], y, options.sampling(target, y))
        head = build_head(HeadSpec(kind, activations.width, target.outputs), seed)
        fit_standardiser(head, train.base_views())
        curve = range_test(
            head,
            head_prepare(options, 1e-7),
            activation_dataset.endless(train, options, seed),
            loss=target.loss(options.loss_rule, y),
            lr_min=1e-7,
            lr_max=10.0,
            steps=steps,
            seed=seed,
        )
        found.append((f"{kind} head on the digits' activations, seed {seed}, {changes or 'as by default'}", curve))
    return found


def unfrozen_curves(root: Path) -> list[tuple[str, Curve]]:
    """Run range tests of the unfrozen network, as the stage fine_tune does, but in float32 and without augmentation."""
    params, manifest = load_params(root / "params.yaml"), read_manifest(root / "data/manifest.parquet")
    head, card = load_head(root / "models/head.safetensors")
    backbone = build_backbone(**params.backbone.model_dump(), seed=params.seed)
    rows = manifest[manifest["split"] == "train"].head(320).reset_index(drop=True)
    y = card.target.encode(rows["label"])
    source = ImageSource(root / params.data.source, 50_000_000, card.for_images, Augmentation("none", False, 0, 1, 0), 0)
    base_views = [source.base_view(path, key) for path, key in zip(rows["path"], rows["key"], strict=True)]
    batch_source = batch_sources.from_images(
        TrainingImages(lambda _, row: base_views[row], y),
        (base_views.__getitem__, len(base_views)),
        card.for_images,
        workers=2,
        device=CPU,
    )
    options = Options(batch_size=32)
    found = []
    for bn_freeze, lr_ratio, seed in UNFROZEN:
        network = Network(to_device(Classifier(backbone.body, head), CPU), backbone.groups, bn_freeze)
        curve = range_test(
            network.model,
            network_prepare(network, UnfreezePhase("all", 1, 1e-3, lr_ratio), batch_source, options),
            batch_sources.endless(batch_source, options, seed),
            loss=card.target.loss(options.loss_rule, y),
            lr_min=1e-7,
            lr_max=10.0,
            steps=100,
            seed=seed,
        )
        found.append(
            (f"{backbone.name} unfrozen on the digits, bn_freeze {bn_freeze}, lr_ratio {lr_ratio:g}, seed {seed}", curve)
        )
    return found


def fastais(curve: Curve) -> dict[str, float]:
    """Return what fastai's functions suggest, given the input that its `lr_find` passes them."""
    lrs, losses = (torch.tensor(values) for values in trim(curve))
    found = {}
    for name in RULES:
        suggestion, _ = getattr(schedule, name)(lrs, losses, len(curve.lrs))
        found[name] = float(suggestion[0] if isinstance(suggestion, tuple) else suggestion)
    return found


def main() -> None:
    curves = [
        {"what": what, "steps": curve.steps, "lrs": curve.lrs, "losses": curve.losses, "fastai": fastais(curve)}
        for what, curve in (*head_curves(Path()), *unfrozen_curves(Path()))
    ]
    print(json.dumps({"fastai": fastai.__version__, "curves": curves}, indent=None))


if __name__ == "__main__":
    main()
