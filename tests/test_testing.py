"""The helpers for tests of own endpoints."""

import logging
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from chatserver import EchoEndpoint, Endpoint, FromCookie, FromPath, FromQuery, InvalidToken
from chatserver.testing import (
    assert_no_message,
    live_server,
    open_server,
    open_session,
    receive,
    receive_json,
)

app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])
pytestmark = pytest.mark.anyio


def test_receive() -> None:
    with TestClient(app).websocket_connect("/ws") as session:
        session.send_text("x")
        assert receive(session) == {"type": "websocket.send", "text": "Message text was: x"}
        with pytest.raises(AssertionError, match=r"nothing was received within 0.01 s"):
            receive(session, timeout=0.01)


def test_assert_no_message() -> None:
    with TestClient(app).websocket_connect("/ws") as session:
        assert_no_message(session, timeout=0.01)
        session.send_text("x")
        with pytest.raises(AssertionError, match=r"expected no message, but got .* was: x'"):
            assert_no_message(session, timeout=1)


def test_live_server() -> None:
    with live_server(app) as server, connect(f"{server.ws}/ws") as client:
        client.send("x")
        assert client.recv(timeout=5) == "Message text was: x"
    with pytest.raises(OSError):  # noqa: PT011
        connect(f"{server.ws}/ws").__enter__()


def test_a_server_that_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with caplog.at_level(logging.CRITICAL), pytest.raises(RuntimeError, match="instead of start"):
        live_server(broken, lifespan="on").__enter__()


class Room(Endpoint):
    """Answers in JSON, and says what its handshake was."""

    encoding = "json"
    subprotocols = ("v1.chat",)
    channels = ("room:{room}",)
    room: FromPath[str]
    n: FromQuery[int] = 0
    theme: FromCookie[str] = ""

    async def authenticate(self, websocket: WebSocket) -> None:
        match self.n:
            case 401:
                raise InvalidToken("who are you?")
            case 1008:
                await websocket.close(1008, "not you")
            case 500:
                raise RuntimeError("a bug")

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        match data:
            case "bytes":
                await websocket.send_bytes(b"[1]")
            case "close":
                await websocket.close(4000, "enough")
            case "fail":
                raise RuntimeError("a bug")
            case _:
                await self.publish([self.room, self.n, self.theme, data])


rooms = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)])


def test_receive_json() -> None:
    with TestClient(rooms).websocket_connect("/rooms/a") as session:
        session.send_json("hi")
        assert receive_json(session) == ["a", 0, "", "hi"]
        session.send_json("bytes")
        assert receive_json(session) == [1]
        with pytest.raises(AssertionError, match=r"nothing was received within 0.01 s"):
            receive_json(session, timeout=0.01)
        session.send_json("close")
        with pytest.raises(AssertionError, match=r"expected a message, but got .*close"):
            receive_json(session)


async def test_a_session_in_this_event_loop() -> None:
    async with (
        open_session(rooms, "/rooms/a%20b?n=7", headers={"Cookie": "theme=dark"}) as one,
        open_session(rooms, "/rooms/a b", subprotocols=["v2", "v1.chat"]) as two,
    ):
        assert (one.subprotocol, two.subprotocol) == (None, "v1.chat")
        await one.send_json("hi")
        for session in (one, two):
            assert await session.receive_json() == ["a b", 7, "dark", "hi"]
        await two.send_json("bytes")
        assert await two.receive_json() == [1]
        await one.assert_no_message(timeout=0.01)
        with pytest.raises(AssertionError, match=r"nothing was received within 0.01 s"):
            await one.receive(timeout=0.01)
        await one.send_bytes(b'"close"')
        assert await one.receive() == {"type": "websocket.close", "code": 4000, "reason": "enough"}
        await two.send_text('"hi"')
        with pytest.raises(AssertionError, match=r"expected no message, but got .*hi"):
            await two.assert_no_message(timeout=5)
    assert rooms.state.hub.statistics().connections == 0


async def test_a_session_that_is_refused() -> None:
    begun = time.monotonic()
    with pytest.raises(WebSocketDenialResponse) as denial:
        await open_session(rooms, "/rooms/a?n=401").__aenter__()
    assert (denial.value.status_code, denial.value.text) == (401, "who are you?")
    with pytest.raises(WebSocketDisconnect) as close:
        await open_session(rooms, "/rooms/a?n=1008").__aenter__()
    assert (close.value.code, close.value.reason) == (1008, "not you")
    with pytest.raises(RuntimeError, match="a bug"):
        await open_session(rooms, "/rooms/a?n=500").__aenter__()
    assert time.monotonic() - begun < 0.9  # the application need not wait for its server


async def test_a_path_of_any_letters() -> None:
    async with open_session(rooms, "/rooms/küche?n=7") as session:
        await session.send_json("é")
        assert await session.receive_json() == ["küche", 7, "", "é"]


async def test_what_the_application_raises_is_raised() -> None:
    async with open_session(rooms, "/rooms/a") as session:
        await session.send_json("fail")
        assert (await session.receive())["code"] == 1011
        with pytest.raises(RuntimeError, match="a bug"):
            await session.receive()


async def test_a_server_from_a_coroutine() -> None:
    async with open_server(app) as server, connect_async(f"{server.ws}/ws") as client:
        await client.send("x")
        assert await client.recv() == "Message text was: x"
    with pytest.raises(OSError):  # noqa: PT011
        await connect_async(f"{server.ws}/ws")
