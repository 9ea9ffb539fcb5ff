"""The gate in front of every server of the project: it refuses requests from other sites and oversized ones.

A page on another site can make a browser send requests to loopback. The Host header reveals DNS rebinding, the Origin
header reveals cross-site posts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

DRAINED = 4  # a refused body is read up to this many times the largest accepted one
HOST = re.compile(r"(?P<name>\[[0-9a-f:]+\]|[^\[\]:@/]+)(:\d+)?")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class _TooLarge(Exception):
    """A request body that is too large."""


class Gate:
    """An ASGI application that passes on only requests that are meant for it and small enough.

    Args:
        application: the application behind the gate.
        hosts: the names and addresses (without port) that a request may use for this server.
        max_bytes: the largest body of a request; None for no limit.
    """

    def __init__(self, application: Application, hosts: frozenset[str], max_bytes: int | None = None) -> None:
        self.application, self.hosts, self.max_bytes = application, hosts, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to a foreign Host or Origin and 413 to a body over the limit; pass on every other request."""
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
            return 413, f"the body has {length} bytes; at most {self.max_bytes:,} are accepted"
        return None

    async def _drain(self, scope: Scope, receive: Receive) -> None:
        """Read and drop some of the body: a client that is still sending would see a reset instead of the answer."""
        left = DRAINED * self.max_bytes if self.max_bytes is not None and scope["type"] == "http" else 0
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b"")) + 1
            if not message.get("more_body", False):
                return

    async def _capped(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its body, because a chunked one states no length."""
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
            if answering or not too_large():  # the application's answer to our exception is dropped
                answering = True
                await send(message)

        try:
            await self.application(scope, counted, noted)
        except* _TooLarge:  # alone, or in a task group's exception group
            pass
        if too_large() and not answering:
            if more:
                await self._drain(scope, receive)
            await _answer(scope, send, 413, f"the body has more than {self.max_bytes:,} bytes")


async def _answer(scope: Scope, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
