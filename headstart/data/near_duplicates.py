"""Near copies of an image: recompressed or resized, found by a perceptual hash and confirmed on a small thumbnail.

The hash (64 bits of ImageHash's DCT hash) alone takes look-alikes for copies, such as two digits; the thumbnail
(8 x 8 pixels in colour) alone takes images of one layout and other detail. Both together were measured
(`python -m bench.duplicates`, docs/measurements.md).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

HASH_DISTANCE = 8  # bits of 64
FAINT, FAINT_HASH_DISTANCE, FAINT_DIFFERENCE = 8.0, 20, 0.75  # with little contrast the hash is noisy, the thumbnail is not
CONTRAST_SHARE = 0.12  # root mean square difference of thumbnails, as a share of their contrast …
NOISE = 2.0  # … and this many gray levels of 255, less where there is hardly any contrast
BLOCK_PAIRS = 4_000_000  # pairs compared at once: 32 MB


def near_duplicates(
    left_hash_n: NDArray[np.uint64],
    left_thumb_nd: NDArray[np.uint8],
    right_hash_m: NDArray[np.uint64],
    right_thumb_md: NDArray[np.uint8],
) -> pd.DataFrame:
    """All pairs of a left and a right image that are near copies.

    Args:
        left_hash_n, right_hash_m: perceptual hashes, [n] and [m].
        left_thumb_nd, right_thumb_md: thumbnails, flattened, [n, d] and [m, d].

    Returns:
        Columns left, right (indices), bits (hash distance), difference (of the thumbnails, gray levels).
    """
    left_contrast_n, right_contrast_m = _contrast(left_thumb_nd), _contrast(right_thumb_md)
    sharp = _pairs_within(HASH_DISTANCE, left_hash_n, right_hash_m)
    faint_left, faint_right = np.flatnonzero(left_contrast_n <= FAINT), np.flatnonzero(right_contrast_m <= FAINT)
    faint = _pairs_within(FAINT_HASH_DISTANCE, left_hash_n[faint_left], right_hash_m[faint_right])
    pairs_p2 = np.concatenate([sharp, np.stack([faint_left[faint[:, 0]], faint_right[faint[:, 1]]], 1)])
    left, right = pairs_p2.T
    contrast = np.minimum(left_contrast_n[left], right_contrast_m[right])
    # thumbnails differ by no less than their means do: spares looking at most pairs
    worth = np.abs(left_thumb_nd.mean(1)[left] - right_thumb_md.mean(1)[right]) <= CONTRAST_SHARE * contrast + NOISE
    left, right, contrast = left[worth], right[worth], contrast[worth]
    bits = np.bitwise_count(left_hash_n[left] ^ right_hash_m[right]).astype(np.int64)
    difference = np.sqrt(((left_thumb_nd[left].astype(np.float32) - right_thumb_md[right]) ** 2).mean(1))
    found = pd.DataFrame({"left": left, "right": right, "bits": bits, "difference": difference.round(2)})
    return found[_same(bits, difference, contrast)].drop_duplicates(ignore_index=True)


def _same(bits_p: NDArray[np.int64], difference_p: NDArray[np.float32], contrast_p: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of p pairs are near copies."""
    limit_p = CONTRAST_SHARE * contrast_p
    sharp_p = (bits_p <= HASH_DISTANCE) & (difference_p <= limit_p + np.minimum(NOISE, contrast_p / 4))
    return sharp_p | (difference_p <= np.minimum(limit_p, FAINT_DIFFERENCE))


def _contrast(thumb_nd: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Root mean square deviation of each channel from its own mean: a flat colour has none."""
    pixels = thumb_nd.reshape(len(thumb_nd), thumb_nd.shape[1] // 3, 3)
    contrast: NDArray[np.float32] = np.sqrt(pixels.var(axis=1, dtype=np.float32).mean(axis=1))
    return contrast


def _pairs_within(distance: int, left_n: NDArray[np.uint64], right_m: NDArray[np.uint64]) -> NDArray[np.int64]:
    """All pairs [p, 2] of hashes that differ in at most `distance` bits."""
    step = max(1, BLOCK_PAIRS // max(1, len(right_m)))
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(left_n), step):
        near_bm = np.bitwise_count(left_n[start : start + step, None] ^ right_m[None]) <= distance
        found.append(np.argwhere(near_bm) + (start, 0))
    return np.concatenate(found)


def leaks(frame: pd.DataFrame, thumb_nd: NDArray[np.uint8]) -> pd.DataFrame:
    """Training images that nearly copy a validation or test image, and validation images that copy a test image.

    Args:
        frame: columns path, label, split, phash.
        thumb_nd: their thumbnails, in the frame's order.

    Returns:
        One row per image and its nearest counterpart: path, label, split, of, of_label, of_split, bits, difference.
    """
    hash_n = np.array([int(text, 16) for text in frame["phash"].tolist()], np.uint64)
    names = frame[["path", "label", "split"]].reset_index(drop=True)
    found = []
    for own, others in (("train", ("valid", "test")), ("valid", ("test",))):
        left, right = np.flatnonzero(names["split"] == own), np.flatnonzero(names["split"].isin(others))
        pairs = near_duplicates(hash_n[left], thumb_nd[left], hash_n[right], thumb_nd[right])
        nearest = pairs.sort_values(["left", "difference", "bits", "right"]).drop_duplicates("left")
        mine = names.iloc[left[nearest["left"].to_numpy(int)]].reset_index(drop=True)
        other = names.iloc[right[nearest["right"].to_numpy(int)]].reset_index(drop=True)
        other = other.rename(columns={"path": "of", "label": "of_label", "split": "of_split"})
        found.append(pd.concat([mine, other, nearest[["bits", "difference"]].reset_index(drop=True)], axis=1))
    return pd.concat(found, ignore_index=True)
