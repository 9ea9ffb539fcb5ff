"""From a model file and image bytes to classes: the same decoding and preprocessing as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from headstart.core.errors import InputError
from headstart.data.decode import DecodeError, decode_image
from headstart.data.transforms import normalise, plain_view
from headstart.models.trained import load_classifier
from headstart.runtime import place

BATCH = 32


class Predictor:
    """A fine-tuned model, ready to classify image files.

    Args:
        path: fine_tuned.safetensors.
        device: where to compute.

    Raises:
        InputError: the file is missing or damaged.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        model, self.card = load_classifier(path)
        self.device = device or torch.device("cpu")
        self.model = place(model, self.device)

    @torch.inference_mode()
    def probabilities(self, files: Sequence[bytes]) -> torch.Tensor:
        """Class probabilities of image files.

        Args:
            files: each the bytes of one image file (never a path or a URL).

        Returns:
            [n, c] float32, in the order of `card.classes`.

        Raises:
            InputError: bytes that are not an image, naming the row.
        """
        parts = [self._batch(files, start) for start in range(0, len(files), BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.card.classes))

    def _batch(self, files: Sequence[bytes], start: int) -> torch.Tensor:
        images = [self._view(data, row) for row, data in enumerate(files[start : start + BATCH], start=start)]
        x_nchw = normalise(torch.stack(images).to(self.device), self.card.preprocessing)
        probabilities: torch.Tensor = self.model(x_nchw).softmax(1).cpu()
        return probabilities

    def _view(self, data: bytes, row: int) -> torch.Tensor:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"row {row}: {type(data).__name__}", wanted="the bytes of an image file, not a path or URL")
        try:
            return plain_view(decode_image(bytes(data), enough=self.card.preprocessing.enough).pixels, self.card.preprocessing)
        except DecodeError as error:
            raise InputError(f"row {row}: {error}", wanted="the bytes of an image file") from None
