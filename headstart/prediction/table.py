"""Predict the rows of a table with a model that learned from columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from headstart.columns.cells import UnusableCells
from headstart.columns.encoders import Encoders
from headstart.core.errors import InputError, naming, require_columns
from headstart.core.params import Elapsed, Join
from headstart.core.text import printable
from headstart.ingest.tables import add_columns, read_table
from headstart.ingest.tree import File, Tree
from headstart.models.trained import ModelCard
from headstart.prediction.batch import Predictions, prediction_row
from headstart.prediction.predictor import Predictor
from headstart.prediction.supervisor import Answer
from headstart.targets.tables import prediction_columns

CHUNK = 8192
ID, PATH = "id", "path"


def predict_table(file: Path, predictor: Predictor, top: int = 1, abstain_below: float = 0.0) -> Predictions:
    """Predict each row of a .csv or .parquet file; a row with a value that cannot be used gets the reason.

    The tables that the model's training joined are read from the folder of the file. Values are encoded as in training, by
    what the model's file says.

    Args:
        abstain_below: confidence below which no class is predicted.

    Raises:
        InputError: the model needs images, or a table or a column is missing.
    """
    card = predictor.card
    if card.preprocessing is not None or card.columns is None:
        raise InputError("this model learned from images", fix="python -m flows.predict --images PATH")
    table = completed(file, card)
    start = time.monotonic()
    encoded = encoded_rows(file, table, predictor)
    predicted = torch.cat([predictor.answers(columns=part) for part in encoded.columns.split(CHUNK)])
    answers: dict[int, Answer] = {row: {"error": reason} for row, reason in encoded.errors.items()}
    answers |= {row: {"row": cells} for row, cells in zip(encoded.rows, card.target.rows(predicted, top), strict=True)}
    names = table[ID].astype("str") if ID in table else [f"row {row}" for row in table.index]
    rows = [prediction_row(name, answers[row], abstain_below) for name, row in zip(names, table.index, strict=True)]
    types = {"path": "string", "sha256": "string", **prediction_columns(card.target.kind, top), "error": "string"}
    rate = len(rows) / max(time.monotonic() - start, 1e-9)
    return Predictions(pd.DataFrame(rows, columns=list(types)), types, len(rows), 0, rate)


@dataclass(frozen=True)
class EncodedTable:
    """A table's rows as a head takes them.

    Args:
        rows: the numbers of the n rows that can be encoded.
        columns: these rows, [n, m + k] float32.
        errors: what is wrong with each other row, by its number.
    """

    rows: list[int]
    columns: torch.Tensor
    errors: dict[int, str]


def encoded_rows(file: Path, table: pd.DataFrame, predictor: Predictor) -> EncodedTable:
    """Encode the rows of a table that was read from a file, except those with a value that cannot be used.

    Raises:
        InputError: a column cannot be used at all.
    """
    errors: dict[int, str] = {}

    def encoded(part: pd.DataFrame) -> torch.Tensor:
        try:
            columns = predictor.encode(part)
        except UnusableCells as error:  # of one column; the other rows may have some in another one
            errors.update(error.reasons())
            return encoded(part.drop(index=error.cells.index))
        assert columns is not None
        return columns

    with naming(str(file)):
        parts = [encoded(table.iloc[start : start + CHUNK]) for start in range(0, max(1, len(table)), CHUNK)]
    return EncodedTable(table.index.drop([*errors]).tolist(), torch.cat(parts), errors)


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
        InputError: there is no table, it lacks a column, or two rows have the same path.
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
        encoded = encoded_rows(file, table, predictor)
        paths = (f"{root}/" + table[PATH].astype("str")).to_dict()
        self.name, self.columns = file.name, encoded.columns
        self.place_of = {paths[row]: place for place, row in enumerate(encoded.rows)}
        self.errors = {paths[row]: f"the table {file.name} {reason}" for row, reason in encoded.errors.items()}

    def error(self, path: str) -> str:
        """Return why there are no columns for an absolute path, or an empty string if there are."""
        return "" if path in self.place_of else self.errors.get(path, f"the table {self.name} has no row for it")

    def __getitem__(self, paths: list[str]) -> torch.Tensor:
        """Return the rows [n, m + k] of absolute paths."""
        return self.columns[[self.place_of[path] for path in paths]]
