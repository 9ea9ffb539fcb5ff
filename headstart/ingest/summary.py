"""The data report: what happened to every file, the sizes of classes and splits, and pictures of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from posixpath import basename
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from headstart.images.kinds import why_sidecar
from headstart.images.reading import read_pixels
from headstart.images.whites import Whites, whites_of
from headstart.ingest.scan import Scan
from headstart.ingest.sources import extensions
from headstart.ingest.splits import EXCLUDED, unusual_shares
from headstart.manifest import SPLITS, has_images
from headstart.plotting import ACCENT, QUIET, label, plain_frame, png

NORMALISED = {
    "1": "1-bit to RGB",
    "L": "gray to RGB",
    "LA": "gray with alpha to RGB",
    "P": "palette to RGB",
    "PA": "palette with alpha to RGB",
    "RGBA": "alpha on white",
    "CMYK": "CMYK to RGB",
    "I": "16 bits to 8",
    "F": "floating point to 8 bits",
}
COLOURS = {"train": ACCENT, "valid": "#b45309", "test": "#15803d", EXCLUDED: QUIET}
MAX_BARS = 40
ROWS, SAMPLES, SAMPLE_SIDE = 10, 8, 96  # rows, pictures in each, pixels
LISTED = 20


def summarise(scan: Scan) -> dict[str, Any]:
    """Return the counts of a scan as JSON values; `files` is the sum of images (or rows), quarantined and ignored."""
    manifest, kinds = scan.manifest, Counter(scan.notes["kind"])
    ignored = kinds.pop("ignored", 0)
    assert scan.files == len(manifest) + len(scan.quarantine) + ignored
    by_class = scan.format.exploded(manifest)
    unit = "images" if has_images(manifest) else "rows"
    unusual = unusual_shares(by_class)
    near = scan.leaks[scan.leaks["split"] == "train"]
    excluded = int((manifest["split"] == EXCLUDED).sum())
    return {
        "files": scan.files,
        "unit": unit,
        unit: len(manifest),
        "quarantined": len(scan.quarantine),
        "ignored": ignored,
        "ignored_by_extension": _sidecars(scan.notes),
        "warned": dict(sorted(kinds.items())),
        "normalised": _normalised(manifest),
        "target": scan.format.kind,
        "classes": int(by_class["label"].nunique()),
        "groups": int(manifest.loc[manifest["group"] != "", "group"].nunique()),
        "splits": {split: int((manifest["split"] == split).sum()) for split in (*SPLITS, EXCLUDED)},
        "folds": {str(fold): int((manifest["fold"] == fold).sum()) for fold in sorted(set(manifest["fold"]) - {-1})},
        "exact_copies": len(manifest) - int(manifest["key"].nunique()),
        "excluded_groups": kinds["group"],
        "excluded_exact": excluded
        - kinds["group"]
        - int((manifest["path"].isin(near["path"]) & (manifest["split"] == EXCLUDED)).sum()),
        "near_copies_in_train": len(near),
        "near_copies_in_valid": len(scan.leaks) - len(near),
        "near_copies_with_another_label": int((scan.leaks["label"] != scan.leaks["of_label"]).sum()),
        **{f"classes_without_{split}": without(by_class, split) for split in ("valid", "test")},
        "classes_kept_in_train": scan.rescued[:LISTED],
        "unusual_shares": unusual[:LISTED],
    }


def _sidecars(notes: pd.DataFrame) -> dict[str, int]:
    """Count the files of each extension that is not an image's."""
    ignored = notes[notes["kind"] == "ignored"]
    pairs = zip(ignored["path"].tolist(), ignored["text"].tolist(), strict=True)
    return dict(sorted(extensions(path for path, text in pairs if text == why_sidecar(basename(path))).items()))


def without(by_class: pd.DataFrame, split: str) -> list[str]:
    """Return the classes without an image in a split, which therefore says nothing about them."""
    return sorted(set(by_class["label"]) - set(by_class.loc[by_class["split"] == split, "label"]))


def _normalised(manifest: pd.DataFrame) -> dict[str, int]:
    counts: Counter[str] = Counter()
    if not has_images(manifest):
        return {}
    for mode, number in manifest["mode"].value_counts().items():
        if mode != "RGB":
            kind = "I" if str(mode).startswith("I;16") else str(mode)
            counts[NORMALISED.get(kind, f"{mode} to RGB")] += int(number)
    turned = int((manifest["orientation"] != 1).sum())
    return dict(sorted(counts.items())) | ({"EXIF orientation applied": turned} if turned else {})


def pictures(scan: Scan, source: Path, max_pixels: int) -> dict[str, bytes]:
    """Draw labels.png and, where there are images, sizes.png and samples.png."""
    by_label = scan.format.banded(scan.manifest)
    balance = class_balance(by_label) if scan.format.has_classes else number_histogram(scan.manifest)
    if not has_images(scan.manifest):
        return {"labels.png": balance}
    return {
        "labels.png": balance,
        "sizes.png": size_histogram(scan.manifest),
        "samples.png": sample_grid(by_label, source, max_pixels),
    }


def number_histogram(manifest: pd.DataFrame) -> bytes:
    """Draw the histogram of the labels' numbers, by split."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    values = manifest["label"].astype(float)
    parts = {split: values[manifest["split"] == split] for split in COLOURS if (manifest["split"] == split).any()}
    differ = np.ptp(values) > 1e-9 * np.abs(values).max()  # by more than rounding: bins narrower than that are refused
    axes.hist(
        [*parts.values()], bins=40 if differ else 1, stacked=True, color=[COLOURS[split] for split in parts], label=[*parts]
    )
    axes.set(xlabel="label", ylabel="rows")
    axes.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    plain_frame(axes)
    return png(figure)


def class_balance(manifest: pd.DataFrame) -> bytes:
    """Draw the number of images of each class by split; for many classes, a curve of their sizes."""
    counts = pd.crosstab(manifest["label"], manifest["split"]).reindex(columns=list(COLOURS), fill_value=0)
    if len(counts) > MAX_BARS:
        return _many_classes(counts.sum(axis=1))
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(counts)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(counts))
    for split, colour in COLOURS.items():
        if counts[split].any():
            axes.barh(range(len(counts)), counts[split], left=left, color=colour, label=split.replace("_", " "))
        left += counts[split].to_numpy()
    axes.set_yticks(range(len(counts)), [label(str(name)) for name in counts.index])
    axes.invert_yaxis()
    axes.set(xlabel="images")
    axes.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    plain_frame(axes)
    return png(figure)


def _many_classes(sizes: pd.Series) -> bytes:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, len(sizes) + 1), np.sort(sizes.to_numpy())[::-1], color=ACCENT)
    axes.set(xlabel=f"class, of {len(sizes):,}, largest first", ylabel="images", ylim=(0, None))
    plain_frame(axes)
    return png(figure)


def size_histogram(manifest: pd.DataFrame) -> bytes:
    """Draw histograms of the shorter sides in pixels and of the proportions."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shorter = manifest[["width", "height"]].min(axis=1).to_numpy()
    proportion = (manifest["width"] / manifest["height"]).to_numpy()
    for axes, values, text in ((left, shorter, "shorter side, pixels"), (right, proportion, "width / height")):
        axes.hist(values, bins=np.geomspace(values.min() * 0.8, values.max() * 1.25, 30), color=ACCENT)
        axes.set(xscale="log", xlabel=text, ylabel="images")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis(ScalarFormatter())
        axes.tick_params(axis="x", which="both", labelsize=7, rotation=45)
        plain_frame(axes)
    return png(figure)


def sample_grid(manifest: pd.DataFrame, source: Path, max_pixels: int) -> bytes:
    """Draw up to eight images of each of up to ten classes as the pipeline sees them, chosen by their hash."""
    names = list(dict.fromkeys(manifest.sort_values("label", kind="stable")["label"]))
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(ROWS, len(names))).round().astype(int))]
    whites = whites_of(manifest)
    rows = [_sample_row(manifest[manifest["label"] == name], source, max_pixels, whites) for name in chosen]
    figure = Figure(figsize=(7, 0.75 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.concatenate(rows))
    axes.set_yticks([SAMPLE_SIDE * (i + 0.5) for i in range(len(rows))], [label(name) for name in chosen])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png(figure)


def _sample_row(images: pd.DataFrame, source: Path, max_pixels: int, whites: Whites) -> NDArray[np.uint8]:
    row = np.full((SAMPLE_SIDE, SAMPLE_SIDE * SAMPLES, 3), 255, np.uint8)
    first = images.drop_duplicates("key").sort_values("key").head(SAMPLES)
    for i, (path, key) in enumerate(zip(first["path"], first["key"], strict=True)):
        picture = Image.fromarray(read_pixels(source, path, key, max_pixels, whites))
        side = SAMPLE_SIDE - 4
        small = np.asarray(ImageOps.pad(picture, (side, side), color=(255, 255, 255)))
        row[2:-2, SAMPLE_SIDE * i + 2 : SAMPLE_SIDE * (i + 1) - 2] = small
    return row
