"""What the files of a source are: the result of recognising its layout."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from headstart.ingest.problems import Problem
from headstart.targets.labels import LabelFormat


@dataclass(frozen=True)
class Entry:
    """One file to learn from. Split and group are empty if the source names none."""

    path: str
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """What every file of a source is.

    Args:
        entries: images, in path order.
        stray: (path, reason) of files to quarantine without reading them.
        ignored: (path, reason) of files that are no part of the data set.
        warned: (path, kind, text) of notes about single files.
        remarks: (path, kind, text) of notes about the source, its folders or its labels file.
        problems: the reasons to refuse the source.
        uncounted: files that are not named like images. If they are none, they do not count as unusable.
        format: how the labels are written; its kind is decided.
        extra: other columns of a labels file, indexed by path.
    """

    entries: list[Entry] = field(default_factory=list)
    stray: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    warned: list[tuple[str, str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    uncounted: frozenset[str] = frozenset()
    format: LabelFormat = LabelFormat("single_label")
    extra: pd.DataFrame = field(default_factory=pd.DataFrame)
