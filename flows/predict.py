"""Classify every file of a folder: `python -m flows.predict --images PATH --out FILE.parquet [--model champion]`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from headstart.core import offspring
from headstart.core.command_line import command_line, guarded
from headstart.core.errors import InputError
from headstart.core.files import sha256_file
from headstart.core.liveness import alive
from headstart.core.params import load_params
from headstart.core.text import printable
from headstart.hardware import resolve_workers
from headstart.models.classes import unknown_classes, warning
from headstart.prediction.batch import Predictions, predict_folder, write_predictions
from headstart.prediction.supervisor import ScoringJob
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from flows import PROJECT
from flows.arguments import add_model, check_out, number, path, whole
from flows.prefect_client import close_dead_flow_runs

logger = logging.getLogger("headstart")
FORMS = ("parquet", "csv")


def predict_images(
    images: Path, out: Path, model: str = "champion", form: str | None = None, top: int = 1, abstain_below: float = 0.0
) -> Predictions:
    """Classify the files below `images` and write `out`; see `flows.predict --help`.

    Raises:
        InputError: the folder, the model or the format does not exist, or `out` could not be written.
    """
    check_images(images)
    check_out(out)
    form = form or out.suffix.removeprefix(".")
    if form not in FORMS:
        raise InputError(
            f"{out}: the name does not say which format", wanted="a name that ends in .parquet or .csv, or --format"
        )
    if top < 1 or not 0 <= abstain_below <= 1:
        raise InputError(f"top {top}, abstain_below {abstain_below:g}", wanted="top of 1 or more, abstain_below from 0 to 1")
    params = load_params(PROJECT / "params.yaml")
    data, runtime = params.data, params.runtime
    file = model_of(model)
    unknown = unknown_classes(file, PROJECT / "data/target.json")
    if unknown:
        logger.warning("  %s", printable(warning(unknown)))
    job = ScoringJob(
        model=file,
        digest=sha256_file(file),
        top=top,
        timeout=data.file_timeout,
        workers=resolve_workers(runtime.workers),
        threads=resolve_workers(runtime.threads),
        device=runtime.device,
    )
    found = predict_folder(images, job, state=PROJECT / ".headstart" / "predictions.sqlite", abstain_below=abstain_below)
    about = {"model": str(model), "sha256": job.digest, "abstain_below": abstain_below}
    write_predictions(out, found, form, about)
    return found


def check_images(images: Path) -> None:
    """Refuse a path that is not a readable folder, with a message about --images.

    Raises:
        InputError: the path does not exist, is a file, or may not be read.
    """
    wanted = "a folder: every file in it and in its sub-folders gets a row"
    if not os.path.exists(images):
        link = f" (a link to {os.readlink(images)})" if os.path.islink(images) else ""
        raise InputError(f"--images {printable(str(images))}{link}: no such folder", wanted=wanted)
    if not os.path.isdir(images):
        raise InputError(f"--images {printable(str(images))}: a file, not a folder", wanted=wanted)
    if not os.access(images, os.R_OK | os.X_OK):
        raise InputError(f"--images {printable(str(images))}: no permission to read this folder", fix="change its permissions")


def model_of(name: str) -> Path:
    """Return the model file of a name. Only an alias, a version or a run needs the registry, and with it MLflow (1 s)."""
    if name.endswith(".safetensors"):
        file = Path(os.path.expanduser(name))
        if not os.path.isfile(file):
            raise InputError(f"{file}: no such file", wanted="this project's .safetensors file, an alias or a version")
        return file
    from headstart.tracking.registry import find_model

    return find_model(PROJECT, name)


def table_rows(found: Predictions) -> list[dict[str, str | int]]:
    """Return the rows of Prefect's table: one for each outcome of a file, then one for each class."""
    summary = found.summary()
    names = {"files": "all", "errors": "with an error", "abstained": "abstained"}
    rows: list[dict[str, str | int]] = [{"what": text, "class": "", "files": summary[key]} for key, text in names.items()]
    return rows + [{"what": "predicted", "class": name, "files": number} for name, number in summary["classes"].items()]


@flow(name="predict", persist_result=False)
def predict(images: str, out: str, model: str = "champion", format: str = "", top: int = 1, abstain_below: float = 0.0) -> Any:
    """Classify every file of a folder on the worker's machine."""
    logger.setLevel(logging.INFO)
    offspring.guard(PROJECT)
    with alive(PROJECT, "prefect", str(flow_run.id)):
        close_dead_flow_runs(PROJECT)
        found = predict_images(Path(images), Path(out), model, format or None, top, abstain_below)
        create_table_artifact(table_rows(found), key="predictions", description=f"of {images} by {model}")
    return found.summary()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.predict", description="Classify every file of a folder.")
    parser.add_argument("--images", required=True, type=path, metavar="PATH", help="a folder; files in its sub-folders too")
    parser.add_argument("--out", required=True, type=path, metavar="FILE", help="the table to write: one row per file")
    add_model(parser)
    parser.add_argument("--format", choices=FORMS, help="format of FILE (default: the one its name ends with)")
    parser.add_argument("--top", type=whole(1), default=1, metavar="K", help="report the K most probable classes (default 1)")
    parser.add_argument(
        "--abstain-below", type=number(0, most=1), default=0.0, metavar="P", help="give no class below this probability"
    )
    options = parser.parse_args()
    found = predict_images(options.images, options.out, options.model, options.format, options.top, options.abstain_below)
    summary = found.summary()
    rate = f", {found.rate:,.0f} files/s" if found.rate else ""
    logger.info(
        "%s files: %s classified in this run%s; %s with an error, %s abstained, %s system files ignored; written to %s",
        f"{summary['files']:,}", f"{found.computed:,}", rate, f"{summary['errors']:,}", f"{summary['abstained']:,}",
        f"{found.ignored:,}", options.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
