"""A process that examines files: `python -m headstart.data.worker DESCRIPTOR LIMITS`, see `workers.py`.

It gets lines of JSON, a list of paths each, over the socket at DESCRIPTOR and answers a line of JSON per path, in order:
what `examine` found, or {"reason": …}, or {"gone": true}. It ends when the connection does.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import sys
import time
from typing import Any

import orjson

from headstart.data.examine import Gone, Limits, Unusable, examine

SECONDS_OF_SILENCE = 0.02
BASE_BYTES, BYTES_PER_PIXEL = 3 << 30, 60  # of address space: a decoder that wants more gets a MemoryError


def answer(path: str, limits: Limits) -> dict[str, Any]:
    """What is said of one file."""
    try:
        return examine(path, limits)
    except Unusable as error:
        return {"reason": str(error)}
    except Gone:
        return {"gone": True}


def main(descriptor: int, limits: Limits) -> None:
    """Serve until the other side closes the connection."""
    if sys.platform == "linux":
        size = BASE_BYTES + BYTES_PER_PIXEL * limits.max_pixels
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with (
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rb") as wanted,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(b"ready\n")
        for line in wanted:
            told, said = bytearray(), time.monotonic()
            for path in orjson.loads(line):
                told += orjson.dumps(answer(path, limits)) + b"\n"
                if time.monotonic() - said > SECONDS_OF_SILENCE:  # the other side waits for one file at a time
                    connection.sendall(told)
                    told, said = bytearray(), time.monotonic()
            connection.sendall(told)


if __name__ == "__main__":
    main(int(sys.argv[1]), Limits(**json.loads(sys.argv[2])))
