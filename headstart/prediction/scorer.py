"""A process that classifies files: `python -m headstart.prediction.scorer SOCKET BOARD`, see `supervisor.py`.

It reads the job, one line of JSON, from stdin. For each batch it sends a line of JSON over the socket: [[index, answer], …],
or {"refused": why}. It writes which file each thread decodes to the board (`ThreadStatus`): memory that the supervisor can
read even after this process has crashed. It ends when it has answered for all files, or when the connection is closed.
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
from headstart.core.files import sha256_file
from headstart.core.parallel import chunks
from headstart.images.examine import Gone, Unreadable, Unusable, usable
from headstart.images.loader import image_map
from headstart.prediction.predictor import Predictor
from headstart.prediction.table import ImageRows
from headstart.prediction.thread_status import ThreadStatus
from headstart.runtime import configure

BATCH = 16


class Scorer:
    """Classifies files in threads, each of which reports the file that it decodes.

    Args:
        top: number of classes to report for each image.
        rows: the encoded columns of each file, by path; None for a model without columns.
        connection: the socket for answers.
        board: the memory in which each thread reports its file.
    """

    def __init__(
        self, predictor: Predictor, top: int, rows: ImageRows | None, connection: socket.socket, board: ThreadStatus
    ) -> None:
        self.predictor, self.top, self.rows, self.connection, self.board = predictor, top, rows, connection, board
        self.sending = threading.Lock()
        self.numbers = itertools.count()
        self.local = threading.local()

    def at(self, index: int) -> None:
        """Report which file this thread decodes now; -1 for none."""
        if not hasattr(self.local, "number"):
            self.local.number = next(self.numbers)
        self.board[self.local.number] = index

    def score(self, part: Sequence[tuple[int, str]]) -> None:
        """Decode and classify a batch of (index, path), and send the answers."""
        answers: list[tuple[int, dict[str, Any]]] = []
        seen: list[tuple[int, str, torch.Tensor]] = []
        paths: list[str] = []
        for index, path in part:
            if self.rows is not None and (reason := self.rows.error(path)):
                answers.append((index, {"error": reason, "final": False}))
                continue
            self.at(index)
            try:
                p = self.predictor.card.for_images
                key, _, image = usable(path, self.predictor.limits, p.min_decode_side, p.whites)
                seen.append((index, key, self.predictor.view(image)))
                paths.append(path)
            except Unusable as error:
                answers.append((index, {"error": str(error), "key": error.key, "final": not isinstance(error, Unreadable)}))
            except Gone:
                answers.append((index, {"error": "was in the folder when it was listed, but is gone now", "final": False}))
        self.at(-1)
        if seen:
            columns = None if self.rows is None else self.rows[paths]
            found = self.predictor.answers(torch.stack([view for *_, view in seen]), columns)
            for (index, key, _), row in zip(seen, self.predictor.card.target.rows(found, self.top), strict=True):
                answers.append((index, {"key": key, "row": row, "final": True}))
        with self.sending:
            self.connection.sendall(orjson.dumps(answers, option=orjson.OPT_APPEND_NEWLINE))


def main(descriptor: int, board: int) -> None:
    """Classify the files of the job that is read from stdin."""
    with socket.socket(fileno=descriptor) as connection:
        job = orjson.loads(sys.stdin.buffer.readline())
        try:
            device = configure(job["threads"], job["device"])
            predictor = Predictor(Path(job["model"]), device, BATCH, job["workers"])
            if sha256_file(Path(job["model"])) != job["digest"]:
                raise InputError(f"{job['model']}: changed while it was classifying files", fix="run again")
            rows = ImageRows(Path(job["table"]), Path(job["root"]), predictor) if predictor.encoders is not None else None
            scorer = Scorer(predictor, job["top"], rows, connection, ThreadStatus(board))
            workers = job["workers"]
            for _ in image_map(scorer.score, chunks(enumerate(job["paths"]), BATCH), workers, ahead=2 * workers):
                pass
        except InputError as error:
            connection.sendall(orjson.dumps({"refused": str(error)}, option=orjson.OPT_APPEND_NEWLINE))
        except (BrokenPipeError, ConnectionResetError):
            return  # the supervisor is gone


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
