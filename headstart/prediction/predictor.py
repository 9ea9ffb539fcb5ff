"""Classify images with a model file: one predictor for evaluation, the registry, folders of files and the server.

It uses the same decoding, preprocessing and engine as precompute. Shape legend: v views, n images, c classes, s input side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from headstart.activations.engine import build_engine
from headstart.core.errors import InputError
from headstart.core.parallel import chunks
from headstart.core.progress import track
from headstart.hardware import resolve_workers
from headstart.images.decode import Decoded, DecodeError
from headstart.images.examine import accepted
from headstart.images.limits import Limits
from headstart.images.loader import ImageSource, image_map
from headstart.images.transforms import base_view
from headstart.models.trained import load_classifier

Workers = int | Literal["auto"]


class Predictor:
    """A fine-tuned model, ready to classify images.

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
        self.model, self.card = load_classifier(path)
        self.limits = Limits(**self.card.limits)  # those of its training, not those of params.yaml now
        self.workers = resolve_workers(workers)
        self.engine = build_engine(
            self.model.body,
            self.card.preprocessing,
            engine=engine,
            precision=precision,
            storage="float32",
            batch_size=batch_size,
            device=device or torch.device("cpu"),
            workers=workers,
        )

    def view(self, image: Decoded) -> torch.Tensor:
        """Return the network's input [3, s, s] uint8 for an image that was decoded with the card's `min_decode_side`."""
        return base_view(image.pixels, self.card.preprocessing)

    @torch.inference_mode()
    def logits(self, views: torch.Tensor) -> torch.Tensor:
        """Return logits [n, c] float32, in the order of `card.classes`, for views [n, 3, s, s] uint8."""
        x_nd = torch.cat([self.engine(some) for some in views.split(self.engine.plan.batch_size)])
        logits_nc: torch.Tensor = self.model.head(x_nd).float()
        return logits_nc

    def classify(self, views: torch.Tensor) -> torch.Tensor:
        """Return class probabilities [n, c] float32, in the order of `card.classes`, for views [n, 3, s, s] uint8."""
        return self.logits(views).softmax(1)

    def logits_of_files(
        self, images: ImageSource, files: Sequence[tuple[str, str]], views: int = 1, what: str = "classifying"
    ) -> torch.Tensor:
        """Return logits [v, n, c] for the base view and the augmented views of a source's images.

        As in precompute, each worker decodes and classifies in one thread.

        Args:
            files: (path, key) of each image.
            views: v.
            what: the text of the progress bar.

        Raises:
            InputError: an image has changed since the manifest was made.
        """

        def classify(part: list[tuple[str, str]]) -> torch.Tensor:
            return self.logits(torch.stack([view for file in part for view in images.views(*file, range(views))]))

        parts = chunks(files, max(1, self.engine.plan.batch_size // views))
        done = image_map(classify, parts, self.workers, ahead=2 * self.workers)
        found = list(track(done, what, len(files) * views, unit="views" if views > 1 else "images", weigh=len))
        return torch.cat(found).reshape(len(files), views, -1).transpose(0, 1)

    def probabilities(self, files: Sequence[bytes]) -> torch.Tensor:
        """Return the class probabilities of image files.

        Args:
            files: the bytes of each image file (never a path or a URL).

        Returns:
            [n, c] float32, in the order of `card.classes`.

        Raises:
            InputError: some bytes are not an image within the limits; the message names the row.
        """
        views = [self._view_of(data, row) for row, data in enumerate(files)]
        return self.classify(torch.stack(views)) if views else torch.empty(0, len(self.card.classes))

    def _view_of(self, data: bytes, row: int) -> torch.Tensor:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"row {row}: {type(data).__name__}", wanted="the bytes of an image file, not a path or URL")
        try:
            p = self.card.preprocessing
            return self.view(accepted(bytes(data), self.limits, p.min_decode_side, p.whites))
        except DecodeError as error:
            raise InputError(f"row {row}: {error}", wanted="the bytes of an image file") from None
