"""A process that examines files: `python -m headstart.ingest.worker DESCRIPTOR LIMITS`, see `workers.py`.

It reads lines of JSON, each a list of paths, from the socket at DESCRIPTOR. For each path, in order, it writes a line of
JSON: the result of `examine` and `look`, {"reason": …, "key": …} (`Unusable`), {"failed": …} (`Unreadable`) or {"gone": true}.
It ends when the connection is closed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import resource
import socket
import sys
import time
from typing import Any

import orjson

from headstart.images.decode import Decoded
from headstart.images.examine import Gone, Unreadable, Unusable, examine, look
from headstart.images.limits import Limits

SECONDS_OF_SILENCE = 0.02
BASE_BYTES, BYTES_PER_PIXEL = 3 << 30, 60  # limit of the address space: a decoder that needs more gets a MemoryError


def answer(path: str, limits: Limits) -> tuple[dict[str, Any], Decoded | None]:
    """Return the answer for one file, and the picture that `with_look` needs."""
    try:
        return examine(path, limits)
    except Unreadable as error:
        return {"failed": str(error)}, None
    except Unusable as error:
        return {"reason": str(error), "key": error.key}, None
    except Gone:
        return {"gone": True}, None


def with_look(found: dict[str, Any], picture: Decoded | None) -> dict[str, Any]:
    """Add phash (64 bits as 16 hex digits) and thumb (base64 of [8, 8, 3] uint8) to an answer: near copies share them."""
    if picture is None:
        return found
    phash, thumb = look(picture)
    return found | {"phash": phash, "thumb": base64.b64encode(thumb.tobytes()).decode()}


def bound_memory(size: int) -> None:
    """Limit this process to `size` bytes of address space, or to its present limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([size, *limits]), hard))


def main(descriptor: int, limits: Limits) -> None:
    """Serve until the other side closes the connection."""
    if sys.platform == "linux":
        bound_memory(BASE_BYTES + BYTES_PER_PIXEL * limits.max_pixels)
    with (
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rb") as wanted,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(b"ready\n")
        for line in wanted:
            decoded, said = [], time.monotonic()
            for path in orjson.loads(line):
                decoded.append(answer(path, limits))
                if time.monotonic() - said > SECONDS_OF_SILENCE:  # the other side waits for each file with a timeout
                    _send(connection, decoded)
                    decoded, said = [], time.monotonic()
            _send(connection, decoded)


def _send(connection: socket.socket, decoded: list[tuple[dict[str, Any], Decoded | None]]) -> None:
    """Complete and send answers. Running `look` on many pictures in a row halves its time (caches)."""
    connection.sendall(b"".join(orjson.dumps(with_look(*one), option=orjson.OPT_APPEND_NEWLINE) for one in decoded))


if __name__ == "__main__":
    main(int(sys.argv[1]), Limits(**json.loads(sys.argv[2])))
