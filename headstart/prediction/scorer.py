"""A process that classifies files: `python -m headstart.prediction.scorer SOCKET BOARD`, see `supervisor.py`.

It gets one line of JSON, the job, on stdin and answers over the socket with a line of JSON, [[index, answer], …], for each
batch (or {"refused": why}). Which file each of its threads decodes stands on the board, memory that it shares with its
supervisor: whatever becomes of this process, it can be read there. It ends when all files are answered, or the connection
is closed.
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
from headstart.prediction.thread_status import ThreadStatus
from headstart.runtime import configure

BATCH = 16


class Scorer:
    """Classifies files in threads, each of which says what it is at.

    Args:
        top: how many classes to name for each image.
        connection: where to send answers.
        board: where each thread notes what it is at.
    """

    def __init__(self, predictor: Predictor, top: int, connection: socket.socket, board: ThreadStatus) -> None:
        self.predictor, self.top, self.connection, self.board = predictor, top, connection, board
        self.sending = threading.Lock()
        self.numbers = itertools.count()
        self.mine = threading.local()

    def at(self, index: int) -> None:
        """Note which file this thread decodes now, -1 for none."""
        if not hasattr(self.mine, "number"):
            self.mine.number = next(self.numbers)
        self.board[self.mine.number] = index

    def score(self, part: Sequence[tuple[int, str]]) -> None:
        """Decode and classify a batch of (index, path), and send the answers."""
        answers: list[tuple[int, dict[str, Any]]] = []
        seen: list[tuple[int, str, torch.Tensor]] = []
        for index, path in part:
            self.at(index)
            try:
                p = self.predictor.card.preprocessing
                key, _, image = usable(path, self.predictor.limits, p.min_decode_side, p.whites)
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
        with self.sending:
            self.connection.sendall(orjson.dumps(answers, option=orjson.OPT_APPEND_NEWLINE))


def main(descriptor: int, board: int) -> None:
    """Score the files of the job that comes on stdin."""
    with socket.socket(fileno=descriptor) as connection:
        job = orjson.loads(sys.stdin.buffer.readline())
        try:
            device = configure(job["threads"], job["device"])
            predictor = Predictor(Path(job["model"]), device, BATCH, job["workers"])
            if sha256_file(Path(job["model"])) != job["digest"]:
                raise InputError(f"{job['model']}: changed while files were classified by it", fix="run again")
            scorer = Scorer(predictor, min(job["top"], len(predictor.card.classes)), connection, ThreadStatus(board))
            workers = job["workers"]
            for _ in image_map(scorer.score, chunks(enumerate(job["paths"]), BATCH), workers, ahead=2 * workers):
                pass
        except InputError as error:
            connection.sendall(orjson.dumps({"refused": str(error)}, option=orjson.OPT_APPEND_NEWLINE))
        except (BrokenPipeError, ConnectionResetError):
            return  # whoever wanted the answers is gone


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
