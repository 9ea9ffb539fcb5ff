"""Assembled activations: Arrow IPC files, memory-mapped, columns key, view, activations.

Rows are sorted by key, then view (0 is the plain view), whatever the folder's paths are: the files are a
function of the images, the weights and the parameters. Labels and splits are joined by key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray

from headstart.core.errors import InputError
from headstart.core.files import atomic_path

SHARD_ROWS = 65_536
META = b"headstart"
RERUN = "python -m flows.pipeline --force precompute"


def write_shards(
    folder: Path,
    blocks: Iterable[tuple[Sequence[str], Sequence[int], NDArray[Any]]],
    width: int,
    dtype: str,
    meta: dict[str, Any],
    shard_rows: int = SHARD_ROWS,
) -> int:
    """Write a stream of blocks as one or more Arrow files; memory holds one block at a time.

    Args:
        folder: gets 00000.arrow, 00001.arrow, …
        blocks: (keys, views, activations [n, d] of `dtype`), in the order of the rows.
        width: d.
        dtype: "float16" or "float32".
        meta: provenance, kept in each file's schema.
        shard_rows: rows after which a new file is begun, at a block's end.

    Returns:
        The number of rows.
    """
    activation = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)
    fields = [("key", pa.string()), ("view", pa.int16()), ("activations", activation), ("checksum", pa.uint64())]
    schema = pa.schema(fields, metadata={META: json.dumps(meta, sort_keys=True).encode()})
    folder.mkdir(parents=True, exist_ok=True)
    total, shard, stream = 0, 0, iter(blocks)
    block = next(stream, None)
    while block is not None:
        rows = 0
        with atomic_path(folder / f"{shard:05}.arrow") as path, pa.ipc.new_file(str(path), schema) as writer:
            while block is not None and rows < shard_rows:
                writer.write_batch(_batch(*block, schema))
                rows += len(block[0])
                block = next(stream, None)
        total, shard = total + rows, shard + 1
    return total


def _batch(keys: Sequence[str], views: Sequence[int], x_nd: NDArray[Any], schema: pa.Schema) -> pa.RecordBatch:
    assert pa.from_numpy_dtype(x_nd.dtype) == schema.field("activations").type.value_type
    flat = pa.array(x_nd.reshape(-1), type=schema.field("activations").type.value_type)
    return pa.record_batch(
        [
            pa.array(keys, pa.string()),
            pa.array(views, pa.int16()),
            pa.FixedSizeListArray.from_arrays(flat, x_nd.shape[1]),
            pa.array([_checksum(row) for row in x_nd], pa.uint64()),
        ],
        schema=schema,
    )


def _checksum(row: NDArray[Any]) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(row).tobytes())


class Activations:
    """The rows of a folder of Arrow files: memory-mapped, nothing is read until rows are asked for.

    Raises:
        InputError: no files, or damaged ones.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.arrow"))
        if not paths:
            raise InputError(f"{folder}: no activations", fix=RERUN)
        self.folder = folder
        self.blocks: list[NDArray[Any]] = []
        self.checksums: list[NDArray[Any]] = []
        self._places: dict[tuple[str, int], tuple[int, int]] = {}
        for path in paths:
            self._open(path)
        self.width = self.blocks[0].shape[1]
        self.views = 1 + max(view for _, view in self._places)

    def _open(self, path: Path) -> None:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: damaged: {error}", fix=RERUN) from None
        self.meta: dict[str, Any] = json.loads(file.schema.metadata[META])
        for batch in batches:
            values = batch.column("activations")
            flat = values.flatten().to_numpy(zero_copy_only=True)
            self.blocks.append(flat.reshape(len(batch), -1))
            self.checksums.append(batch.column("checksum").to_numpy())
            keys, views = batch.column("key").to_pylist(), batch.column("view").to_pylist()
            for row, place in enumerate(zip(keys, views, strict=True)):
                self._places[place] = (len(self.blocks) - 1, row)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, keys: Sequence[str], view: int = 0) -> torch.Tensor:
        """Activations of `keys` in one view, in the order of `keys`; each row's checksum is verified.

        Returns:
            [n, d] float32.

        Raises:
            InputError: a key without a row, or a damaged row.
        """
        out = torch.empty(len(keys), self.width)
        for i, key in enumerate(keys):
            block, row = self._place(key, view)
            values = self.blocks[block][row]
            if _checksum(values) != self.checksums[block][row]:
                raise InputError(f"{self.folder}: the row of image {key[:12]}…, view {view} is damaged", fix=RERUN)
            out[i] = torch.from_numpy(values.astype(np.float32))
        return out

    def all_views(self, keys: Sequence[str]) -> torch.Tensor:
        """[1 + K, n, d] float32: the plain view and the K augmented ones."""
        return torch.stack([self.rows(keys, view) for view in range(self.views)])

    def _place(self, key: str, view: int) -> tuple[int, int]:
        try:
            return self._places[key, view]
        except KeyError:
            raise InputError(f"{self.folder}: no activations of image {key[:12]}…, view {view}", fix=RERUN) from None
