"""How a source writes its labels: one class, several classes, or a number. This half of a target needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from headstart.core.errors import InputError
from headstart.core.text import printable
from headstart.manifest import class_order

Kind = Literal["single_label", "multi_label", "number"]
NONE = "none"
MARGIN = 0.1  # of the training range, added at both ends of a bounded number: a sigmoid never reaches its ends
MANY_CLASSES = 100  # whole numbers as labels: so many classes are more likely a quantity
LARGEST = 1e100  # squares of larger numbers are no float64
NUMBERS_SEEN = 2  # fewest different numbers to learn from


class BadLabel(ValueError):
    """The error for a label that its kind of target cannot use: what was found, and what is wanted."""

    def __init__(self, found: str, wanted: str = "") -> None:
        super().__init__(found)
        self.found, self.wanted = found, wanted


@dataclass(frozen=True)
class LabelFormat:
    """How the labels of a source are written.

    Args:
        kind: the kind of target; "auto" before the source has been seen.
        separator: what stands between the classes of one label, if there may be several.
        columns: the 0/1 columns that give the classes, one for each; empty if one column has them all.
    """

    kind: Kind | Literal["auto"] = "auto"
    separator: str = NONE
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        joined = [name for name in self.columns if self.joiner in name]
        if joined:
            raise InputError(
                f"data.label_columns: {joined[0]!r} contains {self.joiner!r}, which stands between the classes of a label",
                fix="set data.label_separator to a text that is in none of the names",
            )

    @property
    def joiner(self) -> str:
        """Return what stands between the classes in the manifest's labels."""
        return self.separator if self.separator != NONE else "|" if self.columns else " "

    @property
    def has_classes(self) -> bool:
        """Return whether labels name classes; else they are numbers."""
        return self.kind != "number"

    @property
    def several(self) -> bool:
        """Return whether a label may name several classes, as far as it is known."""
        return self.kind in ("auto", "multi_label")

    def settled(self, label_column: str, labels: Iterable[str]) -> LabelFormat:
        """Return the format with its kind decided.

        `auto` takes several classes if a separator or 0/1 columns are set, or the column is called tags; a number if all
        labels but the empty ones are numbers and some have a fraction; else one class.
        """
        if self.kind != "auto":
            return self
        if self.columns or self.separator != NONE or label_column == "tags":
            return replace(self, kind="multi_label")
        return replace(self, kind="number" if _have_fractions(labels) else "single_label")

    def read(self, text: str) -> str:
        """Return a label as the manifest keeps it: equal labels are equal texts.

        Raises:
            BadLabel: it is empty, or not a finite number.
        """
        if self.kind == "multi_label":
            return self.write(part.strip() for part in text.split(self.joiner))
        if not text.strip():
            raise BadLabel("empty")
        return _number_text(text) if self.kind == "number" else text

    def classes(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names; none for a number."""
        if self.kind == "number":
            return ()
        if self.kind == "single_label":
            return (label,)
        return tuple(part for part in label.split(self.joiner) if part)

    def write(self, classes: Iterable[str]) -> str:
        """Return the label that names these classes, in the order of their names."""
        return self.joiner.join(sorted({one for one in classes if one}))

    def flagged(self, flags: Mapping[str, Any]) -> str:
        """Return the label that 0/1 columns give.

        Raises:
            BadLabel: a value is neither 0 nor 1; `found` begins with its column.
        """
        return self.write(name for name, value in flags.items() if _flag(name, value))

    def too_few(self, labels: Iterable[str]) -> str:
        """Return why these labels give nothing to learn, or an empty string."""
        seen = set(labels)
        if self.kind == "number":
            return f"fewer than {NUMBERS_SEEN} different numbers" if len(seen) < NUMBERS_SEEN else ""
        if self.kind == "multi_label":
            same = "no label for any" if seen == {""} else f"the same label {min(seen, default='')!r} for all"
            return same if len(seen) == 1 else "no labels" if not seen else ""
        return "" if len(seen) > 1 else f"only one class ({min(seen)!r})" if seen else "no images in class folders"

    def remark(self, labels: Iterable[str]) -> str:
        """Return a note about labels that may be meant otherwise, or an empty string."""
        seen = set(labels)
        if self.kind == "single_label" and len(seen) > MANY_CLASSES and all(one.lstrip("-").isdecimal() for one in seen):
            return f"the labels are {len(seen):,} whole numbers, each a class; data.target: number learns them as numbers"
        return ""

    def exploded(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a manifest once for each of their classes, which `label` then holds."""
        if self.kind == "single_label":
            return frame
        classes = pd.Series([list(self.classes(one)) for one in frame["label"]], frame.index, dtype=object)
        return frame.assign(label=classes).explode("label").dropna(subset="label")

    def banded(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return `exploded` rows or, for numbers, all rows with `label` as one of up to ten ranges with equally many rows."""
        if self.kind != "number":
            return self.exploded(frame)
        bands = pd.qcut(frame["label"].astype(float), 10, duplicates="drop").cat
        names = [f"{one.left:.4g} to {one.right:.4g}" for one in bands.categories]
        if len(set(names)) < len(names):  # a narrow range of large numbers
            names = [str(one) for one in bands.categories]
        return frame.assign(label=bands.rename_categories(names))

    def describe(self, manifest: pd.DataFrame, log: bool = False, bound: bool = False) -> dict[str, Any]:
        """Return what a network needs to know of a manifest's labels, as JSON values; see `target.read_target`.

        Args:
            log: learn the logarithm of a number.
            bound: keep predicted numbers within the training range and a tenth of it at both ends.

        Raises:
            InputError: a number that is not above zero has no logarithm.
        """
        if self.kind == "number":
            return {"kind": self.kind} | _scale(manifest, log, bound)
        labels = class_order(self.exploded(manifest)["label"])
        return {"kind": self.kind, "classes": labels} | ({"joiner": self.joiner} if self.kind == "multi_label" else {})


AS_SHOWN = LabelFormat()


def _have_fractions(labels: Iterable[str]) -> bool:
    """Return whether all labels but the empty ones are numbers, and some have a fraction."""
    found = False
    for text in labels:
        try:
            value = _number(text) if text.strip() else 0.0
        except BadLabel:
            return False
        found = found or value != int(value)
    return found


def _number(text: str) -> float:
    try:
        value = float(text if "_" not in text else "")  # Python reads 1_000 as a number
    except ValueError:
        raise BadLabel(repr(text), "a number such as 12.5") from None
    if not abs(value) <= LARGEST:
        raise BadLabel(repr(text), "a finite number" if not math.isfinite(value) else f"a number up to {LARGEST:g}")
    return value


def _number_text(text: str) -> str:
    value = _number(text)
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _flag(name: str, value: Any) -> bool:
    text = "" if value is None else str(value).strip().lower()
    if text not in ("0", "1", "0.0", "1.0", "false", "true"):
        raise BadLabel(f"{name}\0{value!r}", "0 or 1")
    return text in ("1", "1.0", "true")


def _scale(manifest: pd.DataFrame, log: bool, bound: bool) -> dict[str, Any]:
    """Return the location, scale and range of the training numbers, after the logarithm if there is one."""
    values = manifest["label"].astype(float).to_numpy()
    if log and (values <= 0).any():
        worst = int(values.argmin())
        raise InputError(
            f"{printable(str(manifest['path'].iloc[worst]))}: the label {manifest['label'].iloc[worst]} has no logarithm",
            wanted="numbers above zero with data.log_target",
            fix="--set data.log_target=false, or take these rows out",
        )
    learned = (np.log(values) if log else values)[(manifest["split"] == "train").to_numpy()]
    low, high = float(learned.min()), float(learned.max())
    span = MARGIN * (high - low)
    return {
        "log": log,
        "mean": float(learned.mean()),
        "deviation": float(learned.std()) if low < high else 1.0,
        "bounds": [low - span, high + span] if bound else None,
    }
