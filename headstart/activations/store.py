"""Assembled activations: memory-mapped Arrow IPC files with columns key, view, activations and checksum.

Rows are sorted by key, then by view (0 is the base view), whatever the images' paths are: the files depend only on the images,
the weights and the parameters. Labels and splits are joined by key.
Shape legend: n rows, d activation width (all values of a map), v views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from headstart.activations.cache import Block, checksum
from headstart.core.errors import InputError
from headstart.core.files import atomic_path

SHARD_BYTES = 2_000_000_000
META = b"headstart"
KEY_BYTES = 32
RERUN = "python -m flows.pipeline --force precompute"


def write_shards(
    folder: Path, blocks: Iterable[Block], shape: Sequence[int], storage: str, meta: dict[str, Any], limit: int = SHARD_BYTES
) -> int:
    """Write a stream of blocks as one or more Arrow files; memory holds one block at a time.

    Args:
        folder: the files 00000.arrow, 00001.arrow, … go here.
        blocks: in the order of the rows.
        shape: of one image's activation; `storage`: "float16" or "float32".
        meta: provenance, stored in each file's schema.
        limit: bytes after which a new file starts, at the end of a block.

    Returns:
        The number of rows.
    """
    value = pa.from_numpy_dtype(np.dtype(storage))
    activation = pa.list_(value, int(np.prod(shape)))
    fields = [("key", pa.binary(KEY_BYTES)), ("view", pa.int16()), ("activations", activation), ("checksum", pa.uint64())]
    text = json.dumps(meta | {"shape": list(shape)}, sort_keys=True)
    schema = pa.schema(fields, metadata={META: text.encode()})
    folder.mkdir(parents=True, exist_ok=True)
    total, shard, stream = 0, 0, iter(blocks)
    block = next(stream, None)
    while block is not None:
        size = 0
        with atomic_path(folder / f"{shard:05}.arrow") as path, pa.ipc.new_file(str(path), schema) as writer:
            while block is not None and size < limit:
                writer.write_batch(_batch(block, schema))
                total, size = total + len(block.row_keys), size + block.values.nbytes
                block = next(stream, None)
        shard += 1
    return total


def _batch(block: Block, schema: pa.Schema) -> pa.RecordBatch:
    n = len(block.row_keys)
    named = np.frombuffer(block.row_keys.tobytes(), [("key", f"V{KEY_BYTES}"), ("view", ">u2")])
    kind = schema.field("activations").type
    values = pa.Array.from_buffers(kind.value_type, n * kind.list_size, [None, pa.py_buffer(block.values)])
    keys = pa.Array.from_buffers(pa.binary(KEY_BYTES), n, [None, pa.py_buffer(np.ascontiguousarray(named["key"]))])
    columns = [
        keys,
        pa.array(named["view"].astype(np.int16)),
        pa.FixedSizeListArray.from_arrays(values, kind.list_size),
        pa.array(block.checksums),
    ]
    return pa.record_batch(columns, schema=schema)


class Activations:
    """The rows of a folder of Arrow files, memory-mapped; rows are read only when they are used.

    Args:
        folder: the activations of one cut.

    Attributes:
        width: d. `views`: v. `meta`: provenance, with the `shape` of one image's activation.

    Raises:
        InputError: the folder has no files, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.arrow"))
        if not paths:
            raise InputError(f"{folder}: no activations in this folder", fix=RERUN)
        self.folder = folder
        self._blocks: list[_Mapped] = []
        for path in paths:
            self._open(path)
        self._starts = np.cumsum([0, *(len(block.keys) for block in self._blocks)])
        self._firsts = np.array([block.keys[0] for block in self._blocks])
        self._sound = np.zeros(len(self._blocks), bool)
        self.width = self._blocks[0].values.shape[1]
        self.views = int(np.searchsorted(self._blocks[0].keys, self._firsts[0], side="right"))

    def _open(self, path: Path) -> None:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
            self.meta: dict[str, Any] = json.loads(file.schema.metadata[META])
            self._blocks += [_Mapped(batch) for batch in batches]
        except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged: {error}", fix=RERUN) from None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def digest(self) -> str:
        """Return the hex SHA-256 over the provenance, the row keys and the checksums, without reading any row."""
        digest = hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode())
        for block in self._blocks:
            digest.update(b"".join(block.row_keys()) + block.checksums.tobytes())
        return digest.hexdigest()

    def locate(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the row numbers [n] of the images' base views; view v's row number is v higher.

        Raises:
            InputError: an image has no row.
        """
        wanted = np.array([bytes.fromhex(key) for key in keys], f"S{KEY_BYTES}")
        found = np.full(len(wanted), -1)
        blocks = np.searchsorted(self._firsts, wanted, side="right") - 1
        for i in np.unique(blocks[blocks >= 0]):
            chosen = np.flatnonzero(blocks == i)
            rows = np.searchsorted(self._blocks[i].keys, wanted[chosen])
            present = self._blocks[i].keys[np.minimum(rows, len(self._blocks[i].keys) - 1)] == wanted[chosen]
            found[chosen[present]] = self._starts[i] + rows[present]
        if (found < 0).any():
            raise InputError(f"{self.folder}: no activations of image {keys[int((found < 0).argmax())][:12]}…", fix=RERUN)
        return found

    def gather(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return rows by number, copied as [n, d] float32; each block is checked when it is first read.

        Raises:
            InputError: a row is damaged.
        """
        out = torch.empty(len(rows), self.width)
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.unique(blocks):
            self._check(int(i))
            chosen = np.flatnonzero(blocks == i)
            values = self._blocks[i].values[rows[chosen] - self._starts[i]]
            out[torch.from_numpy(chosen)] = torch.from_numpy(values).float()
        return out

    def _check(self, i: int) -> None:
        if self._sound[i]:
            return
        block = self._blocks[i]
        row_keys = block.row_keys()
        for row_key, row, wanted in zip(row_keys, block.values.view(np.uint8), block.checksums.tolist(), strict=True):
            if checksum(row_key, row) != wanted:
                key = row_key[:KEY_BYTES].hex()
                raise InputError(f"{self.folder}: a row of image {key[:12]}… is damaged", fix=RERUN)
        self._sound[i] = True

    def rows(self, keys: Sequence[str], view: int = 0) -> torch.Tensor:
        """Return one view's activations of `keys`, in their order, [n, d] float32.

        Raises:
            InputError: a key has no row, or a row is damaged.
        """
        if not 0 <= view < self.views:
            raise InputError(f"{self.folder}: view {view}", wanted=f"0 to {self.views - 1}", fix=RERUN)
        return self.gather(self.locate(keys) + view)

    def all_views(self, keys: Sequence[str]) -> torch.Tensor:
        """Return the base view and the augmented views, [v, n, d] float32."""
        return torch.stack([self.rows(keys, view) for view in range(self.views)])

    def blocks(self, keys: Sequence[str], size: int) -> Iterator[torch.Tensor]:
        """Yield the base views of `keys` in order, `size` at a time."""
        located = self.locate(keys)
        for start in range(0, len(located), size):
            yield self.gather(located[start : start + size])


class _Mapped:
    """The columns of one record batch, as arrays on the mapped file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        values = batch.column("activations")
        self.values: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=True).reshape(len(batch), -1)
        self.keys = np.frombuffer(batch.column("key").buffers()[1], f"S{KEY_BYTES}", len(batch))
        self.views: NDArray[np.int16] = batch.column("view").to_numpy()
        self.checksums: NDArray[np.uint64] = batch.column("checksum").to_numpy()

    def row_keys(self) -> list[bytes]:
        """Return the row keys, as in the cache."""
        views = self.views.tolist()
        return [
            key.ljust(KEY_BYTES, b"\0") + view.to_bytes(2, "big") for key, view in zip(self.keys.tolist(), views, strict=True)
        ]
