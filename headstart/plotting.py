"""Colours, safe labels and reproducible PNG bytes for every picture."""

from __future__ import annotations

import io
import warnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, QUIET = "#1f2933", "#0b6e99", "#9aa5b1"
LABEL_LENGTH = 18


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, without a time or a version in it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks a name's script: boxes are drawn
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def label(name: str) -> str:
    """Return a name from outside as a tick label: one short line, without a `$` that would start a formula."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    short = text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "…"
    return short.replace("$", r"\$")


def plain_frame(axes: Axes) -> None:
    """Remove the upper and the right line of the axes."""
    axes.spines[["top", "right"]].set_visible(False)
