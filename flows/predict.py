"""Predict a folder's files or a table's rows: `python -m flows.predict --images PATH | --table FILE --out FILE.parquet`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass
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
from headstart.ingest.tree import check_folder
from headstart.models.classes import part_of_card, unknown_classes, warning
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


@dataclass(frozen=True)
class Asked:
    """What is to be predicted, and how; see `flows.predict --help`."""

    out: Path
    images: Path | None = None
    table: Path | None = None
    model: str = "champion"
    form: str | None = None
    top: int = 1
    abstain_below: float = 0.0


def predict_all(asked: Asked) -> Predictions:
    """Predict the files below `images`, or the rows of `table`, and write `out`.

    Raises:
        InputError: the folder, the table, the model or the format does not exist, or `out` could not be written.
    """
    if asked.images is None and asked.table is None:
        raise InputError("neither --images nor --table", fix="--images PATH for a folder of images, --table FILE for rows")
    if asked.images is not None:
        check_images(asked.images)
    if asked.table is not None and not asked.table.is_file():
        raise InputError(f"--table {printable(str(asked.table))}: no such file", wanted="a .csv or .parquet file")
    check_out(asked.out)
    form = asked.form or asked.out.suffix.removeprefix(".")
    if form not in FORMS:
        raise InputError(
            f"{asked.out}: the name does not say which format", wanted="a name that ends in .parquet or .csv, or --format"
        )
    if asked.top < 1 or not 0 <= asked.abstain_below <= 1:
        found = f"top {asked.top}, abstain_below {asked.abstain_below:g}"
        raise InputError(found, wanted="top of 1 or more, abstain_below from 0 to 1")
    file = model_of(asked.model)
    unknown = unknown_classes(file, PROJECT / "data/target.json")
    if unknown:
        logger.warning("  %s", printable(warning(unknown)))
    found_rows = _of_table(file, asked) if asked.images is None else _of_images(file, asked, asked.images)
    about = {"model": str(asked.model), "sha256": sha256_file(file), "abstain_below": asked.abstain_below}
    write_predictions(asked.out, found_rows, form, about)
    return found_rows


def _of_table(file: Path, asked: Asked) -> Predictions:
    from headstart.prediction.predictor import Predictor
    from headstart.prediction.table import predict_table

    assert asked.table is not None
    return predict_table(asked.table, Predictor(file), asked.top, asked.abstain_below)


def _of_images(file: Path, asked: Asked, images: Path) -> Predictions:
    if asked.table is not None and not part_of_card(file, "columns"):
        raise InputError(f"--table {asked.table}: this model takes no columns", fix="leave --table out")
    params = load_params(PROJECT / "params.yaml")
    data, runtime = params.data, params.runtime
    job = ScoringJob(
        model=file,
        digest=sha256_file(file),
        top=asked.top,
        timeout=data.file_timeout,
        workers=resolve_workers(runtime.workers),
        threads=resolve_workers(runtime.threads),
        device=runtime.device,
        table=str(asked.table.resolve()) if asked.table else "",
        root=str(check_folder(images)) if asked.table else "",
    )
    state = PROJECT / ".headstart" / "predictions.sqlite"
    return predict_folder(images, job, state=state, abstain_below=asked.abstain_below)


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
def predict(
    images: str, out: str, model: str = "champion", format: str = "", top: int = 1, abstain_below: float = 0.0, table: str = ""
) -> Any:
    """Predict every file of a folder, or (with an empty `images`) every row of a table, on the worker's machine."""
    logger.setLevel(logging.INFO)
    offspring.guard(PROJECT)
    with alive(PROJECT, "prefect", str(flow_run.id)):
        close_dead_flow_runs(PROJECT)
        folder, rows = (Path(one) if one else None for one in (images, table))
        found = predict_all(Asked(Path(out), folder, rows, model, format or None, top, abstain_below))
        create_table_artifact(table_rows(found), key="predictions", description=f"of {images or table} by {model}")
    return found.summary()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.predict", description="Predict every file of a folder, or every row of a table."
    )
    parser.add_argument("--images", type=path, metavar="PATH", help="a folder; files in its sub-folders too")
    parser.add_argument(
        "--table", type=path, metavar="FILE", help="rows to predict, or the columns of the images (with their column path)"
    )
    parser.add_argument("--out", required=True, type=path, metavar="FILE", help="the table to write: one row per file")
    add_model(parser)
    parser.add_argument("--format", choices=FORMS, help="format of FILE (default: the one its name ends with)")
    parser.add_argument("--top", type=whole(1), default=1, metavar="K", help="report the K most probable classes (default 1)")
    parser.add_argument(
        "--abstain-below", type=number(0, most=1), default=0.0, metavar="P", help="give no class below this probability"
    )
    options = parser.parse_args()
    asked = Asked(options.out, options.images, options.table, options.model, options.format, options.top, options.abstain_below)
    found = predict_all(asked)
    summary = found.summary()
    rate = f", {found.rate:,.0f} files/s" if found.rate else ""
    logger.info(
        "%s files or rows: %s predicted in this run%s; %s with an error, %s abstained, %s system files ignored; written to %s",
        f"{summary['files']:,}", f"{found.computed:,}", rate, f"{summary['errors']:,}", f"{summary['abstained']:,}",
        f"{found.ignored:,}", options.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    command_line()
    sys.exit(guarded(main))
