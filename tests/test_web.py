"""The gate in front of every server: requests from other sites and oversized ones go no further."""

import asyncio

import pytest

from headstart.web import LOOPBACK, Gate


async def counting(scope, receive, send):
    """An application that says how many bytes it read."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def answering_anyhow(scope, receive, send):
    """One that answers when reading fails, and raises it in a group: Starlette sends a 500 and raises again."""
    try:
        await receive()
    except Exception as error:  # noqa: BLE001 (as Starlette does)
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise ExceptionGroup("of a task group", [error]) from None


def call(
    headers: dict[str, str], body: tuple[bytes, ...] = (b"",), kind: str = "http", cap: int | None = 10, application=counting
) -> list[dict]:
    """What a client gets for a request to an application behind the gate."""
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    parts[-1]["more_body"] = False
    sent: list[dict] = []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(Gate(application, LOOPBACK, cap)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:4200"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:4200"}, 200),
        ({"Host": "127.0.0.1:4200", "Origin": "http://127.0.0.1:4200"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "evil.example@127.0.0.1"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({}, 403),
        ({"host": "localhost:4200", "origin": "http://localhost:4200"}, 200),
        ({"host": "127.0.0.1:4200", "origin": "http://localhost:4200"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://evil.example:4200"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://127.0.0.1:8000"}, 403),  # another page on this machine
        ({"host": "127.0.0.1:4200", "origin": "null"}, 403),
        ({"host": "127.0.0.1:4200", "origin": "http://[::1"}, 403),
        ({"host": "127.0.0.1", "content-length": "11"}, 413),
        ({"host": "127.0.0.1", "content-length": "-1"}, 413),
        ({"host": "127.0.0.1", "content-length": "10"}, 200),
    ],
)
def test_who_is_let_through(headers, status):
    assert call(headers)[0]["status"] == status


def test_an_application_that_answers_for_our_exception_is_not_heard():
    said = call({"host": "localhost"}, (b"x" * 11,), application=answering_anyhow)
    assert [message.get("status") for message in said] == [413, None]


def test_a_chunked_body_is_counted():
    assert call({"host": "localhost"}, (b"12345", b"12345"))[1]["body"] == b"10"
    assert call({"host": "localhost"}, (b"12345", b"12345", b"1"))[0]["status"] == 413
    assert call({"host": "localhost"}, (b"12345", b"12345", b"1"), cap=None)[0]["status"] == 200


def test_websockets_are_checked_too():
    assert call({"host": "localhost"}, kind="websocket")[0]["type"] == "websocket.accept"
    assert call({"host": "localhost", "origin": "http://evil.example"}, kind="websocket")[0]["type"] == "websocket.close"
