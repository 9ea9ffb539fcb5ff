"""A process that classifies files: `python -m headstart.prediction.scorer DESCRIPTOR`, see `supervisor.py`.

It gets one line of JSON, the job, over the socket at DESCRIPTOR and answers with lines of JSON: [thread, index] before
it decodes a file, [thread, -1] when it decodes none, {"answers": [[index, answer], …]} for a batch. It ends when all
files are answered, or the connection is closed.
"""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from headstart.core.errors import InputError
from headstart.core.parallel import chunks
from headstart.data.examine import Gone, Limits, Unreadable, Unusable, usable
from headstart.data.images import image_map
from headstart.prediction.predictor import Predictor
from headstart.runtime import configure

BATCH = 16


class Scorer:
    """Classifies files in threads, each of which says what it is at.

    Args:
        top: how many classes to name for each image.
        connection: where to say it.
    """

    def __init__(self, predictor: Predictor, top: int, connection: socket.socket) -> None:
        self.predictor, self.top, self.connection = predictor, top, connection
        self.sending = threading.Lock()
        self.numbers = itertools.count()
        self.mine = threading.local()

    def send(self, message: Any) -> None:
        """At once: what is not sent is lost when a decoder crashes the process."""
        with self.sending:
            self.connection.sendall(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))

    def at(self, index: int) -> None:
        """Say which file this thread decodes now, -1 for none."""
        if not hasattr(self.mine, "number"):
            self.mine.number = next(self.numbers)
        self.send([self.mine.number, index])

    def score(self, part: Sequence[tuple[int, str]]) -> None:
        """Decode and classify a batch of (index, path), and send the answers."""
        answers: list[tuple[int, dict[str, Any]]] = []
        seen: list[tuple[int, str, torch.Tensor]] = []
        for index, path in part:
            self.at(index)
            try:
                key, _, image = usable(path, self.predictor.limits, self.predictor.card.preprocessing.enough)
                seen.append((index, key, self.predictor.view(image)))
            except Unusable as error:
                answers.append((index, {"error": str(error), "key": error.key, "final": not isinstance(error, Unreadable)}))
            except Gone:
                answers.append((index, {"error": "was there when the folder was listed, and is not any more", "final": False}))
        self.at(-1)
        if seen:
            p_nk, i_nk = self.predictor.classify(torch.stack([view for *_, view in seen])).topk(self.top, dim=1)
            for (index, key, _), p, i in zip(seen, p_nk.tolist(), i_nk.tolist(), strict=True):
                labels = [self.predictor.card.classes[rank] for rank in i]
                answers.append((index, {"key": key, "labels": labels, "p": p, "final": True}))
        self.send({"answers": answers})


def main(descriptor: int) -> None:
    """Score the files of the job that comes over the socket."""
    with socket.socket(fileno=descriptor) as connection:
        job = orjson.loads(connection.makefile("rb").readline())
        try:
            device = configure(job["threads"], job["device"])
            predictor = Predictor(Path(job["model"]), device, BATCH, Limits(**job["limits"]))
            scorer = Scorer(predictor, min(job["top"], len(predictor.card.classes)), connection)
            workers = job["workers"]
            for _ in image_map(scorer.score, chunks(enumerate(job["paths"]), BATCH), workers, ahead=2 * workers):
                pass
        except InputError as error:
            connection.sendall(orjson.dumps({"refused": str(error)}, option=orjson.OPT_APPEND_NEWLINE))
        except (BrokenPipeError, ConnectionResetError):
            return  # whoever wanted the answers is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
