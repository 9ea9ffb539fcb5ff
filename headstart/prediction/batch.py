"""Classify every file of a folder; answers are saved as they come, so that a killed run continues where it stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headstart.core.code_digest import closure, digest
from headstart.core.files import canonical_json, sha256_file, write_bytes
from headstart.core.progress import Pace, track
from headstart.core.text import printable
from headstart.images.kinds import why_ignored
from headstart.ingest.scan_state import scan_state
from headstart.ingest.tree import check_folder, walk
from headstart.manifest import write_csv
from headstart.models.classes import part_of_card, target_in
from headstart.prediction.supervisor import Answer, ScoringJob, score_all
from headstart.targets.tables import prediction_columns

logger = logging.getLogger("headstart")
REMEMBER = 256  # answers saved in one transaction: a killed run repeats at most this many
TYPES = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_()}
LIBRARIES = ("torch", "torchvision", "timm", "openvino", "pillow", "simplejpeg", "numpy")


@dataclass(frozen=True)
class Predictions:
    """The predictions for a folder's files.

    Args:
        rows: a row per file, in the order of paths: path, sha256, the target's columns (`prediction_columns`), and error, which
            is empty if there is a prediction.
        types: the Arrow type of each column.
        computed: number of files that were classified now; the others were known from earlier runs.
        ignored: number of operating system files (such as .DS_Store), which get no row.
        rate: files per second from the first answer on; 0 if it is unknown.
    """

    rows: pd.DataFrame
    types: Mapping[str, str]
    computed: int
    ignored: int
    rate: float

    def summary(self) -> dict[str, Any]:
        """Count the files, the errors, the abstentions and, under `classes`, the files predicted as each label."""
        rows = self.rows
        errors = int((rows["error"] != "").sum())
        abstained = int(rows["abstained"].fillna(False).sum()) if "abstained" in rows else 0
        classes = Counter(rows["predicted"].dropna()) if self.types["predicted"] == "string" else Counter()
        return {"files": len(rows), "errors": errors, "abstained": abstained, "classes": dict(sorted(classes.items()))}


def predict_folder(folder: Path, job: ScoringJob, *, state: Path, abstain_below: float = 0.0) -> Predictions:
    """Classify every file below a folder.

    `state` keeps each answer by the file's path and status, the model, the code and the libraries. A later run, also
    after a killed one, reads only new and changed files.

    Args:
        folder: any folder; it is never written to.
        state: a file that several runs may share.
        abstain_below: confidence below which no class is predicted.

    Raises:
        InputError: the folder does not exist, or the model cannot be used.
    """
    predicted = prediction_columns(target_in(job.model)["kind"], job.top)
    types = {"path": "string", "sha256": "string", **predicted, "error": "string"}
    root = check_folder(folder)
    found, errors, ignored = _listed(root)
    answers: dict[str, Answer] = {path: {"error": reason} for path, reason in errors.items()}
    now_ns, pace = time.time_ns(), Pace()
    with scan_state(state, _namespace(job)) as memory:
        known = memory.known((f"{root}/{path}", status) for path, status in found.items())
        answers |= {path: answer for path, answer in zip(found, known, strict=True) if answer is not None}
        missing = [path for path in found if path not in answers]
        if missing:
            known_files = len(found) - len(missing)
            logger.info("  %s of %s files were classified before, %s remain", known_files, len(found), len(missing))
        fresh: list[tuple[str, os.stat_result, Answer]] = []
        try:
            for path, answer in track(_scored(root, missing, job), "classifying", len(missing), unit="files"):
                answers[path] = answer
                pace.add(1)
                if answer.pop("final"):
                    fresh.append((f"{root}/{path}", found[path], answer))
                if len(fresh) >= REMEMBER:
                    memory.remember(fresh, now_ns)
                    fresh.clear()
        finally:  # also on shutdown
            memory.remember(fresh, now_ns)
    rate = pace.rate
    rows = [prediction_row(path, answers[path], abstain_below) for path in sorted(answers)]
    return Predictions(pd.DataFrame(rows, columns=list(types)), types, len(missing), ignored, rate)


def _listed(root: Path) -> tuple[dict[str, os.stat_result], dict[str, str], int]:
    """Return the files to classify with their status, unreadable paths with the reason, and the number of system files.

    It follows links to files wherever they lead: the user who named the folder may read them, and DVC makes such links.
    """
    found: dict[str, os.stat_result] = {}
    errors: dict[str, str] = {}
    ignored = 0
    for path, status, reason in walk(root, lambda _: True):
        *folders, name = path.split("/")
        is_folder = stat.S_ISDIR(status.st_mode)
        if path != "." and why_ignored([*folders, name] if is_folder else folders, "" if is_folder else name):
            ignored += not is_folder
        elif reason is not None:
            errors[printable(path)] = reason
        elif not is_folder:
            found[path] = status
    return found, errors, ignored


def _scored(root: Path, paths: list[str], job: ScoringJob) -> Iterator[tuple[str, Answer]]:
    prefix = len(f"{root}/")
    for path, answer in score_all([f"{root}/{path}" for path in paths], job):
        yield path[prefix:], answer


def _namespace(job: ScoringJob) -> str:
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    code = digest(closure("headstart.prediction.scorer"))
    facts = {"model": job.digest, "top": job.top, "device": job.device, "tables": _table_digests(job), "root": job.root}
    return hashlib.sha256(canonical_json({**facts, "code": code, "versions": versions}).encode()).hexdigest()


def _table_digests(job: ScoringJob) -> list[str]:
    """Return the hashes of the table with the images' columns and of the tables that are joined to it."""
    if not job.table:
        return []
    joins = (part_of_card(job.model, "columns") or {}).get("joins", ())
    tables = [Path(job.table), *(Path(job.table).parent / one["file"] for one in joins)]
    return [sha256_file(path) for path in tables if path.is_file()]


def prediction_row(path: str, answer: Answer, abstain_below: float) -> dict[str, Any]:
    """Return the row of a file or of a table's row, from an answer that has either "error" or "row"."""
    error = answer.get("error", "")
    row: dict[str, Any] = {"path": path, "sha256": answer.get("key", ""), "error": error} | ({} if error else answer["row"])
    if row.get("confidence", 1.0) < abstain_below:
        row |= {"abstained": True, "predicted": None}
    return row


def write_predictions(path: Path, found: Predictions, form: str, about: dict[str, Any]) -> None:
    """Write predictions atomically; equal predictions give equal bytes.

    Args:
        form: "parquet" or "csv". No cell of a CSV can start a spreadsheet formula.
        about: how the predictions were made, for a Parquet file's metadata.
    """
    if form == "csv":
        write_csv(path, found.rows)
        return
    schema = pa.schema([(name, TYPES[kind]) for name, kind in found.types.items()])
    table = pa.Table.from_pandas(found.rows, schema=schema, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"headstart": canonical_json(about)}), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
