"""Find near copies of an image, such as recompressed or resized ones, by a perceptual hash and a small thumbnail.

The hash (64 bits of ImageHash's DCT hash) alone would mistake similar images, such as two digits, for copies. The thumbnail
(8 x 8 pixels in colour) alone would mistake images of the same layout with different detail. `python -m bench.duplicates`
measures both together (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.core.parallel import ordered_map

HASH_DISTANCE = 8  # bits of 64
FAINT, FAINT_HASH_DISTANCE, FAINT_DIFFERENCE = 8.0, 20, 0.75  # at low contrast the hash is noisy, but the thumbnail is not
CONTRAST_SHARE = 0.12  # root mean square difference of thumbnails, as a share of their contrast …
NOISE = 2.0  # … plus this many gray levels of 255, and less at very low contrast
BLOCK_PAIRS = 4_000_000  # pairs whose hashes are compared at once: 32 MB
BLOCK_THUMBS = 4096  # pairs whose thumbnails are compared at once: 3 MB, which fit a core's cache


def near_duplicates(
    left_hash_n: NDArray[np.uint64],
    left_thumb_nd: NDArray[np.uint8],
    right_hash_m: NDArray[np.uint64],
    right_thumb_md: NDArray[np.uint8],
    workers: int = 1,
) -> Iterator[pd.DataFrame]:
    """Find all pairs of a left and a right image that are near copies, in blocks of left images.

    Args:
        left_hash_n, right_hash_m: perceptual hashes, [n] and [m].
        left_thumb_nd, right_thumb_md: thumbnails, flattened, [n, d] and [m, d].
        workers: threads.

    Returns:
        Tables with the columns left, right (indices), bits (hash distance), difference (of the thumbnails, gray levels).
    """
    left_contrast_n, right_contrast_m = _contrast(left_thumb_nd), _contrast(right_thumb_md)
    left_mean_n, right_mean_m = left_thumb_nd.mean(1), right_thumb_md.mean(1)
    left_nd, right_md = left_thumb_nd.astype(np.float32), right_thumb_md.astype(np.float32)
    faint_right = np.flatnonzero(right_contrast_m <= FAINT)
    step = max(1, BLOCK_PAIRS // max(1, len(right_hash_m)))

    def search(start: int) -> pd.DataFrame:
        block = np.arange(start, min(start + step, len(left_hash_n)))
        faint = block[left_contrast_n[block] <= FAINT]
        sharp_left, sharp = _within(HASH_DISTANCE, left_hash_n[block], right_hash_m)
        faint_left, more = _within(FAINT_HASH_DISTANCE, left_hash_n[faint], right_hash_m[faint_right])
        left = np.concatenate([block[sharp_left], faint[faint_left]])
        right = np.concatenate([sharp, faint_right[more]])
        contrast = np.minimum(left_contrast_n[left], right_contrast_m[right])
        # thumbnails differ at least as much as their means do, which rules out many pairs
        worth = np.abs(left_mean_n[left] - right_mean_m[right]) <= CONTRAST_SHARE * contrast + NOISE
        left, right, contrast = left[worth], right[worth], contrast[worth]
        bits = np.bitwise_count(left_hash_n[left] ^ right_hash_m[right]).astype(np.int64)
        difference = _difference(left_nd, right_md, left, right)
        found = pd.DataFrame({"left": left, "right": right, "bits": bits, "difference": difference.round(2)})
        return found[_same(bits, difference, contrast)].drop_duplicates(ignore_index=True)

    starts = range(0, max(1, len(left_hash_n)), step)  # at least one block, even if it is empty
    return ordered_map(search, starts, workers, 2 * workers)


def _within(
    distance: int, left_n: NDArray[np.uint64], right_m: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return left and right indices of all pairs of hashes that differ in at most `distance` bits."""
    near_nm = np.bitwise_count(left_n[:, None] ^ right_m[None]) <= distance
    return np.divmod(np.flatnonzero(near_nm), max(1, len(right_m)))


def _difference(
    left_nd: NDArray[np.float32], right_md: NDArray[np.float32], left_p: NDArray[np.int64], right_p: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the root mean square difference of p pairs of thumbnails, in gray levels."""
    found_p = np.empty(len(left_p), np.float32)
    for start in range(0, len(left_p), BLOCK_THUMBS):
        part = slice(start, start + BLOCK_THUMBS)
        apart = left_nd[left_p[part]] - right_md[right_p[part]]
        found_p[part] = np.sqrt(np.einsum("pd,pd->p", apart, apart) / left_nd.shape[1])
    return found_p


def _same(bits_p: NDArray[np.int64], difference_p: NDArray[np.float32], contrast_p: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of p pairs are near copies."""
    limit_p = CONTRAST_SHARE * contrast_p
    sharp_p = (bits_p <= HASH_DISTANCE) & (difference_p <= limit_p + np.minimum(NOISE, contrast_p / 4))
    return sharp_p | (difference_p <= np.minimum(limit_p, FAINT_DIFFERENCE))


def _contrast(thumb_nd: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the root mean square deviation of the channels from their own means: 0 for a flat colour."""
    pixels = thumb_nd.reshape(len(thumb_nd), thumb_nd.shape[1] // 3, 3)
    contrast: NDArray[np.float32] = np.sqrt(pixels.var(axis=1, dtype=np.float32).mean(axis=1))
    return contrast


LEAK_COLUMNS = ["path", "label", "split", "of", "of_label", "of_split", "bits", "difference"]
NO_LEAKS = pd.DataFrame(columns=LEAK_COLUMNS)


def leaks(frame: pd.DataFrame, thumb_nd: NDArray[np.uint8], workers: int = 1) -> pd.DataFrame:
    """Find training images that nearly copy a validation or test image, and validation images that copy a test image.

    Args:
        frame: columns path, label, split, phash.
        thumb_nd: their thumbnails, in the frame's order.
        workers: threads.

    Returns:
        One row per image and its nearest counterpart: path, label, split, of, of_label, of_split, bits, difference.
    """
    hash_n = np.array([int(text, 16) for text in frame["phash"].tolist()], np.uint64)
    names = frame[["path", "label", "split"]].reset_index(drop=True)
    found = []
    for own, others in (("train", ("valid", "test")), ("valid", ("test",))):
        left, right = np.flatnonzero(names["split"] == own), np.flatnonzero(names["split"].isin(others))
        pairs = near_duplicates(hash_n[left], thumb_nd[left], hash_n[right], thumb_nd[right], workers)
        order = ["left", "difference", "bits", "right"]
        nearest = pd.concat([block.sort_values(order).drop_duplicates("left") for block in pairs])
        own_image = names.iloc[left[nearest["left"].to_numpy(int)]].reset_index(drop=True)
        other = names.iloc[right[nearest["right"].to_numpy(int)]].reset_index(drop=True)
        other = other.rename(columns={"path": "of", "label": "of_label", "split": "of_split"})
        found.append(pd.concat([own_image, other, nearest[["bits", "difference"]].reset_index(drop=True)], axis=1))
    return pd.concat(found, ignore_index=True)
