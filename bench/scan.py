"""Measure what a scan costs beside decoding: `python -m bench.scan`.

The sides alternate over the same files, each in the same number of fresh processes, whose start counts. The files are JPEG
photos of 500 x 375 and PNG of the same size, as `bench.precompute` writes them.
- decode alone: read each file and decode it to RGB with the function that all stages use.
- scan: `headstart.ingest.scan` from nothing: also the hash of the bytes, the perceptual hash and thumbnail, the checks,
  the local state, labels, splits, and the search for near copies.
- rescan: scan again with nothing changed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.precompute import write_photos
from headstart.hardware import resolve_workers
from headstart.images.decode import FORMATS
from headstart.images.limits import Limits
from headstart.ingest.scan import Scan, ScanSettings, SplitRule, scan
from headstart.ingest.sources import list_source
from headstart.ingest.tree import preflight

DECODE = """
import json, sys
from pathlib import Path
from headstart.images.decode import decode
for path in json.load(sys.stdin):
    decode(Path(path).read_bytes())
"""


def decode_alone(folder: Path, workers: int) -> float:
    """Return the seconds, including the start of processes."""
    paths = sorted(str(path) for path in folder.rglob("*.*"))
    start = time.monotonic()
    started = [subprocess.Popen([sys.executable, "-c", DECODE], stdin=subprocess.PIPE, text=True) for _ in range(workers)]
    for i, process in enumerate(started):
        assert process.stdin is not None
        process.stdin.write(json.dumps(paths[i::workers]))
        process.stdin.close()
    for process in started:
        assert process.wait() == 0
    return time.monotonic() - start


def scan_once(folder: Path, state: Path, workers: int) -> tuple[float, Scan]:
    """Return the seconds, including the start of workers, and the scan."""
    start = time.monotonic()
    tree = preflight(folder)
    settings = ScanSettings(
        limits=Limits(50_000_000, 8, FORMATS),
        rule=SplitRule(0, 0.1, 0.2, 5, "none"),
        max_quarantined=0.01,
        on_label_conflict="quarantine",
        near_duplicates="keep",
        timeout=60,
        workers=workers,
        state=state,
    )
    result = scan(tree, list_source(tree), settings)
    return time.monotonic() - start, result


def write_classes(folder: Path, number: int, kind: str) -> None:
    """Write photos into two class folders."""
    from PIL import Image

    write_photos(folder / "all", number)
    for label in "ab":
        (folder / label).mkdir()
    for i, path in enumerate(sorted((folder / "all").iterdir())):
        target = folder / "ab"[i % 2] / path.name
        if kind == "JPEG":
            path.rename(target)
        else:
            Image.open(path).save(target.with_suffix(".png"))
            path.unlink()
    (folder / "all").rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scan")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    workers = resolve_workers("auto")
    for kind in ("JPEG", "PNG"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "photos"
            (folder / "all").mkdir(parents=True)
            number = options.images if kind == "JPEG" else options.images // 10
            write_classes(folder, number, kind)
            os.sync()  # pending writes would disturb the first measurement
            decoding, scanning, rescanning = [], [], []
            for i in range(options.rounds):
                state = Path(scratch) / f"{i}.sqlite"
                decoding.append(decode_alone(folder, workers))
                scanning.append(scan_once(folder, state, workers)[0])
                seconds, result = scan_once(folder, state, workers)
                assert result.reread == 0
                rescanning.append(seconds)
        decode_s, scan_s, rescan_s = (statistics.median(side) for side in (decoding, scanning, rescanning))
        ratios = sorted(b / a for a, b in zip(decoding, scanning, strict=True))
        print(
            f"{kind}: {number:,} images of 500 x 375, {workers} processes: decode alone {decode_s:.2f} s"
            f" ({number / decode_s:,.0f} images/s), scan {scan_s:.2f} s ({number / scan_s:,.0f} images/s),"
            f" ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}); rescan {rescan_s:.2f} s"
            f" ({number / rescan_s:,.0f} images/s)"
        )


if __name__ == "__main__":
    main()
