"""A process that examines files: `python -m headstart.data.worker DESCRIPTOR LIMITS`, see `workers.py`.

It gets a JSON list of paths over the connection at DESCRIPTOR and answers one JSON object per path, in order:
what `examine` found, or {"reason": …}, or {"gone": true}. It ends when the connection does.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from headstart.data.examine import Gone, Limits, Unusable, examine

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
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        connection.send_bytes(b"ready")
        while True:
            for path in json.loads(connection.recv_bytes()):
                connection.send_bytes(json.dumps(answer(path, limits)).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), Limits(**json.loads(sys.argv[2])))
