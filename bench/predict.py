"""Compare batch prediction with precompute on the same photos: `python -m bench.predict`.

The two rotate, and their start (imports, weights, compiling) does not count. Precompute goes from an empty cache to Arrow
files. Prediction by its own process goes from the first answer to the last, including sending, keeping and writing Parquet.
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

from bench.precompute import measure, write_photos
from bench.sides import said
from headstart.core.files import sha256_file
from headstart.hardware import resolve_workers
from headstart.images.decode import FORMATS

CASES = (("tf_efficientnet_lite0", 224, (500, 375), 3000), ("tf_efficientnet_lite0", 96, (500, 375), 6000))


def save_random_model(path: Path, name: str, size: int) -> None:
    """Save a model of two classes with random weights."""
    from headstart.models.backbones import build_backbone
    from headstart.models.heads import Classifier, HeadSpec, build_head
    from headstart.models.trained import ModelCard, save_model
    from headstart.targets.single_label import SingleLabel

    backbone = build_backbone(name, "random", size)
    head = build_head(HeadSpec("linear", backbone.width, 2), seed=0)
    limits = {"max_pixels": 50_000_000, "min_side": 8, "formats": list(FORMATS)}
    target = SingleLabel(("a", "b"))
    card = ModelCard(
        name,
        backbone.options,
        backbone.preprocessing,
        limits,
        HeadSpec("linear", backbone.width, len(target.classes)),
        target,
        {},
    )
    save_model(path, Classifier(backbone.body, head), card)


def predict(folder: Path, model: Path) -> tuple[float, float]:
    """Return the files/s from the first answer to the last, and the seconds until the first."""
    from headstart.prediction import batch
    from headstart.prediction.supervisor import ScoringJob, score_all

    times: list[float] = []

    def timed(paths: list[str], job: ScoringJob):  # type: ignore[no-untyped-def]
        for answer in score_all(paths, job):
            times.append(time.monotonic())
            yield answer

    vars(batch)["score_all"] = timed
    job = ScoringJob(model, sha256_file(model), 1, 60.0, resolve_workers("auto"), resolve_workers("auto"), "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        found = batch.predict_folder(folder, job, state=Path(scratch, "state.sqlite"))
        batch.write_predictions(Path(scratch, "out.parquet"), found, "parquet", {})
        end = time.monotonic()
    assert (found.rows["error"] == "").all()
    first = sum(moment == times[0] for moment in times) + 15  # the first batch's answers come together
    return (len(times) - first) / (end - times[first - 1]), times[0] - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(predict(*map(Path, arguments.inside))))
        return
    for name, size, photos, files in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder, model = Path(scratch, "photos"), Path(scratch, "model.safetensors")
            folder.mkdir()
            write_photos(folder, files, photos)
            save_random_model(model, name, size)
            ratios, rates, starts = [], [], []
            for _ in range(arguments.repeats):
                precompute = measure("ours", folder, name, size)
                command = [sys.executable, "-m", "bench.predict", "--inside", str(folder), str(model)]
                rate, first = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
                ratios.append(rate / precompute)
                rates.append(rate)
                starts.append(first)
        print(
            f"{name}, {size} px, {files} photos of {photos[0]} x {photos[1]}: {statistics.median(rates):.0f} files/s,"
            f" {said(ratios)} of precompute's; first answer after {said(starts, '.1f')} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
