"""The helpers for tests of own endpoints."""

import logging

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from websockets.sync.client import connect

from chatserver import EchoEndpoint
from chatserver.testing import assert_no_message, live_server, receive

app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])


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
