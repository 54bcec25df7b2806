"""`WebSocketProtocol` on a real uvicorn, by clients of bare bytes, on both event loops.

Numbers in the names are sections of RFC 6455. What a client sends has the mask 00000000.
"""

import asyncio
import itertools
import logging
import re
import select
import selectors
import socket
import struct
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from chatserver.hub import ADMISSION, Admission
from chatserver.limits import Limits
from chatserver.server import edge
from chatserver.testing import LiveServer, live_server
from tests.asgi import PATIENCE, wait_until
from tests.raw import TEXT, Peer

OURS = {
    "ws": "chatserver.server:WebSocketProtocol",
    "http": "chatserver.server:HttpProtocol",
}
REQUEST = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
#: Seconds for which nothing must come where nothing may.
QUIET = 0.05

HELLO, HELLO_BACK = bytes.fromhex("8185 00000000 48656c6c6f"), bytes.fromhex("8105 48656c6c6f")
CLOSE, CLOSE_BACK = bytes.fromhex("8882 00000000 03e8"), bytes.fromhex("8802 03e8")
PING, PONG = bytes.fromhex("8982 00000000 6869"), bytes.fromhex("8a02 6869")
RESERVED_BIT = bytes.fromhex("a180 00000000")


def message(number: int) -> tuple[bytes, bytes]:
    """A small message, and its echo."""
    data = f"{number:05}".encode()
    return b"\x81\x85" + bytes(4) + data, b"\x81\x05" + data


class Visit:
    """One connection as the application sees it.

    Attributes:
        path: Where the client finds the application.
        events: What the application has received.
        done: Set when it has returned or raised.
    """

    def __init__(self, path: str, handler: "Handler") -> None:
        self.path = path
        self.events: list[Message] = []
        self.done = threading.Event()
        self._handler = handler

    async def serve(self, receive: Receive, send: Send) -> None:
        async def noted() -> Message:
            event = await receive()
            self.events.append(event)
            return event

        try:
            await self._handler(noted, send)
        finally:
            self.done.set()

    def wait(self) -> list[Message]:
        """What it has received, when it has ended; without the connect."""
        assert self.done.wait(PATIENCE)
        assert self.events[0] == {"type": "websocket.connect"}
        return self.events[1:]


Handler = Callable[[Receive, Send], Awaitable[None]]


class Site:
    """A server, and its application: what is to be done is up to the path."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.server: LiveServer
        self._visits: dict[str, Visit] = {}
        self._numbers = itertools.count()

    def on(self, handler: Handler) -> Visit:
        """Let the next client be served by this, at a path of its own."""
        path = f"/{next(self._numbers)}"
        visit = self._visits[path] = Visit(path, handler)
        return visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"][ADMISSION] = Admission(self.limits)
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                await send({"type": f"lifespan.{kind}.complete"})
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"no WebSocket"})
        else:
            await self._visits[scope["path"]].serve(receive, send)

    @property
    def connections(self) -> int:
        return len(self.server.server.server_state.connections)


@contextmanager
def site_of(loop: str, limits: Limits, **options: Any) -> Iterator[Site]:
    pytest.importorskip(loop)
    site = Site(limits)
    with live_server(site, loop=loop, **{**OURS, **options}) as site.server:
        yield site


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    limits = Limits(compression=True, max_unhandled=8, max_fragments=4)
    with site_of(str(request.param), limits) as site:
        yield site


@pytest.fixture(autouse=True)
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Errors that the server is expected to log; there are no others."""
    expected: list[str] = []
    caplog.set_level(logging.INFO)
    yield expected
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert len(errors) == len(expected), errors
    for error, pattern in zip(errors, expected, strict=True):
        assert re.search(pattern, error)


class Client:
    """A socket, which does nothing by itself; used as a context it is closed at the end."""

    def __init__(self, site: Site, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", site.server.port))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str, headers: bytes = b"", behind: bytes = b"") -> None:
        """Send the request, and more bytes in the same packet."""
        self.send(REQUEST % (path.encode(), headers) + behind)

    def head(self) -> bytes:
        """The answer up to the empty line, and not a byte more."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            assert byte, f"the connection ended in {data!r}"
            data += byte
        return data

    def expect(self, wire: bytes) -> None:
        """Check that these are the next bytes."""
        assert self.take(len(wire)) == wire

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            assert chunk, f"the connection ended behind {data!r}"
            data += chunk
        return data

    def rest(self) -> bytes:
        """All that comes until the server has sent its FIN; a reset would be raised."""
        data = b""
        while chunk := self.socket.recv(1 << 16):
            data += chunk
        return data

    def is_quiet(self) -> bool:
        """Whether for a moment nothing comes, and no end either."""
        return not select.select([self.socket], [], [], QUIET)[0]

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextmanager
def opened(site: Site, visit: Visit, headers: bytes = b"", buffer: int = 0) -> Iterator[Client]:
    with Client(site, buffer) as client:
        client.ask(visit.path, headers)
        assert client.head().startswith(b"HTTP/1.1 101 ")
        yield client


def close_code(wire: bytes) -> int:
    """The code in the one close frame that these bytes are."""
    assert wire[0] == 0x88
    assert wire[1] == len(wire) - 2
    return int.from_bytes(wire[2:4])


async def echo(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        with suppress(OSError):
            data = {key: event.get(key) for key in ("text", "bytes")}
            await send({"type": "websocket.send", **data})


async def only_receive(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        pass


def received(text: str) -> Message:
    return {"type": "websocket.receive", "text": text}


def disconnected(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


# Messages


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        ("8185 37fa213d 7f9f4d5158", "8105 48656c6c6f"),
        ("0183 00000000 48656c 8082 00000000 6c6f", "8105 48656c6c6f"),
        ("8280 00000000", "8200"),
        ("8282 00000000 00ff", "8202 00ff"),
        ("8180 00000000", "8100"),
        ("0181 00000000 c3 8081 00000000 a9", "8102 c3a9"),
    ],
    ids=["5.7 masked", "5.7 two frames", "5.6 no bytes", "5.6 bytes", "5.6 no text", "5.6 UTF-8"],
)
def test_a_message_is_echoed(site: Site, wire: str, answer: str) -> None:
    with opened(site, site.on(echo)) as client:
        client.send(bytes.fromhex(wire))
        client.expect(bytes.fromhex(answer))
        for byte in bytes.fromhex(wire):
            client.send(bytes([byte]))
        client.expect(bytes.fromhex(answer))


@pytest.mark.parametrize("size", [125, 126, 65535, 65536])
def test_5_2_lengths_both_ways(site: Site, size: int) -> None:
    length = (
        bytes([size])
        if size < 126
        else b"\x7e" + size.to_bytes(2)
        if size < 1 << 16
        else b"\x7f" + size.to_bytes(8)
    )
    with opened(site, site.on(echo)) as client:
        client.send(b"\x82" + bytes([0x80 | length[0]]) + length[1:] + bytes(4) + bytes(size))
        client.expect(b"\x82" + length + bytes(size))


def test_messages_in_one_packet_come_one_by_one_and_in_order(site: Site) -> None:
    visit = site.on(echo)
    numbered = [message(number) for number in range(3)]
    with opened(site, visit) as client:
        client.send(b"".join(wire for wire, _ in numbered))
        client.expect(b"".join(answer for _, answer in numbered))
        client.send(CLOSE)
        assert client.rest() == CLOSE_BACK
    assert visit.wait() == [*(received(f"{number:05}") for number in range(3)), disconnected(1000)]


def test_a_burst_that_is_more_than_may_wait_arrives_in_order(site: Site) -> None:
    numbered = [message(number) for number in range(500)]
    with opened(site, site.on(echo)) as client:
        client.send(b"".join(wire for wire, _ in numbered))
        client.expect(b"".join(answer for _, answer in numbered))
        client.send(HELLO)
        client.expect(HELLO_BACK)


def test_all_of_a_burst_is_received_though_a_close_stands_behind_it(site: Site) -> None:
    visit = site.on(only_receive)
    with opened(site, visit) as client:
        client.send(b"".join(message(number)[0] for number in range(100)) + CLOSE)
        assert client.rest() == CLOSE_BACK
    assert visit.wait() == [
        *(received(f"{number:05}") for number in range(100)),
        disconnected(1000),
    ]


# Control frames


def test_5_5_3_pings_are_answered_in_their_order(site: Site) -> None:
    with opened(site, site.on(echo)) as client:
        client.send(bytes.fromhex("8981 00000000 61 8980 00000000 8981 00000000 62"))
        client.expect(bytes.fromhex("8a01 61 8a00 8a01 62"))


def test_5_4_a_ping_among_fragments_is_answered_at_once(site: Site) -> None:
    with opened(site, site.on(echo)) as client:
        client.send(bytes.fromhex("0182 00000000 4865") + PING)
        client.expect(PONG)
        assert client.is_quiet()
        client.send(bytes.fromhex("8083 00000000 6c6c6f"))
        client.expect(HELLO_BACK)


def test_5_5_2_a_ping_is_answered_while_the_application_is_busy(site: Site) -> None:
    go_on = threading.Event()

    async def busy(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(go_on.wait, PATIENCE)

    visit = site.on(busy)
    with opened(site, visit) as client:
        client.send(HELLO + PING)
        client.expect(PONG)
        go_on.set()
        client.expect(CLOSE_BACK)
        client.send(CLOSE)
        assert client.rest() == b""


def test_5_5_3_a_pong_that_nobody_asked_for_is_not_answered(site: Site) -> None:
    with opened(site, site.on(echo)) as client:
        client.send(bytes.fromhex("8a83 00000000 616263") + PING)
        client.expect(PONG)


# The client closes


@pytest.mark.parametrize(
    ("wire", "answer", "code", "reason"),
    [
        ("8880 00000000", "8800", 1005, ""),
        ("8882 00000000 03e8", "8802 03e8", 1000, ""),
        ("8882 37fa213d 3412", "8802 03e8", 1000, ""),
        ("8885 00000000 03e9 e282ac", "8802 03e9", 1001, "\u20ac"),
        ("8882 00000000 0fa0", "8802 0fa0", 4000, ""),
        ("0181 00000000 61 8882 00000000 03e8", "8802 03e8", 1000, ""),
    ],
    ids=[
        "7.1.5 no code",
        "5.5.1 a code",
        "5.3 under a mask",
        "7.1.6 a reason",
        "7.4.2 a code of their own",
        "5.4 among fragments",
    ],
)
def test_5_5_1_a_close_is_answered_by_its_code(
    site: Site, wire: str, answer: str, code: int, reason: str
) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.send(bytes.fromhex(wire))
        # 7.1.1: the server ends its side first, with nothing behind the close frame.
        assert client.rest() == bytes.fromhex(answer)
        assert visit.wait() == [disconnected(code, reason)]
    wait_until(lambda: site.connections == 0)


def test_1_4_nothing_is_read_behind_a_close(site: Site) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.send(CLOSE + HELLO + PING + CLOSE + RESERVED_BIT + b"\xff" * 9)
        assert client.rest() == CLOSE_BACK
        client.send(HELLO)
        assert visit.wait() == [disconnected(1000)]


def test_two_tasks_may_wait_for_what_comes(site: Site) -> None:
    """ASGI doesn't mention it, but no task must wait for ever."""

    async def two(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.gather(receive(), receive())
        await asyncio.gather(receive(), receive())

    visit = site.on(two)
    with opened(site, visit) as client:
        client.send(HELLO)
        client.send(HELLO)
        client.send(CLOSE)
        events = visit.wait()
    assert events[:2] == [received("Hello")] * 2
    assert [event["type"] for event in events[2:]] == ["websocket.disconnect"] * 2


def test_5_5_1_what_stands_before_a_close_is_received(site: Site) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.send(HELLO + CLOSE)
        # Whether the echo comes is up to the server: the client has said that it will go.
        assert client.rest() in (CLOSE_BACK, HELLO_BACK + CLOSE_BACK)
    assert visit.wait() == [received("Hello"), disconnected(1000)]


def test_a_client_that_closes_and_ends_its_side_is_answered(site: Site) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.send(CLOSE)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == CLOSE_BACK
    assert visit.wait() == [disconnected(1000)]


def test_what_is_not_yet_sent_is_dropped_when_the_client_closes(site: Site) -> None:
    sent = 0

    async def flood(receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        with suppress(OSError):
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
                sent += 1

    visit = site.on(flood)
    with opened(site, visit, buffer=4096) as client:
        before = -1
        while before != sent:  # until the socket is full
            before = sent
            assert select.select([client.socket], [], [], PATIENCE)[0]
            visit.done.wait(QUIET)
        client.send(CLOSE)
        assert visit.done.wait(PATIENCE)
        data = client.rest()
    frames, rest = divmod(len(data), 100_010)
    assert data == (b"\x82\x7f" + (100_000).to_bytes(8) + bytes(100_000)) * frames + CLOSE_BACK
    assert (frames, rest) in ((sent, 4), (sent + 1, 4))


# The server closes


def closing(code: int, reason: str = "") -> Handler:
    async def close(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": code, "reason": reason})
        while (await receive())["type"] == "websocket.receive":
            pass

    return close


@pytest.mark.parametrize(
    ("code", "reason", "wire"),
    [
        (1000, "", "8802 03e8"),
        (4001, "go", "8804 0fa1 676f"),
        (1001, "\u20ac", "8805 03e9 e282ac"),
        (3000, "x" * 200, "887d 0bb8" + "78" * 123),
    ],
)
@pytest.mark.parametrize("answer", ["8882 00000000 03e8", "8880 00000000"], ids=["", "no code"])
def test_7_1_2_the_server_closes(
    site: Site, code: int, reason: str, wire: str, answer: str
) -> None:
    visit = site.on(closing(code, reason))
    with opened(site, visit) as client:
        client.expect(bytes.fromhex(wire))
        # It waits for the answer, and only then ends the connection (7.1.1).
        assert client.is_quiet()
        client.send(bytes.fromhex(answer))
        assert client.rest() == b""
    (event,) = visit.wait()
    assert (event["type"], event["code"]) == ("websocket.disconnect", code)
    wait_until(lambda: site.connections == 0)


def test_5_5_1_messages_of_a_client_that_has_not_yet_read_the_close(site: Site) -> None:
    visit = site.on(closing(1001))
    with opened(site, visit) as client:
        client.send(HELLO * 100 + bytes.fromhex("8882 00000000 03e9"))
        assert client.rest() == bytes.fromhex("8802 03e9")
    assert [event["type"] for event in visit.wait()] == ["websocket.disconnect"]


def test_5_5_1_the_answer_is_read_behind_messages_that_nobody_receives(site: Site) -> None:
    go_on = threading.Event()

    async def close_late(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.to_thread(go_on.wait, PATIENCE)
        await send({"type": "websocket.close"})
        assert await receive() == disconnected(1000)

    visit = site.on(close_late)
    with opened(site, visit) as client:
        client.send(HELLO * 7 + PING + HELLO * 100 + CLOSE)
        client.expect(PONG)
        go_on.set()
        assert client.rest() == CLOSE_BACK
    assert visit.wait() == [disconnected(1000)]


def test_7_1_2_both_close_at_once(site: Site) -> None:
    visit = site.on(closing(1001))
    with Client(site) as client:
        client.ask(visit.path, behind=bytes.fromhex("8882 00000000 0fa0"))
        assert client.head().startswith(b"HTTP/1.1 101 ")
        # One close frame, whichever was first.
        assert close_code(client.rest()) in (1001, 4000)


def test_5_5_2_a_ping_is_answered_until_the_client_has_closed(site: Site) -> None:
    with opened(site, site.on(closing(1000))) as client:
        client.expect(CLOSE_BACK)
        client.send(PING)
        client.expect(PONG)
        client.send(CLOSE + PING)
        assert client.rest() == b""


def test_7_1_7_a_violation_in_place_of_the_answer(site: Site) -> None:
    with opened(site, site.on(closing(1000))) as client:
        client.expect(CLOSE_BACK)
        client.send(RESERVED_BIT)
        assert client.rest() == b""


def test_an_unanswered_close_is_aborted_in_time(loop: str) -> None:
    with site_of(loop, Limits(close_timeout=0.2)) as site:
        visit = site.on(closing(1000))
        with opened(site, visit) as client:
            began = time.monotonic()
            client.expect(CLOSE_BACK)
            with suppress(ConnectionResetError):
                assert client.rest() == b""
            assert 0.1 < time.monotonic() - began < 3
            wait_until(lambda: site.connections == 0)
    assert visit.wait() == [disconnected(1000)]


def test_a_client_that_leaves_its_socket_open_is_aborted_in_time(loop: str) -> None:
    with site_of(loop, Limits(close_timeout=0.2)) as site, opened(site, site.on(echo)) as client:
        client.send(CLOSE)
        assert client.rest() == CLOSE_BACK
        # Even if it never stops to send.
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while time.monotonic() < began + PATIENCE:
                client.send(HELLO)
        wait_until(lambda: site.connections == 0)


def test_what_was_sent_before_the_close_arrives_before_it(site: Site) -> None:
    async def say(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for number in range(100):
            await send({"type": "websocket.send", "bytes": bytes([number]) * 65_536})
        await send({"type": "websocket.close"})

    with opened(site, site.on(say), buffer=4096) as client:
        for number in range(100):
            client.expect(b"\x82\x7f" + (65_536).to_bytes(8) + bytes([number]) * 65_536)
        client.expect(CLOSE_BACK)
        client.send(CLOSE)
        assert client.rest() == b""


def test_a_violation_of_a_client_that_has_not_taken_the_close(site: Site) -> None:
    async def say(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        writer = writers[0]
        for _ in range(100):
            writer.write(b"\x82\x7f" + (65_536).to_bytes(8) + bytes(65_536))
            if writer.writer == writer.write:
                break
        writer.write(b"\x82\x00")
        await send({"type": "websocket.close"})

    writers: list[Any] = []
    visit = site.on(say)
    serve = visit.serve

    async def noted(receive: Receive, send: Send) -> None:
        writers.append(receive.__self__)  # type: ignore[attr-defined]
        await serve(receive, send)

    visit.serve = noted  # type: ignore[method-assign]
    with opened(site, visit, buffer=4096) as client:
        assert visit.done.wait(PATIENCE)
        client.send(RESERVED_BIT)
        data = client.rest()
    # What was queued is dropped; the close frame is there all the same.
    frame = b"\x82\x7f" + (65_536).to_bytes(8) + bytes(65_536)
    assert close_code(data[len(data) // len(frame) * len(frame) :]) == 1002


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_7_4_a_code_that_cannot_be_sent_is_an_error_of_ours(
    site: Site, complaints: list[str], code: int
) -> None:
    complaints.append(f"{code} can't be sent as a close code")
    with opened(site, site.on(closing(code))) as client:
        client.expect(bytes.fromhex("8802 03f3"))
        client.send(CLOSE)
        assert client.rest() == b""


def test_1012_when_the_server_stops(loop: str) -> None:
    with site_of(loop, Limits()) as site:
        visit = site.on(echo)
        with opened(site, visit) as client:
            site.server.stop()
            answer = client.take(28)
            assert close_code(answer) == 1012
            client.send(bytes.fromhex("8882 00000000 03f4"))
            assert client.rest() == b""
        (event,) = visit.wait()
        assert event["code"] == 1012


def _closed_at(peers: list[Peer]) -> list[float]:
    """When each was told to come back, in order."""
    times: list[float] = []
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer.socket, selectors.EVENT_READ, peer)
        while len(times) < len(peers):
            ready = selector.select(PATIENCE)
            assert ready, "not every client was told"
            for key, _ in ready:
                assert key.data.close_code() == 1012
                times.append(time.monotonic())
                selector.unregister(key.fileobj)
                key.data.drop()
    return times


@pytest.mark.parametrize(
    ("rate", "grace", "shortest", "longest"),
    [(80, 3, 0.35, 0.9), (1, 1, 0.4, 1.0), (1000, None, 0, 0.3)],
    ids=["by their number", "within the grace", "a few at once"],
)
def test_clients_are_told_in_turn_when_the_server_stops(
    monkeypatch: pytest.MonkeyPatch, rate: int, grace: int | None, shortest: float, longest: float
) -> None:
    monkeypatch.setattr(edge, "ENDS_PER_SECOND", rate)
    options = {"timeout_graceful_shutdown": grace}
    with site_of("asyncio", Limits(), **options) as site, ExitStack() as stack:
        peers = [stack.enter_context(Peer(site.server.port, site.on(echo).path)) for _ in range(40)]
        site.server.stop()
        times = _closed_at(peers)
        assert shortest <= times[-1] - times[0] <= longest
        steps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert max(steps) <= max(longest / 4, 0.2)


def test_a_client_is_served_until_its_turn_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "ENDS_PER_SECOND", 40)
    with site_of("asyncio", Limits()) as site, ExitStack() as stack:
        peers = [stack.enter_context(Peer(site.server.port, site.on(echo).path)) for _ in range(40)]
        site.server.stop()
        readable, _, _ = select.select([peer.socket for peer in peers], [], [], PATIENCE)
        assert 0 < len(readable) < 20
        others = [peer for peer in peers if peer.socket not in readable]
        for peer in others:
            peer.text("hi")
        assert sum(peer.next()[0] == TEXT for peer in others) > 20


# Violations

VIOLATIONS = {
    "5.1 no mask": ("8100", 1002),
    "5.2 a reserved bit": ("a180 00000000", 1002),
    "5.2 RSV1 without compression": ("c180 00000000", 1002),
    "5.2 an unknown opcode": ("8380 00000000", 1002),
    "5.2 a length too long": ("82fe 0001", 1002),
    "5.4 nothing to continue": ("8080 00000000", 1002),
    "5.5 a ping in fragments": ("0980 00000000", 1002),
    "5.5 a ping of 126 bytes": ("89fe 007e", 1002),
    "7.4.1 1005 as a code": ("8882 00000000 03ed", 1002),
    "5.5.1 a code of one byte": ("8881 00000000 03", 1002),
    "5.5.1 a reason that isn't UTF-8": ("8883 00000000 03e8 ff", 1007),
    "8.1 text that isn't UTF-8": ("8182 00000000 c328", 1007),
    "8.1 in the middle of a frame": ("81fe 1000 00000000 61 ff", 1007),
    "10.4 a message too big": ("82ff 0000000000010001", 1009),
    "10.4 too many frames": ("0180 00000000" + "0080 00000000" * 4, 1008),
}


@pytest.mark.parametrize("behind", [b"", HELLO], ids=["", "behind a message"])
@pytest.mark.parametrize(("wire", "code"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_7_1_7_a_violation_ends_the_connection(
    site: Site, wire: str, code: int, behind: bytes
) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        # In one packet, and with something behind that is not looked at.
        client.send(behind + bytes.fromhex(wire) + PING)
        if behind:
            client.expect(HELLO_BACK)
        assert close_code(client.rest()) == code
        *events, event = visit.wait()
    assert events == ([received("Hello")] if behind else [])
    assert (event["type"], event["code"]) == ("websocket.disconnect", code)
    wait_until(lambda: site.connections == 0)


def test_7_1_7_the_close_frame_is_read_by_a_client_that_goes_on_sending(site: Site) -> None:
    with opened(site, site.on(echo)) as client:
        # Unread data in the server's socket would make it a reset, which takes the frame along.
        client.send(RESERVED_BIT + bytes(8_000_000))
        assert close_code(client.rest()) == 1002


@pytest.mark.parametrize("ending", ["closes", "returns", "receives"])
def test_a_violation_waits_for_the_answer_to_what_was_before_it(site: Site, ending: str) -> None:
    arrived = threading.Event()

    async def answer(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await asyncio.to_thread(arrived.wait, PATIENCE)
        await send({"type": "websocket.send", "text": "Hello"})
        if ending == "closes":
            await send({"type": "websocket.close", "code": 4000})
            assert await receive() == disconnected(4000)
        elif ending == "receives":
            assert (await receive())["code"] == 1002

    visit = site.on(answer)
    with opened(site, visit) as client:
        client.send(HELLO)
        wait_until(lambda: len(visit.events) == 2)
        client.send(RESERVED_BIT + bytes(300_000))
        arrived.set()
        client.expect(HELLO_BACK)
        expected = {"closes": 4000, "returns": 1000, "receives": 1002}
        assert close_code(client.rest()) == expected[ending]
    assert visit.done.wait(PATIENCE)


def test_a_violation_does_not_wait_for_long(loop: str) -> None:
    async def never_receive(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with suppress(OSError):
            while True:
                await send({"type": "websocket.send", "text": ""})
                await asyncio.sleep(0.01)

    with site_of(loop, Limits(message_timeout=0.4)) as site:
        visit = site.on(never_receive)
        with opened(site, visit) as client:
            client.send(RESERVED_BIT)
            assert close_code(client.rest().lstrip(b"\x81\x00")) == 1002
        assert visit.done.wait(PATIENCE)


def test_a_message_that_is_never_completed(loop: str) -> None:
    with site_of(loop, Limits(message_timeout=0.4)) as site:
        visit = site.on(echo)
        with opened(site, visit) as client:
            client.send(bytes.fromhex("0181 00000000 61"))
            # Not even by a client that shows that it is there.
            while client.is_quiet():
                client.send(bytes.fromhex("8a80 00000000"))
            assert close_code(client.rest()) == 1008
        assert visit.wait()[0]["code"] == 1008


# The client is gone


def test_7_1_5_a_client_that_ends_without_a_close(site: Site) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.send(HELLO)
        client.expect(HELLO_BACK)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    assert visit.wait() == [received("Hello"), disconnected(1006)]


def test_7_1_5_what_a_client_sent_before_its_end_is_received(site: Site) -> None:
    visit = site.on(only_receive)
    with opened(site, visit) as client:
        client.send(b"".join(message(number)[0] for number in range(50)) + HELLO[:-1])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    events = visit.wait()
    assert events == [*(received(f"{number:05}") for number in range(50)), disconnected(1006)]


def test_7_1_5_a_client_that_resets(site: Site) -> None:
    visit = site.on(echo)
    with opened(site, visit) as client:
        client.reset()
        assert visit.wait() == [disconnected(1006)]
    wait_until(lambda: site.connections == 0)


def test_a_client_that_ends_before_it_is_accepted(site: Site) -> None:
    gone = threading.Event()
    raised: list[BaseException] = []

    async def accept_late(receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.to_thread(gone.wait, PATIENCE)
        assert await receive() == disconnected(1006)
        try:
            await send({"type": "websocket.accept"})
        except OSError as error:
            raised.append(error)

    visit = site.on(accept_late)
    with Client(site) as client:
        client.ask(visit.path)
        wait_until(lambda: visit.events)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    gone.set()
    visit.wait()
    assert len(raised) == 1


@pytest.mark.parametrize("end", ["they close", "we close", "they vanish"])
def test_send_after_the_end_raises_oserror(site: Site, end: str) -> None:
    raised: list[type[BaseException]] = []

    async def insist(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if end == "we close":
            await send({"type": "websocket.close"})
        assert (await receive())["type"] == "websocket.disconnect"
        # The disconnect stays, and to close once more does nothing.
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.close"})
        for _ in range(2):
            try:
                await send({"type": "websocket.send", "text": "too late"})
            except OSError as error:
                raised.append(type(error))

    visit = site.on(insist)
    with opened(site, visit) as client:
        if end == "they vanish":
            client.reset()
        else:
            client.send(CLOSE)
            assert client.rest() == CLOSE_BACK
        visit.wait()
    assert len(raised) == 2


# The handshake


def test_frames_in_the_packet_of_the_request(site: Site) -> None:
    visit = site.on(echo)
    with Client(site) as client:
        client.ask(visit.path, behind=HELLO + PING + HELLO[:3])
        assert client.head().startswith(b"HTTP/1.1 101 ")
        data = client.take(len(HELLO_BACK + PONG))
        assert data in (HELLO_BACK + PONG, PONG + HELLO_BACK)
        client.send(HELLO[3:])
        client.expect(HELLO_BACK)


def test_a_message_and_a_close_in_the_packet_of_the_request(site: Site) -> None:
    visit = site.on(only_receive)
    with Client(site) as client:
        client.ask(visit.path, behind=HELLO + CLOSE)
        assert client.head().startswith(b"HTTP/1.1 101 ")
        assert client.rest() == CLOSE_BACK
    assert visit.wait() == [received("Hello"), disconnected(1000)]


def test_a_violation_in_the_packet_of_the_request(site: Site) -> None:
    visit = site.on(echo)
    with Client(site) as client:
        client.ask(visit.path, behind=HELLO + RESERVED_BIT)
        assert client.head().startswith(b"HTTP/1.1 101 ")
        client.expect(HELLO_BACK)
        assert close_code(client.rest()) == 1002


def test_more_than_the_server_takes_before_it_has_accepted(site: Site) -> None:
    go_on = threading.Event()

    async def accept_late(receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        await send({"type": "websocket.accept"})
        for _ in range(400):
            assert (await receive())["bytes"] == bytes(1000)
        await send({"type": "websocket.close"})

    visit = site.on(accept_late)
    wire = (b"\x82\xfe" + (1000).to_bytes(2) + bytes(4) + bytes(1000)) * 400
    with Client(site) as client:
        client.ask(visit.path, behind=wire[:50])
        client.send(wire[50:])
        wait_until(lambda: visit.events)
        assert client.is_quiet()
        go_on.set()
        assert client.head().startswith(b"HTTP/1.1 101 ")
        client.expect(CLOSE_BACK)
        client.send(CLOSE)
        assert client.rest() == b""


def test_a_client_that_sends_on_and_on_before_it_is_accepted_feels_it(site: Site) -> None:
    go_on = threading.Event()

    async def accept_late(receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        with suppress(OSError):
            await send({"type": "websocket.accept"})

    visit = site.on(accept_late)
    with Client(site) as client:
        client.ask(visit.path)
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            for _ in range(400):  # 26 MB, of which the kernel holds some
                client.socket.send(bytes(65_536))
        client.reset()
    go_on.set()
    visit.wait()
    wait_until(lambda: site.connections == 0)


def test_a_request_that_comes_byte_by_byte(site: Site) -> None:
    visit = site.on(echo)
    with Client(site) as client:
        for byte in REQUEST % (visit.path.encode(), b"") + HELLO:
            client.send(bytes([byte]))
        assert client.head().startswith(b"HTTP/1.1 101 ")
        client.expect(HELLO_BACK)


def test_1_3_the_answer(site: Site) -> None:
    async def accept(receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"x-one", b"1"), (b"set-cookie", b"a=b")]
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": headers})

    with Client(site) as client:
        client.ask(site.on(accept).path, b"Sec-WebSocket-Protocol: superchat, chat\r\n")
        lines = client.head().split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    names = [line.partition(b":")[0].lower() for line in lines[1:-2]]
    assert len(names) == len(set(names))
    assert {b"date", b"server"} <= set(names)
    for line in (
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"Sec-WebSocket-Protocol: chat",
        b"x-one: 1",
        b"set-cookie: a=b",
    ):
        assert line in lines


@pytest.mark.parametrize(
    "acceptance",
    [
        {"subprotocol": "chat"},
        {"headers": [(b"x", b"a\r\nb: c")]},
        {"headers": [(b"x\r\nb", b"c")]},
    ],
    ids=["4.2.2 a subprotocol not offered", "a header too many", "a name too many"],
)
def test_an_acceptance_that_cannot_be_sent_is_an_error_of_ours(
    site: Site, complaints: list[str], acceptance: dict[str, Any]
) -> None:
    async def accept(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", **acceptance})

    complaints.append("Exception in ASGI application")
    with Client(site) as client:
        client.ask(site.on(accept).path)
        assert client.rest().startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"Version: 13", b"Version: 12", b"HTTP/1.1 426 "),
        (b"Sec-WebSocket-Version: 13\r\n", b"", b"HTTP/1.1 400 "),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"x", b"HTTP/1.1 400 "),
        (b"Host: x\r\n", b"", b"HTTP/1.1 400 "),
        (b"GET ", b"POST ", b"HTTP/1.1 405 "),
        (b" HTTP/1.1", b"#top HTTP/1.1", b"HTTP/1.1 400 "),
        (b"websocket", b"h2c", b"HTTP/1.1 404 "),
        (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 404 "),
        (b"Upgrade: websocket\r\n", b"", b"HTTP/1.1 404 "),
    ],
    ids=[
        "4.4 another version",
        "4.2.1 no version",
        "4.2.1 a wrong key",
        "4.2.1 no host",
        "4.2.1 POST",
        "3 a fragment",
        "4.2.1 another upgrade is none",
        "4.2.1 HTTP/1.0 has none",
        "4.2.1 no upgrade is HTTP",
    ],
)
def test_4_2_2_a_request_that_is_no_handshake(
    site: Site, old: bytes, new: bytes, line: bytes
) -> None:
    visit = site.on(echo)
    with Client(site) as client:
        client.send((REQUEST % (visit.path.encode(), b"")).replace(old, new))
        assert client.head().startswith(line)
    assert visit.events == []


def test_a_client_that_resets_while_it_is_refused(site: Site) -> None:
    for _ in range(50):
        with Client(site) as client:
            client.send((REQUEST % (b"/", b"")).replace(b"13", b"12"))
            client.take(1)
            client.reset()
    wait_until(lambda: site.connections == 0)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_the_stock_http_protocols_hand_over_to_ours(loop: str, http: str) -> None:
    with site_of(loop, Limits(), http=http) as site, opened(site, site.on(echo)) as client:
        client.send(HELLO)
        client.expect(HELLO_BACK)
        client.send(CLOSE)
        assert client.rest() == CLOSE_BACK


# What the application says before it accepts, and when it is at its end


async def close_first(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close"})
    assert await receive() == disconnected(1006)


def denying(start: dict[str, Any], *bodies: bytes) -> Handler:
    async def deny(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", **start})
        for left, body in zip(reversed(range(len(bodies))), bodies, strict=True):
            event = {"type": "websocket.http.response.body", "body": body, "more_body": left > 0}
            await send(event)

    return deny


def test_a_close_before_the_handshake_is_a_403(site: Site) -> None:
    visit = site.on(close_first)
    with Client(site) as client:
        client.ask(visit.path, behind=HELLO)
        head, _, body = client.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nContent-Length: 0" in head
    assert body == b""
    visit.wait()
    wait_until(lambda: site.connections == 0)


def test_another_answer_than_the_connection(site: Site) -> None:
    headers = [(b"content-type", b"application/json"), (b"x-why", b"full")]
    handler = denying({"status": 429, "headers": headers}, b'{"a":', b"1}")
    with Client(site) as client:
        client.ask(site.on(handler).path)
        head, _, body = client.rest().partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 429 Too Many Requests"
    assert {b"content-type: application/json", b"x-why: full", b"Content-Length: 7"} <= set(lines)
    assert body == b'{"a":1}'


async def just_return(receive: Receive, send: Send) -> None:
    await receive()


async def just_raise(receive: Receive, send: Send) -> None:
    raise LookupError("on purpose")


async def start_and_return(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.http.response.start", "status": 400})


async def send_first(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.send", "text": "x"})


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [
        (just_return, "returned without completing handshake"),
        (just_raise, "Exception in ASGI application"),
        (start_and_return, "returned without completing handshake"),
        (denying({"status": 101}, b""), "Exception in ASGI application"),
        (denying({"status": 403, "headers": [(b"a", b"b\n")]}, b""), "Exception in ASGI"),
        (send_first, "Exception in ASGI application"),
    ],
)
def test_an_application_that_answers_no_handshake_is_an_error_of_ours(
    site: Site, complaints: list[str], handler: Handler, complaint: str
) -> None:
    complaints.append(complaint)
    with Client(site) as client:
        client.ask(site.on(handler).path)
        assert client.rest().startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


def test_an_application_that_returns_has_closed(site: Site) -> None:
    async def accept(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "Hello"})

    with opened(site, site.on(accept)) as client:
        client.expect(HELLO_BACK + CLOSE_BACK)
        assert client.is_quiet()
        client.send(CLOSE)
        assert client.rest() == b""


def test_an_application_that_raises_is_a_1011_and_one_traceback(
    site: Site, complaints: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise LookupError("on purpose")

    complaints.append("Exception in ASGI application")
    with opened(site, site.on(fail)) as client:
        client.expect(bytes.fromhex("8802 03f3"))
        client.send(bytes.fromhex("8882 00000000 03f3"))
        assert client.rest() == b""
    (record,) = (record for record in caplog.records if record.exc_info)
    assert isinstance(record.exc_info, tuple)
    assert record.exc_info[0] is LookupError


# Compression, RFC 7692


def inflated(client: Client) -> bytes:
    """The payload of the next frame, a compressed one of 126 to 65535 bytes or less."""
    first, size = client.take(2)
    assert first in (0xC1, 0xC2)
    if size == 126:
        size = int.from_bytes(client.take(2))
    return zlib.decompressobj(wbits=-15).decompress(client.take(size) + b"\x00\x00\xff\xff")


@pytest.mark.parametrize(
    "wire",
    [
        "c187 00000000 f248cdc9c90700",
        "4183 00000000 f248cd 8084 00000000 c9c90700",
        "c188 00000000 f348cdc9c9070000",
        "8185 00000000 48656c6c6f",
    ],
    ids=["7.2.3.1", "7.2.3.1 in two frames", "7.2.3.4", "6.1 not compressed"],
)
def test_7692_what_comes_compressed(site: Site, wire: str) -> None:
    visit = site.on(echo)
    with opened(site, visit, DEFLATE) as client:
        client.send(bytes.fromhex(wire))
        # Too short to be worth compressing on its way back.
        client.expect(HELLO_BACK)


def test_7692_what_goes_out_compressed(site: Site) -> None:
    with opened(site, site.on(echo), DEFLATE) as client:
        for _ in range(2):  # 7.1.1.1: the second like the first
            client.send(b"\x81\xfe\x01\x00" + bytes(4) + b"x" * 256)
            client.expect(bytes.fromhex("c1 06"))
            deflated = client.take(6)
            assert zlib.decompressobj(wbits=-15).decompress(deflated + b"\x00\x00\xff\xff") == (
                b"x" * 256
            )


def test_7692_both_ways(site: Site) -> None:
    text = b"".join(b"%d bottles, " % number for number in range(3000))
    compressor = zlib.compressobj(wbits=-15)
    deflated = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
    size = len(deflated) - 4
    assert 126 <= size < 65536
    with opened(site, site.on(echo), DEFLATE) as client:
        client.send(b"\xc1\xfe" + size.to_bytes(2) + bytes(4) + deflated[:-4])
        assert inflated(client) == text


def test_7692_the_answer_says_what_is_agreed_on(site: Site) -> None:
    with Client(site) as client:
        client.ask(site.on(echo).path, DEFLATE)
        assert (
            b"\r\nSec-WebSocket-Extensions: permessage-deflate; "
            b"server_no_context_takeover; client_no_context_takeover\r\n"
        ) in client.head()


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        ("c181 00000000 07", 1007),
        ("c184 00000000 4afc0f00", 1007),
        ("c980 00000000", 1002),
        ("4180 00000000 c080 00000000", 1002),
        ("e180 00000000", 1002),
    ],
    ids=["7.2.2 no deflate", "8.1 no text", "6.1 a ping", "6.1 a continuation", "5.2 RSV2"],
)
def test_7692_violations(site: Site, wire: str, code: int) -> None:
    with opened(site, site.on(echo), DEFLATE) as client:
        client.send(bytes.fromhex(wire))
        assert close_code(client.rest()) == code


def test_7692_a_bomb(site: Site) -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    bomb = compressor.compress(bytes(20_000_000)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    size = len(bomb) - 4
    with opened(site, site.on(echo), DEFLATE) as client:
        client.send(b"\xc2\xfe" + size.to_bytes(2) + bytes(4) + bomb[:-4])
        assert close_code(client.rest()) == 1009
