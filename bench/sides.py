"""Our side of several benchmarks: the engine on a folder of files, set up as in params.yaml."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from headstart.activations.cache import Cache, open_cache, open_root, row_bytes
from headstart.activations.compute import File, Filled, assemble, fill
from headstart.activations.engine import Engine, build_engine
from headstart.activations.store import write_shards
from headstart.core.files import sha256_file
from headstart.hardware import resolve_workers
from headstart.images.loader import ImageSource
from headstart.images.transforms import Augmentation
from headstart.models.backbones import Backbone, build_backbone
from headstart.models.cuts import output_shape
from headstart.runtime import configure
from headstart.targets.single_label import SingleLabel
from headstart.training.loop import TrainingRun

BATCH = 16
NONE = Augmentation("none", False, 0, 1, 0)


@dataclass(frozen=True)
class Side:
    """The backbone, engine and images, ready to compute."""

    backbone: Backbone
    engine: Engine
    images: ImageSource
    shape: tuple[int, ...]

    def cache(self, root: Path) -> Cache:
        """Open a cache of this side's rows."""
        return open_cache(open_root(root), "bench", {}, row_bytes(self.shape, self.engine.plan.storage))

    def run(self, cache: Cache, out: Path, files: list[File], views: int = 0) -> Filled:
        """Compute Arrow files from image files, through the cache."""
        filled = fill(cache, self.engine, self.images, files, views=views, workers=resolve_workers("auto"))
        keys = [key for _, key in files]
        write_shards(out, assemble(cache, keys, views), self.shape, self.engine.plan.storage, {})
        return filled


def set_up(
    folder: Path, name: str, size: int, weights: str = "random", augmentation: Augmentation = NONE, view_seed: int = 0
) -> Side:
    """Do everything that is not measured: imports, weights, compiling."""
    configure("auto", "cpu")
    backbone = build_backbone(name, weights, size)
    options = {"engine": "auto", "precision": "auto", "storage": "auto", "batch_size": BATCH}
    engine = build_engine(backbone.body, backbone.preprocessing, **options, device=torch.device("cpu"))  # type: ignore[arg-type]
    images = ImageSource(folder, 50_000_000, backbone.preprocessing, augmentation, view_seed)
    return Side(backbone, engine, images, output_shape(backbone.body, size))


def keyed(folder: Path) -> list[File]:
    """Return (path, key) of every file below a folder, in the order of keys, as in a manifest."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return sorted(((path.relative_to(folder).as_posix(), sha256_file(path)) for path in paths), key=lambda file: file[1])


def said(values: Sequence[float], form: str = ".2f") -> str:
    """Format median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def numbered(y_n: torch.Tensor) -> SingleLabel:
    """Return the target of class indices; it calls each class by its number."""
    return SingleLabel(tuple(map(str, range(int(y_n.max()) + 1))))


def unlogged(seed: int) -> TrainingRun:
    """Return a training's surroundings without a log or checkpoint."""
    return TrainingRun(seed, lambda *_: None)
