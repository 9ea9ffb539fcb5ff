"""Precompute against a plain timm loop over the same files: `python -m bench.precompute`.

Both sides in one run, alternating, each in a fresh process: decode, preprocess, forward, keep the pooled
features. Imports, building the model and one warm-up batch are apart. The plain side is what timm's docs
show: DataLoader with one worker a core, its eval transform, float32, batches of 64. Files: JPEG photos cut
from scikit-image's bundled pictures (about 500 x 375), and the digits at 96 px as in params.yaml.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COUNT = 384
BATCH = 16  # as in params.yaml


def write_photos(folder: Path, count: int) -> None:
    """Distinct 500 x 375 crops of real photos as JPEG, quality 90."""
    from PIL import Image
    from skimage import data

    pictures = [data.astronaut(), data.cat(), data.coffee(), data.rocket(), data.chelsea()]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(pictures[number % len(pictures)])
        scale = max(500 / image.width, 375 / image.height) * rng.uniform(1.05, 1.5)
        image = image.resize((int(image.width * scale) + 1, int(image.height * scale) + 1))
        left, top = int(rng.integers(0, image.width - 499)), int(rng.integers(0, image.height - 374))
        image.crop((left, top, left + 500, top + 375)).save(folder / f"{number:04}.jpg", quality=90)


def plain(folder: Path, name: str, size: int) -> float:
    """images/s of the plain timm loop."""
    import timm
    import torch
    from PIL import Image
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform
    from torch.utils.data import DataLoader, Dataset

    model = timm.create_model(name, num_classes=0).eval()
    config = resolve_model_data_config(model, args={"img_size": size})
    transform = create_transform(**config, is_training=False)
    paths = sorted(folder.rglob("*.*"))

    class Files(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> torch.Tensor:
            return transform(Image.open(paths[i]).convert("RGB"))

    with torch.inference_mode():
        model(torch.zeros(64, 3, size, size))
        start = time.monotonic()
        kept = torch.cat([model(x) for x in DataLoader(Files(), batch_size=64, num_workers=2)])
        seconds = time.monotonic() - start
    assert len(kept) == len(paths)
    return len(paths) / seconds


def ours(folder: Path, name: str, size: int) -> float:
    """images/s of precompute's own stream, files written included."""
    from headstart.activations.compute import DTYPES, compute_blocks
    from headstart.activations.engine import Engine
    from headstart.activations.store import write_shards
    from headstart.core.files import sha256_file
    from headstart.core.parallel import count
    from headstart.data.images import ImageSource
    from headstart.data.transforms import Augmentation
    from headstart.models.backbones import build_backbone
    from headstart.runtime import configure

    device = configure("auto", "auto")
    backbone = build_backbone(name, "random", size)
    engine = Engine(backbone.body, backbone.preprocessing, "auto", BATCH, device)
    images = ImageSource(folder, 50_000_000, backbone.preprocessing, Augmentation(False, 0, 1, 0), seed=0)
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.*"))]
    files = [(path, sha256_file(folder / path)) for path in paths]

    def run(files: list[tuple[str, str]]) -> float:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as out:
            blocks = compute_blocks(engine, images, files, views=0, workers=count("auto"))
            write_shards(Path(out), blocks, backbone.width, DTYPES[engine.plan.precision], {})
        return time.monotonic() - start

    run(files[:BATCH])  # what pyarrow imports at the first array (pandas, .5 s) is apart like all imports
    return len(files) / run(files)


def compare(folder: Path, name: str, size: int, repeats: int) -> tuple[float, float]:
    """Median images/s of both sides, in alternation."""
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for side, found in rates.items():
            command = [sys.executable, "-m", "bench.precompute", "--side", side, str(folder), name, str(size)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return statistics.median(rates["plain"]), statistics.median(rates["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.precompute", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["tf_efficientnet_lite0"], metavar="NAME")
    parser.add_argument("--side", nargs=4, metavar=("SIDE", "FOLDER", "NAME", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, name, size = arguments.side
        print(json.dumps({"plain": plain, "ours": ours}[side](Path(folder), name, int(size))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        photos, digits = Path(scratch, "photos"), Path(scratch, "digits")
        photos.mkdir()
        write_photos(photos, COUNT)
        from headstart.data.builtin import write_digits

        write_digits(digits)
        print(f"{'model':<24}{'files':<10}{'px':>4}{'plain timm':>14}{'headstart':>12}{'ratio':>8}   (images/s, medians)")
        for name in arguments.models:
            for folder, size in ((photos, 224), (photos, 128), (digits, 96)):
                a, b = compare(folder, name, size, arguments.repeats)
                print(f"{name:<24}{folder.name:<10}{size:>4}{a:>14.1f}{b:>12.1f}{b / a:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
