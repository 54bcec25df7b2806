"""The lifecycle of `Endpoint`, on a real uvicorn with a real client: a test for every row."""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import pytest
import websockets
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from websockets.sync.client import ClientConnection, connect

from chatserver import Endpoint, FromQuery, Message, lifespan, on_message
from chatserver.auth import Identity
from chatserver.hub import Hub
from chatserver.limits import Limits
from chatserver.testing import LiveServer, live_server
from tests.asgi import Edge, until

#: What became of each connection, by the name it was given: (event, close code).
EVENTS: dict[str, list[tuple[str, int]]] = {}


class Recorded(Endpoint):
    """Notes its end under the name that the test gave it."""

    run: FromQuery[str] = ""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        EVENTS.setdefault(self.run, []).append(("disconnect", close_code))


class CloseBeforeAccept(Recorded):
    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.close()


class Unauthorized(Recorded):
    async def authenticate(self, websocket: WebSocket) -> None:
        raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})


class Denied(Recorded):
    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("come back later", 503))


class NeverAccepts(Recorded):
    async def on_connect(self, websocket: WebSocket) -> None:
        pass


class CrashInAuthenticate(Recorded):
    async def authenticate(self, websocket: WebSocket) -> None:
        raise ValueError("boom")


class CrashInConnect(Recorded):
    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        raise ValueError("boom")


class CrashInReceive(Recorded):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        raise ValueError("boom")


class CrashInTask(Recorded):
    async def on_accept(self, websocket: WebSocket) -> None:
        self.task_group.start_soon(self.crash)

    async def crash(self) -> None:
        raise ValueError("boom")


class CrashInDisconnect(Recorded):
    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await super().on_disconnect(websocket, close_code)
        raise ValueError("boom")


async def awaits_what_is_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


class InterruptedInAuthenticate(Recorded):
    async def authenticate(self, websocket: WebSocket) -> None:
        await awaits_what_is_cancelled()


class InterruptedInAccept(Recorded):
    async def on_accept(self, websocket: WebSocket) -> None:
        await awaits_what_is_cancelled()


class InterruptedInReceive(Recorded):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await awaits_what_is_cancelled()


class InterruptedInDisconnect(Recorded):
    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await super().on_disconnect(websocket, close_code)
        await awaits_what_is_cancelled()


class Policy(Recorded):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        raise WebSocketException(1008, "that is not done")


class Text(Recorded):
    encoding = "text"


class Bytes(Recorded):
    encoding = "bytes"


class Json(Recorded):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json(data)


class Ping(Message):
    pass


class Typed(Recorded):
    @on_message
    async def ping(self, websocket: WebSocket, message: Ping) -> Ping:
        return message


class SendsForEver(Recorded):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        while True:
            await websocket.send_text("x" * 1000)
            await asyncio.sleep(0.001)


class PushesForEver(Recorded):
    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await self.push("x" * 1000)


class Busy(Recorded):
    """Asks to be cancelled at once."""

    linger = 0

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push("begun")
        try:
            await asyncio.sleep(60)
        finally:
            EVENTS.setdefault(self.run, []).append(("handler ended", 0))


class SlowHandshake(Recorded):
    linger = 0

    async def authenticate(self, websocket: WebSocket) -> None:
        EVENTS.setdefault(self.run, []).append(("authenticate", 0))
        await asyncio.sleep(60)


class Slow(Recorded):
    """Takes its time for each message, and keeps count."""

    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await asyncio.sleep(0.3 if data == "slow" else 0)
        EVENTS.setdefault(self.run, []).append((data, 0))


class SlowUntilTheEnd(Recorded):
    """Handles each message when the client has left, and tries to send to it."""

    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await until(lambda: self.connection.close_code is not None)
        EVENTS.setdefault(self.run, []).append((data, self.connection.close_code or 0))
        await websocket.send_text("are you there?")
        EVENTS[self.run].append(("sent", 0))


class TooSlow(Recorded):
    """Handles no message before its time is over, in spite of what it wanted."""

    encoding = "text"
    linger = 0.1

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push("begun")
        await asyncio.sleep(60)


class Silent(Recorded):
    """Asks for a token in the first message."""

    async def authenticate(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()


STARTED: ContextVar[str] = ContextVar("started")


class InOneContext(Recorded):
    """Undoes in `on_disconnect` what it did in `on_connect`, the way that libraries ask for."""

    encoding = "text"

    async def on_connect(self, websocket: WebSocket) -> None:
        self.token = STARTED.set(self.run)
        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.group.start_soon(anyio.sleep_forever)
        await super().on_connect(websocket)

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        EVENTS.setdefault(self.run, []).append((STARTED.get(), 0))
        if data == "wait":
            await self.push("begun")
            await asyncio.sleep(60)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        STARTED.reset(self.token)
        self.group.cancel_scope.cancel()
        await self.group.__aexit__(None, None, None)
        await asyncio.sleep(0.01)
        await super().on_disconnect(websocket, close_code)


class Expiring(Recorded):
    async def authenticate(self, websocket: WebSocket) -> Identity:
        return Identity(user="ann", expires=time.time() + 0.2)


class Refused(Recorded):
    reject_as = "close"
    subprotocols = ("chat",)
    number: FromQuery[int]


class Ordered(Recorded):
    """Sends by all four ways at once, and by a task besides."""

    encoding = "text"
    channels = ("ordered:{run}",)

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        for n in range(0, 400, 4):
            await websocket.send_text(str(n))
            await self.push(str(n + 1))
            await self.publish(str(n + 2))
            await websocket.send_bytes(str(n + 3).encode())


CLASSES: tuple[type[Recorded], ...] = tuple(Recorded.__subclasses__())


@pytest.fixture(scope="module")
def server(edge: Edge) -> Iterator[LiveServer]:
    app = Starlette(routes=[WebSocketRoute(f"/{cls.__name__}", cls) for cls in CLASSES])
    with live_server(app, **edge) as running:
        yield running


@pytest.fixture
def run() -> str:
    return uuid4().hex


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What was logged as a warning or worse, tracebacks included."""
    caplog.set_level(logging.INFO)
    return lambda: [
        record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info
    ]


def address(server: LiveServer, cls: type[Recorded], run: str, more: str = "") -> str:
    return f"{server.ws}/{cls.__name__}?run={run}{more}"


def ended(run: str, *, timeout: float = 5.0) -> list[tuple[str, int]]:
    """What happened until `on_disconnect` was called."""
    deadline = time.monotonic() + timeout
    while not any(name == "disconnect" for name, _ in EVENTS.get(run, [])):
        assert time.monotonic() < deadline, f"no on_disconnect within {timeout} s"
        time.sleep(0.002)
    return EVENTS[run]


def closed(client: ClientConnection) -> tuple[int, str]:
    """Code and reason of the close frame that the server sends next."""
    with pytest.raises(websockets.ConnectionClosed) as end:
        client.recv(timeout=5)
    assert end.value.rcvd is not None, "the connection was dropped without a close frame"
    return end.value.rcvd.code, end.value.rcvd.reason


Log = Callable[[], list[logging.LogRecord]]


def assert_one_refusal(log: Log, words: str) -> None:
    """Check that a refused handshake is one line, and no traceback."""
    (record,) = log()
    assert record.getMessage() == words
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


def assert_one_traceback(log: Log, *, timeout: float = 5.0) -> None:
    """Check that a fault is logged once; uvicorn does it when the endpoint has ended."""
    deadline = time.monotonic() + timeout
    while not log() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert [bool(record.exc_info) for record in log()] == [True]


@pytest.mark.parametrize(
    ("cls", "status", "body"),
    [
        (CloseBeforeAccept, 403, b""),
        (Unauthorized, 401, b"who are you?"),
        (Denied, 503, b"come back later"),
    ],
)
def test_refused_before_accept(
    server: LiveServer, run: str, log: Log, cls: type[Recorded], status: int, body: bytes
) -> None:
    with (
        pytest.raises(websockets.InvalidStatus) as refusal,
        connect(address(server, cls, run)),
    ):
        pass
    response = refusal.value.response
    assert (response.status_code, bytes(response.body or b"")) == (status, body)
    if cls is Unauthorized:
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert run not in EVENTS
    why = {CloseBeforeAccept: "closed before accept", Denied: "answered by the endpoint itself"}
    reason = why.get(cls, body.decode())
    assert_one_refusal(log, f"{cls.__name__}: handshake refused with {status}: {reason}")


@pytest.mark.parametrize("cls", [CrashInAuthenticate, InterruptedInAuthenticate, NeverAccepts])
def test_a_fault_before_accept(server: LiveServer, run: str, log: Log, cls: type[Recorded]) -> None:
    with (
        pytest.raises(websockets.InvalidStatus) as refusal,
        connect(address(server, cls, run)),
    ):
        pass
    assert refusal.value.response.status_code == 500
    assert run not in EVENTS
    assert_one_traceback(log)


@pytest.mark.parametrize(
    "cls",
    [CrashInConnect, CrashInReceive, CrashInTask, InterruptedInAccept, InterruptedInReceive],
)
def test_a_fault_after_accept(server: LiveServer, run: str, log: Log, cls: type[Recorded]) -> None:
    with connect(address(server, cls, run)) as client:
        if cls in (CrashInReceive, InterruptedInReceive):
            client.send("x")
        assert closed(client) == (1011, "internal error")
    assert ended(run) == [("disconnect", 1011)]
    assert_one_traceback(log)


@pytest.mark.parametrize("cls", [CrashInDisconnect, InterruptedInDisconnect])
def test_a_fault_in_on_disconnect(
    server: LiveServer, run: str, log: Log, cls: type[Recorded]
) -> None:
    with connect(address(server, cls, run)):
        pass
    assert ended(run) == [("disconnect", 1000)]
    assert_one_traceback(log)


def test_websocket_exception(server: LiveServer, run: str, log: Log) -> None:
    with connect(address(server, Policy, run)) as client:
        client.send("x")
        assert closed(client) == (1008, "that is not done")
    assert ended(run) == [("disconnect", 1008)]
    assert log() == []


@pytest.mark.parametrize(
    ("cls", "data", "code", "reason"),
    [
        (Text, b"x", 1003, "expected a text message, got a binary one"),
        (Bytes, "x", 1003, "expected a binary message, got text"),
        (Json, "{", 1007, "not a valid message: Input data was truncated"),
        (Json, "[" * 20_000, 1007, "not a valid message: nested too deeply"),
        (Json, '"\\ud800"', 1007, None),
        (Json, "9" * 5000, 1007, "not a valid message: Integer value out of range"),
        (Json, b'"\xff"', 1007, "not a valid message: not UTF-8"),
        (Text, "x" * 65_537, 1009, "message exceeds the limit of 65536 bytes"),
        (Text, "é" * 32_769, 1009, "message exceeds the limit of 65536 bytes"),
        (Bytes, b"x" * 65_537, 1009, "message exceeds the limit of 65536 bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30],
)
def test_a_bad_message(
    server: LiveServer,
    run: str,
    log: Log,
    caplog: pytest.LogCaptureFixture,
    cls: type[Recorded],
    data: str | bytes,
    code: int,
    reason: str | None,
) -> None:
    with connect(address(server, cls, run)) as client:
        client.send(data)
        got = closed(client)
    assert got[0] == code
    assert reason is None or got[1] == reason
    assert ended(run) == [("disconnect", code)]
    assert log() == []
    assert sum(record.name == "chatserver" for record in caplog.records) <= 1


def test_bad_utf8_in_a_text_frame(
    server: LiveServer, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(address(server, Text, run)) as client:
        # A masked text frame with the single byte 0xff, which is never UTF-8 (RFC 6455, 8.1).
        client.socket.sendall(b"\x81\x81\x00\x00\x00\x00\xff")
        assert closed(client)[0] == 1007
    assert ended(run) == [("disconnect", 1007)]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "data", ["{", b"\xff", '{"type": "sing"}', "[]"], ids=lambda value: str(value)[:30]
)
def test_a_typed_endpoint_answers_and_lives(
    server: LiveServer, run: str, log: Log, data: str | bytes
) -> None:
    with connect(address(server, Typed, run)) as client:
        client.send(data)
        assert str(client.recv(timeout=5)).startswith('{"type":"error","reason":"')
        client.send('{"type": "ping"}')
        assert client.recv(timeout=5) == '{"type":"ping"}'
    assert ended(run) == [("disconnect", 1000)]
    assert log() == []


@pytest.mark.parametrize("cls", [SendsForEver, PushesForEver])
@pytest.mark.parametrize(("how", "code"), [("leave", 1001), ("drop", 1006)])
def test_the_client_goes_while_the_handler_sends(
    server: LiveServer, run: str, log: Log, cls: type[Recorded], how: str, code: int
) -> None:
    with raw_client(address(server, cls, run)) as peer:
        peer.sendall(b"\x81\x81\x00\x00\x00\x00x")
        assert peer.recv(1)
        if how == "leave":
            peer.sendall(b"\x88\x82\x00\x00\x00\x00" + (1001).to_bytes(2))
        else:
            # Closing sends a reset then, as from a machine that was switched off and on.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        assert ended(run) == [("disconnect", code)]
    assert log() == []


def test_the_client_goes_while_the_handler_waits(server: LiveServer, run: str, log: Log) -> None:
    with connect(address(server, Busy, run)) as client:
        client.send("x")
        client.recv(timeout=5)
        begun = time.monotonic()
    assert ended(run) == [("handler ended", 0), ("disconnect", 1000)]
    assert time.monotonic() - begun < 1
    assert log() == []


@pytest.mark.parametrize("texts", [["slow"] * 3, [str(n) for n in range(200)]], ids=len)
def test_what_came_before_the_leave_is_handled(
    server: LiveServer, run: str, log: Log, texts: list[str]
) -> None:
    with connect(address(server, Slow, run)) as client:
        for text in texts:
            client.send(text)
    assert ended(run) == [*((text, 0) for text in texts), ("disconnect", 1000)]
    assert log() == []


def test_a_leave_is_noticed_at_once_and_the_rest_is_handled(
    server: LiveServer, run: str, log: Log
) -> None:
    """Sending to a client that is gone ends a handler; its later messages are handled, too."""
    with connect(address(server, SlowUntilTheEnd, run)) as client:
        for text in "abc":
            client.send(text)
    assert ended(run) == [("a", 1000), ("b", 1000), ("c", 1000), ("disconnect", 1000)]
    assert log() == []


def test_what_is_cut_off_is_counted_and_logged(
    run: str, log: Log, caplog: pytest.LogCaptureFixture, edge: Edge
) -> None:
    app = Starlette(routes=[WebSocketRoute("/TooSlow", TooSlow)])
    app.state.hub = hub = Hub()
    with live_server(app, **edge) as server:
        with connect(address(server, TooSlow, run)) as client:
            for text in "abc":
                client.send(text)
            client.recv(timeout=5)
        assert ended(run) == [("disconnect", 1000)]
    assert hub.statistics().unhandled == 3
    assert log() == []
    lines = [record.getMessage() for record in caplog.records if record.name == "chatserver"]
    assert lines == ["TooSlow: 3 received messages were not handled in time"]


def test_a_handler_that_only_sends_keeps_its_client(run: str, edge: Edge) -> None:
    app = Starlette(routes=[WebSocketRoute("/SendsForEver", SendsForEver)])
    with (
        live_server(app, ws_ping_interval=0.1, ws_ping_timeout=0.2, **edge) as server,
        connect(address(server, SendsForEver, run)) as client,
    ):
        client.send("x")
        deadline = time.monotonic() + 1  # three times ping interval and time-out
        while time.monotonic() < deadline:
            client.recv(timeout=5)
    assert ended(run) == [("disconnect", 1000)]


def test_shutdown_while_a_handler_is_busy(run: str, log: Log, edge: Edge) -> None:
    with live_server(Starlette(routes=[WebSocketRoute("/Busy", Busy)]), **edge) as server:
        client = connect(address(server, Busy, run)).__enter__()
        client.send("x")
        client.recv(timeout=5)
        begun = time.monotonic()
        server.stop()
        assert closed(client)[0] == 1012
        client.close()
    assert time.monotonic() - begun < 1
    assert EVENTS[run] == [("handler ended", 0), ("disconnect", 1012)]
    assert log() == []


@pytest.mark.parametrize(("text", "handled"), [("slow", True), ("endless", False)])
def test_a_shutdown_leaves_the_grace_to_handlers(
    run: str, log: Log, edge: Edge, text: str, handled: bool
) -> None:
    """What was received is handled within it; then `on_disconnect` comes, to its own end."""

    class Graced(Slow):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.push("begun")
            await until(lambda: self.connection.close_code is not None)
            await asyncio.sleep(60 if data == "endless" else 0)
            await super().on_receive(websocket, data)

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            await asyncio.sleep(0.05)
            await super().on_disconnect(websocket, close_code)

    app = Starlette(routes=[WebSocketRoute("/Graced", Graced)], lifespan=lifespan)
    app.state.hub = hub = Hub()
    with live_server(app, timeout_graceful_shutdown=1, **edge) as server:
        client = connect(address(server, Graced, run)).__enter__()
        for _ in range(2):
            client.send(text)
        client.recv(timeout=5)
        begun = time.monotonic()
        server.stop()
        assert closed(client)[0] == 1012
        client.close()
    assert time.monotonic() - begun < 3
    assert EVENTS[run] == [*([(text, 0)] * 2 if handled else []), ("disconnect", 1012)]
    assert hub.statistics().unhandled == (0 if handled else 2)
    messages = [record.getMessage() for record in log()]
    assert messages == (
        [] if handled else ["Cancel 1 running task(s), timeout graceful shutdown exceeded"]
    )


@pytest.mark.parametrize("cls", [Busy, SlowHandshake])
def test_shutdown_of_a_flooded_or_waiting_connection(
    run: str, cls: type[Recorded], edge: Edge
) -> None:
    """Not even with more messages than are taken, or before the accept, does it wait."""
    app = Starlette(routes=[WebSocketRoute(f"/{cls.__name__}", cls)])
    begun = time.monotonic()
    with (
        live_server(app, **edge) as server,
        raw_client(address(server, cls, run), read=False) as peer,
    ):
        if cls is Busy:
            assert peer.recv(1024).startswith(b"HTTP/1.1 101")
            peer.sendall(b"\x81\x81\x00\x00\x00\x00x" * 100)
        else:
            deadline = time.monotonic() + 5
            while run not in EVENTS and time.monotonic() < deadline:
                time.sleep(0.002)
        server.stop()
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


def test_a_handshake_in_one_context_with_its_end(server: LiveServer, run: str, log: Log) -> None:
    with connect(address(server, InOneContext, run)) as client:
        client.send("x")
    assert ended(run) == [(run, 0), ("disconnect", 1000)]
    assert log() == []


def test_the_context_is_the_same_after_a_cancellation(run: str, edge: Edge) -> None:
    app = Starlette(routes=[WebSocketRoute("/InOneContext", InOneContext)], lifespan=lifespan)
    with live_server(app, timeout_graceful_shutdown=1, **edge) as server:
        client = connect(address(server, InOneContext, run)).__enter__()
        client.send("wait")
        client.recv(timeout=5)
        server.stop()
        assert closed(client)[0] == 1012
        client.close()
    assert EVENTS[run] == [(run, 0), ("disconnect", 1012)]


def test_a_handshake_that_takes_too_long(run: str, log: Log, edge: Edge) -> None:
    app = Starlette(routes=[WebSocketRoute("/SlowHandshake", SlowHandshake)], lifespan=lifespan)
    app.state.hub = hub = Hub(limits=Limits(handshake_timeout=0.2))
    with live_server(app, **edge) as server:
        with (
            pytest.raises(websockets.InvalidStatus) as refusal,
            connect(address(server, SlowHandshake, run)),
        ):
            pass
        assert refusal.value.response.status_code == 408
        body = bytes(refusal.value.response.body or b"")
        assert body == b"the handshake was not completed within 0.2 s"
    assert hub.statistics().late_handshakes == 1
    assert EVENTS[run] == [("authenticate", 0)]
    words = (
        "SlowHandshake: handshake refused with 408: the handshake was not completed within 0.2 s"
    )
    assert_one_refusal(log, words)


def test_whoever_is_accepted_and_never_says_who_it_is(run: str, log: Log, edge: Edge) -> None:
    app = Starlette(routes=[WebSocketRoute("/Silent", Silent)], lifespan=lifespan)
    app.state.hub = hub = Hub(limits=Limits(handshake_timeout=0.2))
    with (
        live_server(app, **edge) as server,
        connect(address(server, Silent, run)) as client,
    ):
        assert closed(client) == (4408, "the handshake was not completed within 0.2 s")
        assert ended(run) == [("disconnect", 4408)]
    assert hub.statistics().late_handshakes == 1
    assert log() == []


def test_a_completed_handshake_has_no_deadline(run: str, edge: Edge) -> None:
    app = Starlette(routes=[WebSocketRoute("/Silent", Silent), WebSocketRoute("/Slow", Slow)])
    app.state.hub = Hub(limits=Limits(handshake_timeout=0.1))
    with (
        live_server(app, **edge) as server,
        connect(address(server, Slow, run)) as one,
        connect(address(server, Silent, uuid4().hex)) as two,
    ):
        two.send("me")
        for client in (one, two):
            with pytest.raises(TimeoutError):
                client.recv(timeout=0.2)


def test_an_expired_token(server: LiveServer, run: str, log: Log) -> None:
    with connect(address(server, Expiring, run)) as client:
        begun = time.monotonic()
        assert closed(client) == (4401, "the token has expired")
        assert time.monotonic() - begun < 1
    assert ended(run) == [("disconnect", 4401)]
    assert log() == []


def test_refused_by_a_close(server: LiveServer, run: str, log: Log) -> None:
    with connect(address(server, Refused, run, "&number=x"), subprotocols=["chat"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "chat"
        assert closed(client) == (4422, "query parameter 'number' must be an integer")
    assert run not in EVENTS
    words = "Refused: handshake refused with 4422: query parameter 'number' must be an integer"
    assert_one_refusal(log, words)


def test_order(server: LiveServer, run: str) -> None:
    with connect(address(server, Ordered, run)) as client:
        client.send("go")
        assert [int(client.recv(timeout=5)) for _ in range(400)] == list(range(400))


def test_a_client_that_never_reads(run: str, log: Log, edge: Edge) -> None:
    """It is closed as slow, its socket is aborted, and nobody else notices."""

    class Room(Recorded):
        encoding = "text"
        channels = ("room",)

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.publish(data)

    app = Starlette(routes=[WebSocketRoute("/Room", Room)], lifespan=lifespan)
    app.state.hub = hub = Hub(limits=Limits(close_timeout=0.3))
    with (
        live_server(app, **edge) as server,
        raw_client(address(server, Room, run)) as deaf,
        connect(address(server, Room, uuid4().hex)) as client,
    ):
        for n in range(200):
            message = f"{n} " + "x" * 60_000
            client.send(message)
            assert client.recv(timeout=5) == message
        assert ended(run) == [("disconnect", 1013)]
        assert hub.statistics().slow_consumers == 1
        assert_dropped(deaf, within=3)
        client.send("still here")
        assert client.recv(timeout=5) == "still here"
    assert log() == []


def raw_client(url: str, *, read: bool = True) -> socket.socket:
    """A handshake by hand, and then silence."""
    parts = urlsplit(url)
    peer = socket.create_connection((parts.hostname, parts.port))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.sendall(
        f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert not read or peer.recv(1024).startswith(b"HTTP/1.1 101")
    return peer


def assert_dropped(peer: socket.socket, *, within: float) -> None:
    """Check that the server resets the connection, by writing to it, as no other code does."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            peer.sendall(b"\x8a\x80\x00\x00\x00\x00")  # an unasked-for pong
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError(f"the socket was not aborted within {within} s")


class Quoting(Endpoint):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        raise WebSocketException(4000, f"no such room: {data}")


def test_a_reason_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = Starlette(routes=[WebSocketRoute("/", Quoting)])
    with TestClient(app).websocket_connect("/") as session:
        session.send_text("x\nERROR: all is lost\x1b[2J")
        assert session.receive()["code"] == 4000
    (line,) = [each.getMessage() for each in caplog.records if each.name == "chatserver"]
    assert line == r"Quoting: closed with 4000: no such room: x\nERROR: all is lost\x1b[2J"
