"""Compare precompute with fastai's `get_preds` and a plain timm loop over the same files: `make bench`, or in its
environment `python -m bench.precompute`.

All sides rotate in one run, each in a fresh process: decode, preprocess, forward, keep the features. Imports, building
and compiling the model, and a warm-up batch do not count. fastai: a Learner on image files, as its docs show, and
`get_preds` over all of them (its head takes little of the time). timm: a DataLoader with one worker per core, timm's eval
transform, float32, batches of 64. Ours: everything from image file to Arrow file, including hashing, caching and
checksums. The files are JPEG photos cut from scikit-image's bundled pictures.
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

CASES = (  # model, input side, width and height of the photos, number of photos
    ("tf_efficientnet_lite0", 224, (500, 375), 256),
    ("tf_efficientnet_lite0", 224, (1600, 1200), 128),
    ("tf_efficientnet_lite0", 128, (500, 375), 256),
    ("resnet18", 224, (500, 375), 256),
    ("resnet50", 224, (500, 375), 128),
)
SIDES = ("fastai", "timm", "ours")
GFLOP = {"resnet50": 8.18}  # of a forward pass at 224 px: twice the multiply-adds that `python -m flows.backbones` shows


def write_photos(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write distinct crops of real photos as JPEG, quality 90."""
    from PIL import Image
    from skimage import data

    pictures = [data.astronaut(), data.cat(), data.coffee(), data.rocket(), data.chelsea()]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(pictures[number % len(pictures)])
        scale = max(size[0] / image.width, size[1] / image.height) * rng.uniform(1.05, 1.5)
        image = image.resize((int(image.width * scale) + 1, int(image.height * scale) + 1))
        left, top = int(rng.integers(0, image.width - size[0])), int(rng.integers(0, image.height - size[1]))
        image.crop((left, top, left + size[0], top + size[1])).save(folder / f"{number:04}.jpg", quality=90)


def timm(folder: Path, name: str, size: int) -> float:
    """Return the images/s of the plain timm loop."""
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


def fastai(folder: Path, name: str, size: int) -> float:
    """Return the images/s of fastai's get_preds over the files."""
    from fastai.vision.all import ImageDataLoaders, Resize, get_image_files, vision_learner

    files = get_image_files(folder)
    data = ImageDataLoaders.from_lists(
        folder, files, [str(i % 2) for i in range(len(files))], item_tfms=Resize(size), bs=64, num_workers=2, valid_pct=0.2
    )
    learner = vision_learner(data, name, pretrained=False, n_out=2)
    test = data.test_dl(files, num_workers=2)
    with learner.no_bar(), learner.no_logging():
        learner.get_preds(dl=data.test_dl(files[:64], num_workers=0))
        start = time.monotonic()
        kept, _ = learner.get_preds(dl=test)
        seconds = time.monotonic() - start
    assert len(kept) == len(files)
    return len(files) / seconds


def ours(folder: Path, name: str, size: int) -> float:
    """Return the images/s of our precompute, from an empty cache to the files written."""
    from bench.sides import keyed, set_up

    side, files = set_up(folder, name, size), keyed(folder)

    def run(files: list[tuple[str, str]]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            start = time.monotonic()
            side.run(side.cache(Path(scratch, "cache")), Path(scratch, "out"), files)
            return time.monotonic() - start

    run(files[:32])
    return len(files) / run(files)


def matmul() -> float:
    """Return the machine's rate of bfloat16 matrix multiplication in GFLOP/s, by torch on all cores."""
    import torch

    n = 2048
    a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
    rates = []
    for _ in range(6):
        start = time.monotonic()
        for _ in range(5):
            a @ b
        rates.append(5 * 2 * n**3 / (time.monotonic() - start) / 1e9)
    return statistics.median(rates[1:])


def bare(name: str, size: int) -> float:
    """Return the images/s of our engine's forward pass alone, with one thread per core."""
    import torch

    from bench.sides import BATCH, set_up
    from headstart.hardware import resolve_workers
    from headstart.images.loader import image_map

    engine = set_up(Path(), name, size).engine
    images, workers = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8), resolve_workers("auto")
    list(image_map(lambda _: engine(images), range(workers), workers, workers))
    start, batches = time.monotonic(), 8 * workers
    list(image_map(lambda _: engine(images), range(batches), workers, workers))
    return batches * BATCH / (time.monotonic() - start)


def measure(side: str, *arguments: object) -> float:
    """Run one side in a fresh process."""
    command = [sys.executable, "-m", "bench.precompute", "--side", side, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    return float(json.loads(run.stdout.splitlines()[-1]))


def compare(folder: Path, name: str, size: int, repeats: int) -> dict[str, list[float]]:
    """Measure the images/s of each side, in rotation."""
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, found in rates.items():
            found.append(measure(side, folder, name, size))
    return rates


def side(given: list[str]) -> float:
    if given[0] == "matmul":
        return matmul()
    if given[0] == "bare":
        return bare(given[1], int(given[2]))
    return {"timm": timm, "fastai": fastai, "ours": ours}[given[0]](Path(given[1]), given[2], int(given[3]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.precompute", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these models")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(side(arguments.side)))
        return
    print(
        f"{'model':<24}{'photos':>12}{'px':>5}{'fastai':>9}{'timm':>9}{'ours':>9}  (images/s)   times fastai        times timm"
    )
    for name, size, photos, count in CASES:
        if arguments.models and name not in arguments.models:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            write_photos(Path(scratch), count, photos)
            rates = compare(Path(scratch), name, size, arguments.repeats)
        middle = {key: statistics.median(found) for key, found in rates.items()}
        line = f"{name:<24}{photos[0]:>7} x {photos[1]:<4}{size:>3}" + "".join(f"{middle[key]:>9.1f}" for key in SIDES)
        for peer in ("fastai", "timm"):
            ratios = [a / b for a, b in zip(rates["ours"], rates[peer], strict=True)]
            line += f"   {middle['ours'] / middle[peer]:>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line, flush=True)
        if name in GFLOP:
            pairs = [(measure("bare", name, size), measure("matmul")) for _ in range(arguments.repeats)]
            shares = [rate * GFLOP[name] / flops for rate, flops in pairs]
            print(
                f"  {name}: forward pass alone {statistics.median(p[0] for p in pairs):.1f} images/s,"
                f" bfloat16 matmul {statistics.median(p[1] for p in pairs):.0f} GFLOP/s:"
                f" {statistics.median(shares):.0%} of it ({min(shares):.0%}-{max(shares):.0%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
