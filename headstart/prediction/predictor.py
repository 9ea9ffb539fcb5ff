"""Answers of a model file for images, rows or both: one predictor for evaluation, the registry, files and the server.

It uses the same decoding, preprocessing and engine as precompute.
Shape legend: v views, n images or rows, c outputs, s input side, m + k encoded columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from headstart.activations.columns import encoded_rows
from headstart.activations.engine import build_engine
from headstart.columns.encoders import Encoders
from headstart.core.errors import InputError
from headstart.core.parallel import chunks
from headstart.core.progress import track
from headstart.hardware import resolve_workers
from headstart.images.decode import Decoded, DecodeError
from headstart.images.examine import accepted
from headstart.images.limits import Limits
from headstart.images.loader import ImageSource, image_map
from headstart.images.transforms import base_view
from headstart.models.heads import Classifier
from headstart.models.trained import load_model

Workers = int | Literal["auto"]


class Predictor:
    """A model, ready to answer for images, for rows of a table, or for both.

    Args:
        path: fine_tuned.safetensors.
        device: the device that computes.
        batch_size: the engine's fixed batch size. With 1, no padding is computed for a single image, and a CPU has the
            same throughput. The size does not make an image's result depend on other images.
        workers: threads that will classify at the same time.
        engine, precision: see `build_engine`.

    Raises:
        InputError: the file is missing or damaged.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device | None = None,
        batch_size: int = 1,
        workers: Workers = "auto",
        engine: str = "auto",
        precision: str = "auto",
    ) -> None:
        model, self.card = load_model(path)
        self.workers = resolve_workers(workers)
        self.encoders = Encoders.from_dict(self.card.columns["encoders"]) if self.card.columns else None
        if not isinstance(model, Classifier):  # a table's model has no body
            self.head = model
            return
        self.head = model.head
        self.limits = Limits(**self.card.limits)  # those of its training, not those of params.yaml now
        self.engine = build_engine(
            model.body,
            self.card.for_images,
            engine=engine,
            precision=precision,
            storage="float32",
            batch_size=batch_size,
            device=device or torch.device("cpu"),
            workers=workers,
        )

    def view(self, image: Decoded) -> torch.Tensor:
        """Return the network's input [3, s, s] uint8 for an image that was decoded with the card's `min_decode_side`."""
        return base_view(image.pixels, self.card.for_images)

    def encode(self, frame: pd.DataFrame) -> torch.Tensor | None:
        """Return a table's rows as the head takes them, [n, m + k] float32; None if the model takes no columns.

        Raises:
            InputError: a column is missing, or a value cannot be used.
        """
        return None if self.encoders is None else torch.from_numpy(encoded_rows(self.encoders, frame))

    @torch.inference_mode()
    def logits(self, views: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [n, c] float32 for views [n, 3, s, s] uint8, encoded columns [n, m + k], or both.

        Raises:
            InputError: the model needs columns, and there are none.
        """
        if self.encoders is not None and columns is None:
            raise InputError(
                "this model also takes columns of a table", fix="python -m flows.predict --images PATH --table FILE"
            )
        parts = []
        if views is not None:
            parts.append(torch.cat([self.engine(some) for some in views.split(self.engine.plan.batch_size)]))
        parts += [columns] if columns is not None else []
        logits_nc: torch.Tensor = self.head(torch.cat(parts, dim=1)).float()
        return logits_nc

    def answers(self, views: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Return answers [n, c] float64, see `Target.answers`; the arguments are those of `logits`."""
        return self.card.target.answers(self.logits(views, columns))

    def logits_of_files(
        self,
        images: ImageSource,
        files: Sequence[tuple[str, str]],
        views: int = 1,
        what: str = "classifying",
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits [v, n, c] for the base view and the augmented views of a source's images.

        As in precompute, each worker decodes and classifies in one thread.

        Args:
            files: (path, key) of each image.
            views: v.
            what: the text of the progress bar.
            columns: the images' encoded columns [n, m + k], for a model that takes columns.

        Raises:
            InputError: an image has changed since the manifest was made.
        """

        def classify(part: list[tuple[int, tuple[str, str]]]) -> torch.Tensor:
            rows = None if columns is None else columns[[i for i, _ in part]].repeat_interleave(views, dim=0)
            return self.logits(torch.stack([view for _, file in part for view in images.views(*file, range(views))]), rows)

        parts = chunks(list(enumerate(files)), max(1, self.engine.plan.batch_size // views))
        done = image_map(classify, parts, self.workers, ahead=2 * self.workers)
        found = list(track(done, what, len(files) * views, unit="views" if views > 1 else "images", weigh=len))
        return torch.cat(found).reshape(len(files), views, -1).transpose(0, 1)

    def answers_of_bytes(self, files: Sequence[bytes], columns: torch.Tensor | None = None) -> torch.Tensor:
        """Return the answers for image files.

        Args:
            files: the bytes of each image file (never a path or a URL).
            columns: the images' encoded columns, for a model that takes columns.

        Returns:
            [n, c] float64, see `Target.answers`.

        Raises:
            InputError: some bytes are not an image within the limits; the message names the row.
        """
        views = [self._view_of(data, row) for row, data in enumerate(files)]
        return (
            self.answers(torch.stack(views), columns)
            if views
            else torch.empty(0, self.card.target.outputs, dtype=torch.float64)
        )

    def _view_of(self, data: bytes, row: int) -> torch.Tensor:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"row {row}: {type(data).__name__}", wanted="the bytes of an image file, not a path or URL")
        try:
            p = self.card.for_images
            return self.view(accepted(bytes(data), self.limits, p.min_decode_side, p.whites))
        except DecodeError as error:
            raise InputError(f"row {row}: {error}", wanted="the bytes of an image file") from None
