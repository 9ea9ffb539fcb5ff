"""From a model file and image bytes to classes: the same decoding, preprocessing and engine as in the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from headstart.activations.engine import build_engine
from headstart.core.errors import InputError
from headstart.images.decode import Decoded, DecodeError
from headstart.images.examine import Limits, accepted
from headstart.images.transforms import plain_view
from headstart.models.trained import load_classifier


class Predictor:
    """A fine-tuned model, ready to classify images.

    Args:
        path: fine_tuned.safetensors.
        device: where to compute.
        batch_size: the engine's fixed batch shape. Of 1, an image alone waits for no padding, and on a CPU the
            throughput is the same; either way an image's result does not depend on the others'.
        workers: threads that will classify at once.

    Raises:
        InputError: the file is missing or damaged.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device | None = None,
        batch_size: int = 1,
        workers: int | Literal["auto"] = "auto",
    ) -> None:
        self.model, self.card = load_classifier(path)
        self.limits = Limits(**self.card.limits)  # as when it was trained, whatever params.yaml says now
        self.engine = build_engine(
            self.model.body,
            self.card.preprocessing,
            engine="auto",
            precision="auto",
            storage="float32",
            batch_size=batch_size,
            device=device or torch.device("cpu"),
            workers=workers,
        )

    def view(self, image: Decoded) -> torch.Tensor:
        """The network's input [3, s, s] uint8 of a decoded image (with `enough` of the card's preprocessing)."""
        return plain_view(image.pixels, self.card.preprocessing)

    @torch.inference_mode()
    def classify(self, views: torch.Tensor) -> torch.Tensor:
        """Class probabilities [n, c] float32, in the order of `card.classes`, of views [n, 3, s, s] uint8."""
        x_nd = torch.cat([self.engine(some) for some in views.split(self.engine.plan.batch_size)])
        probabilities: torch.Tensor = self.model.head(x_nd).float().softmax(1)
        return probabilities

    def probabilities(self, files: Sequence[bytes]) -> torch.Tensor:
        """Class probabilities of image files.

        Args:
            files: each the bytes of one image file (never a path or a URL).

        Returns:
            [n, c] float32, in the order of `card.classes`.

        Raises:
            InputError: bytes that are not an image within the limits, naming the row.
        """
        views = [self._view_of(data, row) for row, data in enumerate(files)]
        return self.classify(torch.stack(views)) if views else torch.empty(0, len(self.card.classes))

    def _view_of(self, data: bytes, row: int) -> torch.Tensor:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError(f"row {row}: {type(data).__name__}", wanted="the bytes of an image file, not a path or URL")
        try:
            return self.view(accepted(bytes(data), self.limits, self.card.preprocessing.enough, self.card.preprocessing.whites))
        except DecodeError as error:
            raise InputError(f"row {row}: {error}", wanted="the bytes of an image file") from None
