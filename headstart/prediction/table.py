"""Predict the rows of a table with a model that learned from columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from headstart.columns.encoders import Encoders
from headstart.core.errors import InputError, naming, require_columns
from headstart.core.params import Elapsed, Join
from headstart.core.text import printable
from headstart.ingest.tables import add_columns, read_table
from headstart.ingest.tree import File, Tree
from headstart.models.trained import ModelCard
from headstart.prediction.batch import Predictions
from headstart.prediction.predictor import Predictor
from headstart.targets.tables import prediction_columns

CHUNK = 8192
ID, PATH = "id", "path"


def predict_table(file: Path, predictor: Predictor, top: int = 1, abstain_below: float = 0.0) -> Predictions:
    """Predict each row of a .csv or .parquet file.

    The tables that the model's training joined are read from the folder of the file. Values are encoded as in training, by
    what the model's file says.

    Args:
        abstain_below: confidence below which no class is predicted.

    Raises:
        InputError: the model needs images, a table or a column is missing, or a value cannot be used.
    """
    card = predictor.card
    if card.preprocessing is not None or card.columns is None:
        raise InputError("this model learned from images", fix="python -m flows.predict --images PATH")
    table = completed(file, card)
    start = time.monotonic()
    with naming(str(file)):
        columns = predictor.encode(table)
    assert columns is not None
    answers = torch.cat([predictor.answers(columns=part) for part in columns.split(CHUNK)])
    names = table[ID].astype("str").tolist() if ID in table else [f"row {row}" for row in table.index]
    rows = card.target.rows(answers, top)
    for row in rows:
        if row.get("confidence", 1.0) < abstain_below:
            row |= {"abstained": True, "predicted": None}
    types = {"path": "string", "sha256": "string", **prediction_columns(card.target.kind, top), "error": "string"}
    frame = pd.DataFrame(rows, columns=list(types)).assign(path=names, sha256="", error="")
    return Predictions(frame, types, len(frame), 0, len(frame) / max(time.monotonic() - start, 1e-9))


def completed(file: Path, card: ModelCard) -> pd.DataFrame:
    """Return a table with the columns that training joined to it and counted from it.

    Raises:
        InputError: a joined table or a column is missing; the message names it.
    """
    assert card.columns is not None
    table = read_table(file)
    joins = [Join(**one) for one in card.columns["joins"]]
    elapsed = [Elapsed(**one) for one in card.columns["elapsed"]]
    if joins or elapsed:
        table, _ = add_columns(table, _tables_beside(file, joins), joins, elapsed, card.columns["split_by"])
    wanted = Encoders.from_dict(card.columns["encoders"]).roles.names
    rule = f"all columns that the model is trained on: {printable(', '.join(wanted))}"
    require_columns(f"{file} row 1", wanted, table.columns, rule=rule)
    return table


def _tables_beside(file: Path, joins: Sequence[Join]) -> Tree:
    """Return the tables to join that are in a table's folder; what else is there does not matter."""
    root = file.resolve().parent
    places = {one.file: root / one.file for one in joins}
    inside = {name: path for name, path in places.items() if path.resolve().is_relative_to(root) and path.is_file()}
    return Tree(root, {name: File(name, path.stat()) for name, path in inside.items()}, [])


class ImageRows:
    """The encoded columns of images, for a model that takes both; its table has a column path, relative to `root`.

    Raises:
        InputError: there is no table, it lacks a column, two rows have the same path, or a value cannot be used.
    """

    def __init__(self, file: Path, root: Path, predictor: Predictor) -> None:
        if file == Path():
            raise InputError(
                "this model also takes columns of a table", fix="python -m flows.predict --images PATH --table FILE"
            )
        table = completed(file, predictor.card)
        require_columns(f"{file} row 1", [PATH], table.columns, rule="the images' paths, relative to the folder of images")
        twice = table.index[table[PATH].duplicated()]
        if len(twice):
            raise InputError(f"{file} row {twice[0]}, column {PATH}: {table[PATH][twice[0]]!r} is already in another row")
        with naming(str(file)):
            columns = predictor.encode(table)
        assert columns is not None
        self.name, self.columns = file.name, columns
        self.place_of = {f"{root}/{path}": place for place, path in enumerate(table[PATH].astype("str"))}

    def __contains__(self, path: str) -> bool:
        return path in self.place_of

    def __getitem__(self, paths: list[str]) -> torch.Tensor:
        """Return the rows [n, m + k] of absolute paths."""
        return self.columns[[self.place_of[path] for path in paths]]
