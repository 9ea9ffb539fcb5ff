"""Scan a source: examine every file, quarantine what cannot be used, and give each image its label, split and fold."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.core.code_digest import closure, digest
from headstart.core.errors import InputError
from headstart.core.progress import track
from headstart.core.text import SHOWN, listing, printable
from headstart.images.decode import SIGNED
from headstart.images.limits import Limits
from headstart.images.whites import Whites, floating_white, integer_white, whites_of
from headstart.ingest import splits
from headstart.ingest.conflicts import Labelled, as_problems, conflicts
from headstart.ingest.listing import Listing
from headstart.ingest.near_duplicates import leaks
from headstart.ingest.problems import Problem, refuse
from headstart.ingest.scan_state import ScanState, scan_state
from headstart.ingest.tree import Tree
from headstart.ingest.workers import examine_all
from headstart.manifest import COLUMNS
from headstart.targets.labels import LabelFormat

REMEMBER = 2_000  # answers kept in one transaction, which a killed scan need not repeat
FIELDS = ("key", "width", "height", "bytes", "format", "mode", "orientation", "phash", "peak")
HOUNSFIELD = "apply a window and save 8 bits, e.g. soft tissue: 255 * np.clip((hounsfield + 160) / 400, 0, 1)"


@dataclass(frozen=True)
class Scan:
    """The result of a scan.

    Args:
        manifest: a row per image, columns `manifest.COLUMNS` and the source's own.
        quarantine: path, reason.
        notes: path (empty for the source as a whole), kind ("ignored" or a kind of warning), text.
        leaks: near copies across splits, see `near_duplicates.leaks`.
        rescued: classes that got an image back into train.
        format: how the labels are written.
        files: files in the folder.
        reread: files that this scan read.
        unchanged: files that it did not read, because an earlier scan did.
    """

    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    notes: pd.DataFrame
    leaks: pd.DataFrame
    rescued: list[str]
    format: LabelFormat
    files: int
    reread: int
    unchanged: int


@dataclass(frozen=True)
class SplitRule:
    """The rule that assigns splits; see `splits.assign`."""

    seed: int
    valid_fraction: float
    test_fraction: float
    folds: int
    fold: int | Literal["none"]


@dataclass(frozen=True)
class ScanSettings:
    """The settings of a scan; see params.yaml, section data.

    Args:
        limits: the limits of an image.
        rule: the rule that assigns splits.
        max_quarantined: the largest share of files that may be unusable.
        on_label_conflict: "refuse" or "quarantine" the same bytes under two labels.
        near_duplicates: "exclude" or "keep" training images that nearly copy a validation or test image.
        timeout: seconds to decode one file.
        workers: the number of processes that read, and of threads that compare.
        state: the file that keeps the answers for unchanged files.
    """

    limits: Limits
    rule: SplitRule
    max_quarantined: float
    on_label_conflict: str
    near_duplicates: str
    timeout: float
    workers: int
    state: Path


def scan(tree: Tree, found: Listing, settings: ScanSettings, expected: Mapping[str, str] | None = None) -> Scan:
    """Hash and fully decode every file of a listing, and give each image its split.

    Args:
        expected: SHA-256 of files by path, such as the present manifest's. If it is given, even empty, every file is read, and
            refused if its bytes differ from this or from the state.

    Raises:
        InputError: the listing has problems, too many files are unusable, a class has no usable file, the same bytes have
            two labels, a file has disappeared, or bytes are not as expected.
    """
    answers, reread = _answers(tree, found, settings, expected)
    _refuse_signed(tree, found, answers)
    frame, quarantine, notes = _sorted_out(found, answers)
    notes += _range_notes(frame)
    frame, clashes, problems = _settle_labels(frame, settings.on_label_conflict)
    quarantine += clashes
    usable = set(found.format.exploded(frame)["label"])
    refuse(tree.root, [*problems, *_unusable(tree, found, quarantine, settings.max_quarantined, usable)])
    frame, copies, rescued, apart = _split(frame, settings, found.format)
    splits.check(tree.root, frame, found.format)
    notes += [(path, "group", "excluded: its group also has images in a split that takes precedence") for path in apart]
    kept = set(frame["path"])
    noted = [note for note in notes if note[1] == "ignored" or note[0] in kept]
    return Scan(
        _finish(frame, found.extra),
        _table(quarantine, ["path", "reason"]),
        _table([*found.remarks, *noted], ["path", "kind", "text"]),
        copies,
        rescued,
        found.format,
        len(tree.files),
        reread,
        len(found.entries) - reread,
    )


def _split(
    frame: pd.DataFrame, settings: ScanSettings, labels: LabelFormat
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str]]:
    """Return the frame with splits and folds, near copies, classes that got an image back, paths excluded by group."""
    assigned, folds, rescued = splits.assign(frame, labels, **settings.rule.__dict__)
    frame = frame.assign(split=assigned, fold=np.array(folds, np.int16))
    apart = list(frame.loc[splits.split_by_group(frame), "path"])
    copies = leaks(frame, _thumbs(frame), settings.workers)
    if settings.near_duplicates == "exclude":
        excluded = set(copies.loc[copies["split"] == "train", "path"])
        frame["split"] = frame["split"].where(~frame["path"].isin(excluded), splits.EXCLUDED)
    return frame, copies, rescued, apart


def _sorted_out(
    found: Listing, answers: list[dict[str, Any]]
) -> tuple[pd.DataFrame, list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Return a row for each usable file, (path, reason) of the others, and (path, kind, text) of notes."""
    quarantine = list(found.stray)
    notes = [(path, "ignored", reason) for path, reason in found.ignored] + found.warned
    rows: list[dict[str, Any]] = []
    for entry, answer in zip(found.entries, answers, strict=True):
        reason = answer.get("reason") or answer.get("failed")
        if reason:
            quarantine.append((entry.path, reason))
            continue
        source = {"path": entry.path, "label": entry.label, "group": entry.group, "declared": entry.split}
        rows.append({name: answer[name] for name in (*FIELDS, "thumb")} | source)
        notes += [(entry.path, kind, text) for kind, text in answer["notes"]]
    return pd.DataFrame(rows, columns=[*FIELDS, "thumb", "path", "label", "group", "declared"]), quarantine, notes


def _refuse_signed(tree: Tree, found: Listing, answers: list[dict[str, Any]]) -> None:
    """Refuse signed values: only the user can choose which range of them becomes visible."""
    signed = [
        f"{entry.path}: {answer['reason']}"
        for entry, answer in zip(found.entries, answers, strict=True)
        if str(answer.get("reason", "")).startswith(SIGNED)
    ]
    if signed:
        raise InputError(
            f"{tree.root}: images with signed pixels: {len(signed):,}\n    {listing(signed)}",
            wanted="0 (black) and up",
            fix=HOUNSFIELD,
        )


def _range_notes(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return (path, kind, text) for each gray image of more than 8 bits whose scale differs from its kind's full range."""
    whites, notes = whites_of(frame), []
    deep = frame[frame["peak"] > 0]
    for path, mode, peak in zip(deep["path"], deep["mode"], deep["peak"], strict=True):
        floating = mode == "F"
        white = whites.floating if floating else whites.integer
        own = floating_white(peak) if floating else integer_white(peak)
        if white != (Whites().floating if floating else Whites().integer):
            text = f"values up to {peak:,.6g}: {white:,.6g} is white, as in all images of this source"
            notes.append((path, "range", text))
        elif own < white:
            text = f"values up to {peak:,.6g} where {white:,.6g} is white, as other images of this source use it"
            notes.append((path, "dark", text))
    return notes


def _table(rows: list[Any], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(sorted(rows), columns=columns)


def _finish(frame: pd.DataFrame, extra: pd.DataFrame) -> pd.DataFrame:
    """Return the manifest's columns in order, then the source's own."""
    frame = frame.astype({"width": "int32", "height": "int32", "orientation": "int8", "bytes": "int64", "peak": "float32"})
    ours = frame[list(COLUMNS)].sort_values("path", ignore_index=True)
    if extra.empty:
        return ours
    return pd.concat([ours, extra.loc[list(ours["path"])].reset_index(drop=True)], axis=1)


def _thumbs(frame: pd.DataFrame) -> NDArray[np.uint8]:
    data = b"".join(base64.b64decode(text) for text in frame["thumb"].tolist())
    return np.frombuffer(data, np.uint8).reshape(len(frame), -1)


def _answers(
    tree: Tree, found: Listing, settings: ScanSettings, expected: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the result of `examine` for each entry, in order, and how many files were read (all, if hashes are expected)."""
    now_ns = time.time_ns()
    with scan_state(settings.state, _namespace(settings.limits)) as known:
        status = {entry.path: tree.files[entry.path].status for entry in found.entries}
        kept = known.known((f"{tree.root}/{path}", one) for path, one in status.items())
        answers = dict(zip(status, kept, strict=True))
        _refuse_unread(tree, found, settings, answers)  # before any file is read
        unknown = [path for path, answer in answers.items() if expected is not None or answer is None]
        changed: list[str] = []
        fresh: list[tuple[str, os.stat_result, dict[str, Any]]] = []
        for path, answer in _examined(tree, unknown, settings):
            before, answers[path] = answers[path], answer
            if "failed" in answer:  # the system may be at fault: try again in the next scan
                if before:
                    known.forget([f"{tree.root}/{path}"])
                continue
            keys = {before["key"]} if before else set()
            if expected and path in expected:
                keys.add(expected[path])
            if keys - {answer["key"]}:
                changed.append(path)
            fresh.append((f"{tree.root}/{path}", status[path], answer))
            if len(fresh) >= REMEMBER:
                known.remember(fresh, now_ns)
                fresh.clear()
        _refuse_changed(tree, changed, known)
        known.remember(fresh, now_ns)
    return [answer for answer in answers.values() if answer is not None], len(unknown)


def _examined(tree: Tree, paths: list[str], settings: ScanSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    files = [f"{tree.root}/{path}" for path in paths]
    found = examine_all(files, settings.limits, settings.timeout, settings.workers)
    answers = track(found, "reading images", len(paths))
    for path, answer in zip(paths, answers, strict=True):
        if "gone" in answer:
            raise InputError(f"{tree.root / path} has disappeared since the folder was listed", fix="run again")
        yield path, answer


def _refuse_changed(tree: Tree, changed: list[str], known: ScanState) -> None:
    if changed:
        known.forget(f"{tree.root}/{path}" for path in changed)
        raise InputError(
            f"{tree.root}: the bytes of {len(changed)} file(s) changed since the manifest was made:\n    {listing(changed)}",
            fix="restore them from a copy, or accept the new bytes: python -m flows.pipeline --force link_data",
        )


def _namespace(limits: Limits) -> str:
    """Return a hash of all that an answer depends on, except the file: limits, code and libraries."""
    versions = [importlib.metadata.version(name) for name in ("pillow", "simplejpeg", "numpy", "scipy", "ImageHash")]
    code = digest(closure("headstart.ingest.worker", without=("headstart/core",)))
    return hashlib.sha256(json.dumps([limits.as_dict(), versions, code]).encode()).hexdigest()


def _refuse_unread(tree: Tree, found: Listing, settings: ScanSettings, known: Mapping[str, dict[str, Any] | None]) -> None:
    """Refuse a source for its layout, and for the same bytes under two labels, before all its files are read."""
    look = settings.on_label_conflict == "refuse"
    unusable = {path for path, answer in known.items() if answer and "reason" in answer}
    files = [
        Labelled(entry.path, entry.label, tree.files[entry.path].status.st_size)
        for entry in found.entries
        if look and entry.path not in unusable
    ]
    groups = conflicts(str(tree.root), files, {path: answer["key"] for path, answer in known.items() if answer})
    unsure = [group for group in groups if not any(known.get(file.path) for file in group)]
    firsts = [f"{tree.root}/{group[0].path}" for group in unsure]
    answers = examine_all(firsts, settings.limits, settings.timeout, settings.workers) if unsure else ()
    junk = {group[0].path for group, answer in zip(unsure, answers, strict=True) if "width" not in answer}
    refuse(tree.root, [*found.problems, *as_problems([group for group in groups if group[0].path not in junk])])


def _settle_labels(frame: pd.DataFrame, on_conflict: str) -> tuple[pd.DataFrame, list[tuple[str, str]], list[Problem]]:
    """Quarantine or refuse the same bytes under two labels, which the check before the scan may have missed."""
    clashing = frame[frame.groupby("key")["label"].transform("nunique") > 1].sort_values(["key", "path"])
    if clashing.empty:
        return frame, [], []
    if on_conflict == "refuse":
        columns = (clashing[name].tolist() for name in ("key", "path", "label", "bytes"))
        groups: dict[str, list[Labelled]] = defaultdict(list)
        for key, *file in zip(*columns, strict=True):
            groups[key].append(Labelled(*file))
        return frame, [], as_problems([*groups.values()])
    labels = clashing.groupby("key")["label"].transform(lambda own: ", ".join(sorted(set(own))))
    reasons = [
        (str(path), f"the same bytes under the labels {own}") for path, own in zip(clashing["path"], labels, strict=True)
    ]
    return frame.drop(clashing.index).reset_index(drop=True), reasons, []


def _unusable(tree: Tree, found: Listing, quarantine: list[tuple[str, str]], limit: float, usable: set[str]) -> list[Problem]:
    """Return the problems of unusable files. A file that is not named like an image (a licence) does not count."""
    counted = [row for row in quarantine if row[0] not in found.uncounted]
    total = len(found.entries) + len(found.stray) - len(found.uncounted)
    lines = [f"{path!r}: {reason}" for path, reason in sorted(quarantine)]
    problems = []
    if len(counted) > limit * total + 1e-9:  # rounding: 29 of 100 must be 0.29
        problems.append(
            Problem(
                f"{len(counted)} of {total} files in {tree.root} cannot be used:\n    {listing(lines)}",
                wanted=f"at most {limit:.1%} (data.max_quarantined)",
                fix="repair or remove these files, or raise data.max_quarantined",
            )
        )
    emptied = sorted({name for entry in found.entries for name in found.format.classes(entry.label)} - usable)
    if emptied:
        text = f"no usable file is left of class {', '.join(map(printable, emptied[:SHOWN]))} in {tree.root}"
        more = "" if problems else f":\n    {listing(lines)}"
        problems.append(Problem(text + more, fix="repair these files, add others, or remove the class"))
    return problems
