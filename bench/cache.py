"""Measure what the per-image cache saves, and how precompute grows: `python -m bench.cache`.

20,000 JPEG photos (300 x 225, EfficientNet-lite0 at 128 px): from nothing; with 1 % new among them; all cached. Then
1,000 to 100,000 tiny files show time per image and memory. Compiling does not count; look-up, checksums, assembly and
writing do. Everything runs `--repeats` times; the output shows medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from bench.sides import keyed, said, set_up

COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)


def write_crops(folder: Path, start: int, count: int, size: tuple[int, int] = (300, 225)) -> None:
    """Write distinct small photos as JPEG: crops of scikit-image's pictures."""
    from PIL import Image
    from skimage import data

    pictures = [Image.fromarray(picture) for picture in (data.astronaut(), data.cat(), data.coffee(), data.rocket())]
    for number in range(start, start + count):
        rng, picture = np.random.default_rng(number), pictures[number % len(pictures)]
        left, top = int(rng.integers(0, picture.width - size[0])), int(rng.integers(0, picture.height - size[1]))
        crop = picture.crop((left, top, left + size[0], top + size[1]))
        crop.save(folder / f"{number:06}.jpg", quality=int(rng.integers(80, 96)), comment=str(number))


def incremental(repeats: int, total: int) -> None:
    """Measure runs from nothing, with 1 % new, and with all cached."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        folder.mkdir()
        write_crops(folder, 0, total)
        side, new = set_up(folder, "tf_efficientnet_lite0", 128), total // 100
        times: dict[str, list[float]] = {"nothing": [], "one": [], "all": []}
        files = keyed(folder)
        for repeat in range(repeats):
            shutil.rmtree(Path(scratch, "cache"), ignore_errors=True)
            for what in ("nothing", "one", "all"):
                if what == "one":
                    write_crops(folder, total + repeat * new, new)
                    files = keyed(folder)
                start = time.monotonic()
                filled = side.run(side.cache(Path(scratch, "cache")), Path(scratch, "out"), files)
                times[what].append(time.monotonic() - start)
                assert filled.computed == {"nothing": len(files), "one": new, "all": 0}[what]
    shares = [one / whole for one, whole in zip(times["one"], times["nothing"], strict=True)]
    whole, rates = statistics.median(times["nothing"]), [len(files) / seconds for seconds in times["all"]]
    print(f"{total:,} photos from nothing: {said(times['nothing'], '.1f')} s, {total / whole:,.0f} images/s")
    percent = said([100 * share for share in shares])
    print(f"  1 % new among them: {said(times['one'])} s, {percent} % of the time from nothing")
    print(f"  all cached: {said(times['all'])} s, {said(rates, ',.0f')} images/s", flush=True)


def write_tiny(folder: Path, count: int) -> None:
    """Write distinct files of 16 x 16 pixels (BMP), 1,000 in each folder."""
    header = bytes.fromhex("424d3603000000000000360000002800000010000000100000000100180000000000000300000000000000000000000000")
    header = header.ljust(54, b"\0")
    rng = np.random.default_rng(0)
    for number in range(count):
        (part := folder / f"{number // 1000:03}").mkdir(exist_ok=True)
        (part / f"{number:06}.bmp").write_bytes(header + number.to_bytes(4, "little") + rng.bytes(764))


def anonymous_bytes() -> int:
    """Return this process's anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def grow(folder: Path, count: int) -> dict[str, float]:
    """Return the seconds and the peak anonymous memory of one run over `count` files."""
    side = set_up(folder, "test_efficientnet", 32)
    files = keyed(folder)[:count]
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_bytes())

    with tempfile.TemporaryDirectory() as scratch:
        side.run(side.cache(Path(scratch, "warm")), Path(scratch, "warm-out"), files[:64])
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.monotonic()
        side.run(side.cache(Path(scratch, "cache")), Path(scratch, "out"), files, views=1)
        seconds = time.monotonic() - start
        done.set()
        watcher.join()
    return {"seconds": seconds, "peak": peak[0]}


def scaling(repeats: int, largest: int) -> None:
    """Measure time per image and memory from 1,000 to 100,000 files."""
    counts = [count for count in COUNTS if count <= largest]
    with tempfile.TemporaryDirectory() as scratch:
        write_tiny(Path(scratch), max(counts))
        found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for _ in range(repeats):
            for count in counts:
                command = [sys.executable, "-m", "bench.cache", "--grow", scratch, str(count)]
                found[count].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{'tiny files, 2 views':>20}{'ms per image':>24}{'peak anonymous memory':>26}")
    for count, runs in found.items():
        each = [1000 * run["seconds"] / count for run in runs]
        print(f"{count:>20,}{said(each, '.3f'):>24}{max(run['peak'] for run in runs) / 1e6:>23,.0f} MB")
    medians = [statistics.median(run["seconds"] for run in runs) for runs in found.values()]
    exponent = np.polyfit(np.log(counts), np.log(medians), 1)[0]
    print(f"  time grows as n to the power of {exponent:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--largest", type=int, default=100_000)
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow:
        print(json.dumps(grow(Path(arguments.grow[0]), int(arguments.grow[1]))))
        return
    incremental(arguments.repeats, arguments.photos)
    scaling(arguments.repeats, arguments.largest)


if __name__ == "__main__":
    main()
