"""What a new head looks like, by the inputs and params.yaml."""

from __future__ import annotations

from collections.abc import Iterable

from headstart.activations.inputs import HeadInputs
from headstart.core.params import ColumnHead
from headstart.models.column_head import ColumnSpec, bin_edges
from headstart.models.heads import HeadSpec

TIME = " elapsed"  # ends the name of a date's seconds since 1970


def head_spec(inputs: HeadInputs, kind: str, outputs: int, settings: ColumnHead, train_keys: Iterable[str]) -> HeadSpec:
    """Return how to build a head for these inputs.

    Args:
        kind: "linear" or "mlp"; with columns, "linear" has no hidden layers.
        settings: params.yaml, section train_head.columns.
        train_keys: of the training rows, whose quantiles become the bins of numbers.
    """
    encoders = inputs.encoders()
    if encoders is None or inputs.columns is None:
        return HeadSpec(kind, inputs.width, outputs)
    bins = [settings.time_bins if name.endswith(TIME) else settings.bins for name in encoders.continuous_names]
    columns = ColumnSpec(
        edges=bin_edges(inputs.numbers(train_keys), bins) if bins else (),
        cardinalities=encoders.cardinalities,
        hidden=tuple(inputs.columns.meta["unknown"]),
        layers=() if kind == "linear" else tuple(settings.layers),
        dropouts=() if kind == "linear" else tuple(settings.dropouts),
        embedding_dropout=settings.embedding_dropout,
        embedding=settings.embedding,
        members=settings.members,
    )
    return HeadSpec(kind, inputs.width, outputs, columns)
