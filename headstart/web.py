"""What stands in front of every server of the project: requests from other sites and oversized ones go no further.

A page on another site can make a browser send requests to loopback (DNS rebinding, cross-site posts): the first shows
in the Host header, the second in Origin.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

DRAINED = 4  # times the largest body taken, of one that is refused
HOST = re.compile(r"(?P<name>\[[0-9a-f:]+\]|[^\[\]:@/]+)(:\d+)?")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class _TooLarge(Exception):
    """A body that has grown too large."""


class Gate:
    """An ASGI application that lets only requests through that are meant for it and small enough.

    Args:
        application: what is behind it.
        hosts: names and addresses (without port) by which it may be called.
        max_bytes: of a request's body; None for no limit.
    """

    def __init__(self, application: Application, hosts: frozenset[str], max_bytes: int | None = None) -> None:
        self.application, self.hosts, self.max_bytes = application, hosts, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to a foreign Host or Origin, 413 to a body over the cap, or pass the request on."""
        if scope["type"] not in ("http", "websocket"):
            await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await self._drain(scope, receive)
            await _answer(scope, send, *refusal)
            return
        await self._capped(scope, receive, send)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = HOST.fullmatch(headers.get("host", ""))
        if host is None or host["name"].strip("[]") not in self.hosts:
            return 403, f"Host {headers.get('host')!r} is not served here"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers["host"]:
            return 403, f"requests from pages of {origin!r} are not served"
        length = headers.get("content-length", "0")
        if self.max_bytes is not None and not (length.isdecimal() and int(length) <= self.max_bytes):
            return 413, f"a body of {length} bytes, at most {self.max_bytes:,} are taken"
        return None

    async def _drain(self, scope: Scope, receive: Receive) -> None:
        """Read on for a while without keeping it: a client that is still sending would see a reset, and no answer."""
        left = DRAINED * self.max_bytes if self.max_bytes is not None and scope["type"] == "http" else 0
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b"")) + 1
            if not message.get("more_body", False):
                return

    async def _capped(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body: a chunked one states no length."""
        received, answering, more = 0, False, False

        def too_large() -> bool:
            return self.max_bytes is not None and received > self.max_bytes

        async def counted() -> Message:
            nonlocal received, more
            message = await receive()
            received += len(message.get("body", b""))
            if too_large():
                more = message.get("more_body", False)
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal answering
            if answering or not too_large():  # what the application makes of our exception is for nobody
                answering = True
                await send(message)

        try:
            await self.application(scope, counted, noted)
        except* _TooLarge:  # alone, or in the group that a task group makes of it
            pass
        if too_large() and not answering:
            if more:
                await self._drain(scope, receive)
            await _answer(scope, send, 413, f"a body of more than {self.max_bytes:,} bytes")


async def _answer(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
