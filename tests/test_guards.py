"""Each guard of the server under attack: with it only the attacker is harmed; without, it shows.

A test that takes `on` runs twice, with the guard and with the guard's limit out of the way, so
that one sees the guard at work, not chance. Numbers in the headings are rows of the project's
table of what must hold.
"""

import logging
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from chatserver import Endpoint, FromQuery
from chatserver.app import create_app
from chatserver.auth import Identity, Verifier, mint
from chatserver.endpoints.application import lifespan
from chatserver.hub import Admission, Hub, Statistics
from chatserver.limits import Limits
from chatserver.server import incoming
from chatserver.settings import Settings
from chatserver.testing import LiveServer, live_server
from tests.asgi import wait_until
from tests.raw import (
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    RSV1,
    TEXT,
    Peer,
    frame,
    keep_little_in_the_kernel,
)

SECRET = "0123456789abcdef" * 2
#: Stands in the query of every attacker, and in no log.
TOKEN = "hunter2hunter2"
QUERY = f"?token={TOKEN}"
#: As much as would be no limit.
HUGE, NEVER = 2**30, 1e9
#: Seconds by which a deadline may be missed: by two seconds at most, says the table.
GRACE = 2.0

onoff = pytest.mark.parametrize("on", [True, False], ids=["guard", "no guard"])
loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


class Echo(Endpoint):
    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push(data)


class Room(Endpoint):
    """Tells each text to all in the room."""

    encoding = "text"
    channels = ("room",)

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.publish(data)


class Sink(Endpoint):
    """Counts what it gets."""

    handled: ClassVar[Counter[str]] = Counter()
    run: FromQuery[str] = ""

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        self.handled[self.run] += 1


class Sender(Endpoint):
    """Only sends, and would never notice what its client says."""

    async def on_accept(self, websocket: WebSocket) -> None:
        self.task_group.start_soon(self.speak)

    async def speak(self) -> None:
        await self.push("one, and nothing ever after")


class Busy(Endpoint):
    """Is with its first message for ever."""

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        while True:
            await self.push("x" * 10_000)


class Forbidden(Endpoint):
    async def authenticate(self, websocket: WebSocket) -> None:
        await websocket.close()


class Crash(Endpoint):
    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        raise ValueError("boom")


class CrashEarly(Endpoint):
    async def authenticate(self, websocket: WebSocket) -> None:
        raise ValueError("boom")


class Mine(Endpoint):
    """For one user's token."""

    async def authenticate(self, websocket: WebSocket) -> Identity:
        return await self.identify(websocket)


class MineToo(Mine):
    reject_as = "close"


class MineByPolicy(Mine):
    reject_as = "policy"


class Site(NamedTuple):
    """A server with limits."""

    live: LiveServer
    hub: Hub

    @property
    def port(self) -> int:
        return self.live.port

    @property
    def statistics(self) -> Statistics:
        return self.hub.statistics()

    @property
    def sockets(self) -> int:
        return len(self.live.server.server_state.connections)

    @property
    def unsent(self) -> int:
        """Bytes that wait for their clients, in the server's own memory."""
        return sum(
            each.transport.get_write_buffer_size() + _backlogged(each)
            for each in tuple(self.live.server.server_state.connections)
        )

    def peer(self, path: str | None = "/echo" + QUERY, **options: Any) -> Peer:
        return Peer(self.port, path, **options)


def _backlogged(protocol: Any) -> int:
    backlog = getattr(protocol, "_backlog", None)
    return backlog.size if backlog is not None else 0


@contextmanager
def site_of(options: dict[str, Any] | None = None, **limits: Any) -> Iterator[Site]:
    """A server with an endpoint of each kind.

    Args:
        options: For uvicorn.
        limits: Those that are not as usual.
    """
    served = (Echo, Room, Sink, Sender, Busy, Forbidden, Crash, CrashEarly)
    mine = (Mine, MineToo, MineByPolicy)
    routes = [WebSocketRoute(f"/{cls.__name__.lower()}", cls) for cls in (*served, *mine)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.hub = hub = Hub(limits=Limits(**limits))
    app.state.verifier = Verifier(secret=SECRET)
    with live_server(app, **(options or {})) as live:
        keep_little_in_the_kernel(live)
        yield Site(live, hub)


class Log(NamedTuple):
    """What the server says, without what it says of everybody."""

    caplog: pytest.LogCaptureFixture
    expected: list[str]

    @property
    def lines(self) -> list[str]:
        ours = ("uvicorn.error", "chatserver")
        usual = re.compile(r"\[accepted\]$|server process|pplication |Shutting|Waiting")
        records = [*self.caplog.get_records("setup"), *self.caplog.get_records("call")]
        lines = [record.getMessage() for record in records if record.name in ours]
        return [line for line in lines if not usual.search(line)]

    def says(self, pattern: str, times: int = 1) -> bool:
        """Whether exactly so many lines were written, each of which is like this."""
        lines = self.lines
        assert [line for line in lines if not re.search(pattern, line)] == []
        return len(lines) == times

    def expect_tracebacks(self, *of: str) -> None:
        self.expected.extend(of)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """No attack leaves a traceback, an error or a secret in the log."""
    caplog.set_level(logging.INFO)
    log = Log(caplog, [])
    yield log
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    errors = [str(record.exc_info) for record in records if record.exc_info]
    errors += [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert all(any(each in error for each in ("Exception in", *log.expected)) for error in errors)
    assert bool(errors) == bool(log.expected), errors
    assert not any(TOKEN in record.getMessage() for record in records)


# --- 8: slow consumers ----------------------------------------------------------------------------


@loops
@onoff
def test_a_client_that_never_reads_harms_nobody_else(loop: str, on: bool, log: Log) -> None:
    pytest.importorskip(loop)
    limits: dict[str, Any] = {"max_buffer": 200_000 if on else HUGE, "close_timeout": 0.3}
    rounds, readers = 120, 4
    with site_of({"loop": loop}, **limits) as site, ExitStack() as stack:
        deaf = stack.enter_context(site.peer("/room" + QUERY, buffer=4096))
        peers = [stack.enter_context(site.peer("/room")) for _ in range(readers)]
        most, slow_at, gone_at = 0, 0.0, 0.0
        for number in range(rounds):
            text = f"{number} ".ljust(60_000, "x")
            peers[0].text(text)
            assert [peer.message() for peer in peers] == [text] * readers
            most = max(most, site.unsent)
            if not slow_at and site.statistics.slow_consumers:
                slow_at = time.monotonic()
        if not on:
            assert site.statistics.slow_consumers == 0
            assert most > 2_000_000
            assert log.lines == []
            return
        assert slow_at
        wait_until(lambda: site.sockets == readers)
        gone_at = time.monotonic()
        assert gone_at - slow_at < 0.3 + GRACE
        # Above the limit there is what the transport takes before it says that it is full.
        assert most < 200_000 + 65_536 + 2 * 60_000
        assert deaf.ended_within(GRACE)
        assert site.statistics.slow_consumers == 1
        assert log.says("closed with 1013: slow consumer: more than 200000 bytes waiting")


def test_a_slow_client_that_reads_again_is_told_why(log: Log) -> None:
    with (
        site_of(max_buffer=200_000, close_timeout=5) as site,
        site.peer("/room" + QUERY, buffer=4096) as slow,
        site.peer("/room") as speaker,
    ):
        for _ in range(120):
            speaker.text("x" * 60_000)
            assert len(speaker.message()) == 60_000
        wait_until(lambda: site.statistics.slow_consumers == 1)
        assert slow.close_code() == 1013
        slow.send(frame(FIN | CLOSE, (1013).to_bytes(2)))
        assert slow.rest() == b""
        slow.drop()
        wait_until(lambda: site.sockets == 1)


@onoff
def test_a_full_socket_that_takes_nothing(on: bool, log: Log) -> None:
    """It is closed even if there is little to send, and though the client is alive and sends."""
    limits: dict[str, Any] = {"send_timeout": 0.4 if on else NEVER, "close_timeout": 0.3}
    pings = {"ws_ping_interval": 0.2, "ws_ping_timeout": 0.2}
    with site_of(pings, **limits) as site, site.peer("/busy" + QUERY, buffer=4096) as deaf:
        deaf.text("go on")
        begun = time.monotonic()
        assert deaf.ended_within(0.4 + 0.3 + GRACE if on else 0.9) == on
        if on:
            assert time.monotonic() - begun >= 0.4
            wait_until(lambda: site.statistics.slow_consumers == 1)
            assert log.says("closed with 1013: slow consumer: nothing taken for 0.4 s")


# --- 9 and 27: dead peers, and live ones ----------------------------------------------------------


@pytest.mark.parametrize(("loop", "on"), [("asyncio", True), ("uvloop", True), ("uvloop", False)])
def test_dead_peers_are_reaped_and_live_ones_never(loop: str, on: bool, log: Log) -> None:
    pytest.importorskip(loop)
    interval = timeout = 0.3
    pings = {"ws_ping_interval": interval if on else None, "ws_ping_timeout": timeout}
    with site_of({"loop": loop, **pings}) as site, ExitStack() as stack:
        silent = stack.enter_context(site.peer("/echo" + QUERY))
        # Answers nothing and takes nothing, and its socket is full.
        frozen = stack.enter_context(site.peer("/busy" + QUERY, buffer=4096))
        frozen.text("go on")
        # Their library answers pings, and sends nothing else.
        url = f"ws://127.0.0.1:{site.port}"
        listener = stack.enter_context(connect(url + "/room"))
        served = stack.enter_context(connect(url + "/sender"))
        # Answers no ping, but speaks.
        speaker = stack.enter_context(site.peer("/sink"))
        begun, reaped = time.monotonic(), 0.0
        while time.monotonic() < begun + 3 * (interval + timeout):
            speaker.text("I am")
            if not reaped and site.sockets == 3:
                reaped = time.monotonic() - begun
            time.sleep(0.02)
        if not on:
            assert site.sockets == 5
            return
        assert interval <= reaped <= interval + timeout + GRACE
        assert site.statistics.dead_peers == 2
        assert silent.close_code() == 1011
        assert frozen.ended_within(GRACE)
        assert log.says("closed with 1011: no answer to a ping", 2)
        assert served.recv(timeout=5) == "one, and nothing ever after"
        listener.send("still here")
        assert listener.recv(timeout=5) == "still here"
        speaker.ping(b"still here")
        while speaker.next() != (PONG, b"still here"):
            pass  # pings


@loops
def test_a_slow_reader_is_alive_while_it_takes_something(loop: str) -> None:
    """Our ping is behind all that is queued, and so is the answer."""
    pytest.importorskip(loop)
    pings = {"ws_ping_interval": 0.4, "ws_ping_timeout": 0.4}
    with (
        site_of({"loop": loop, **pings}, max_buffer=HUGE) as site,
        site.peer("/room", buffer=65_536) as slow,
    ):
        with site.peer("/room") as speaker:
            for _ in range(100):
                speaker.text("x" * 60_000)
                assert len(speaker.message()) == 60_000
        taken, deadline = 0, time.monotonic() + 1.5
        while time.monotonic() < deadline:
            taken += len(slow.socket.recv(32_768))
            time.sleep(0.02)
        assert (site.sockets, site.statistics.dead_peers) == (1, 0)
        assert site.unsent > 1_000_000, f"{taken} bytes were taken, which is too quick"


# --- 10: resets in the middle of a broadcast ------------------------------------------------------


@loops
def test_survivors_of_resets_get_all_exactly_once(loop: str, log: Log) -> None:
    pytest.importorskip(loop)
    with site_of({"loop": loop}) as site, ExitStack() as stack:
        victims = [site.peer("/room" + QUERY) for _ in range(20)]
        survivors = [stack.enter_context(site.peer("/room")) for _ in range(20)]
        speaker = survivors[0]
        sent = []
        for number, victim in enumerate(victims):
            texts = [f"{number}.{part}".ljust(500, "x") for part in range(20)]
            speaker.send(b"".join(frame(FIN | TEXT, text.encode()) for text in texts))
            if number % 2:
                # In the middle: some of this round has arrived, some is on its way.
                assert victim.message()
            victim.reset()
            sent += texts
        speaker.text("the end")
        for survivor in survivors:
            assert list(survivor.messages(len(sent) + 1)) == [*sent, "the end"]
        wait_until(lambda: site.sockets == 20)
        assert site.statistics.connections == site.statistics.subscriptions == 20
        for survivor in survivors:
            survivor.ping(b"nothing in between")
            assert survivor.next() == (PONG, b"nothing in between")
        assert log.lines == []


# --- 12 and 13: handshakes without an end ---------------------------------------------------------

BEGINNINGS = (
    b"",
    b"GET /echo HT",
    b"GET /echo?token=%b HTTP/1.1\r\nHost: x\r\nX: " % TOKEN.encode(),
)


def answers(peers: list[Peer], until: float, meanwhile: Callable[[], None]) -> dict[Peer, bytes]:
    """What those got whose connections were ended in time, reading all of them at once."""
    ended: dict[Peer, bytes] = {}
    received = dict.fromkeys(peers, b"")
    with selectors.DefaultSelector() as selector:
        for peer in peers:
            selector.register(peer.socket, selectors.EVENT_READ, peer)
        while len(ended) < len(peers) and time.monotonic() < until:
            for key, _ in selector.select(0.02):
                data = b""
                with suppress(ConnectionResetError):
                    data = key.data.socket.recv(4096)
                received[key.data] += data
                if not data:
                    selector.unregister(key.data.socket)
                    ended[key.data] = received[key.data]
            meanwhile()
    return ended


@onoff
def test_half_open_handshakes(on: bool, log: Log) -> None:
    limit, number = 0.5, 300 if on else 15
    with site_of(header_timeout=limit if on else NEVER) as site, ExitStack() as stack:
        begun = time.monotonic()
        peers = [stack.enter_context(site.peer(None)) for _ in range(number)]
        for index, peer in enumerate(peers):
            peer.send(BEGINNINGS[index % 3])
        honest: list[float] = []

        def meanwhile() -> None:
            for peer in peers[2::3]:
                with suppress(OSError):
                    peer.send(b"x")
            at = time.monotonic()
            with site.peer("/echo") as client:
                client.text("hi")
                assert client.message() == "hi"
            honest.append(time.monotonic() - at)

        ended = answers(peers, begun + limit + (GRACE if on else 0.4), meanwhile)
        assert honest
        assert max(honest) < 1
        if not on:
            assert not ended
            return
        assert len(ended) == number
        assert {answer.partition(b"\r\n")[0] for answer in ended.values()} == {
            b"HTTP/1.1 408 Request Timeout"
        }
        assert site.statistics.bad_requests == number
        wait_until(lambda: site.sockets == 0)
        assert log.says("127.0.0.1 - 408: The request took too long.", number)


@pytest.mark.parametrize(
    "behind", [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"]
)
def test_a_half_open_request_behind_an_answered_one(behind: bytes, log: Log) -> None:
    """uvicorn's own time-out is off as soon as something comes."""
    with site_of(header_timeout=0.4) as site, site.peer(None) as peer:
        peer.send(behind.replace(b"\r\n", b"\r\nHost: x\r\n", 1))
        peer.read_head()
        assert peer.status == 404
        begun = time.monotonic()
        peer.send(b"G")
        assert b"HTTP/1.1 408" in peer.rest()
        assert time.monotonic() - begun < 0.4 + GRACE
        assert site.statistics.bad_requests == 1


def test_time_for_the_headers_is_no_time_for_the_rest(log: Log) -> None:
    with site_of(header_timeout=0.2) as site, site.peer("/echo") as peer:
        assert peer.silent(0.5)
        peer.text("hi")
        assert peer.message() == "hi"


HEADERS = {
    "an endless header": (b"GET /echo HTTP/1.1\r\nHost: x\r\nX: ", b"x" * 50),
    "headers without end": (b"GET /echo HTTP/1.1\r\nHost: x\r\n", b"X-%d: y\r\n" % 10**40),
    "an endless name": (b"GET /echo HTTP/1.1\r\nHost: x\r\n", b"x" * 50),
    "an endless path": (b"GET /", b"x" * 50),
    "an endless query": (b"GET /echo?token=%b&x=" % TOKEN.encode(), b"x" * 50),
    "an endless cookie": (b"GET /echo HTTP/1.1\r\nHost: x\r\nCookie: session=", b"y" * 50),
}


@pytest.mark.parametrize("how", ["at once", "in pieces"])
@onoff
def test_endless_headers(how: str, on: bool, log: Log) -> None:
    limit = 4096
    with site_of(max_header_size=limit if on else HUGE) as site:
        for begin, more in HEADERS.values():
            with site.peer(None) as peer:
                peer.send(begin)
                sent, step = len(begin), 4 if how == "in pieces" else 100
                while sent < 3 * limit and not select.select([peer.socket], [], [], 0.001)[0]:
                    peer.send(more * step)
                    sent += len(more) * step
                if on:
                    assert peer.rest().startswith(b"HTTP/1.1 431 ")
                    assert sent <= limit + (20 + step) * len(more)
                else:
                    assert peer.silent(0.05)
        assert site.statistics.bad_requests == (len(HEADERS) if on else 0)
        if on:
            assert log.says("127.0.0.1 - 431: The request's headers are too large.", len(HEADERS))


@onoff
def test_complete_headers_that_are_too_large(on: bool, log: Log) -> None:
    with site_of(max_header_size=4096 if on else HUGE) as site:
        with site.peer("/echo", headers=f"X: {'x' * 5000}\r\n") as peer:
            assert peer.status == (431 if on else 101)
        with site.peer("/echo", headers=f"X: {'x' * 3000}\r\n") as peer:
            assert peer.status == 101


@onoff
def test_endless_headers_take_no_memory(on: bool) -> None:
    """A client that sends for all it is worth: what the kernel holds is all that goes."""
    total, piece = 20_000_000, b"x" * 65_536
    with site_of(max_header_size=65_536 if on else HUGE) as site, site.peer(None) as peer:
        peer.send(b"GET / HTTP/1.1\r\nX: ")
        tracemalloc.start()
        try:
            with suppress(OSError):
                for _ in range(total // len(piece)):
                    peer.send(piece)
            if not on:
                wait_until(lambda: tracemalloc.get_traced_memory()[1] > total * 0.9)
            else:
                assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


# --- 14 and 15: messages too large, too slow, or in too many pieces -------------------------------


def deflated(data: bytes) -> bytes:
    """As one message by itself (RFC 7692, section 7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


LARGE = {
    "one frame": frame(FIN | TEXT, b"x" * 1001),
    "one frame, of which nothing comes": frame(FIN | TEXT, size=1001),
    "fragments": frame(TEXT, b"x" * 600) + frame(FIN | CONTINUATION, b"x" * 401),
    "fragments, of which little comes": frame(TEXT, b"x") + frame(CONTINUATION, size=1000),
    "small ones": frame(TEXT) + frame(CONTINUATION, b"x" * 100) * 11,
    "compressed": frame(FIN | TEXT | RSV1, deflated(b"x" * 1001)),
    "compressed fragments": frame(TEXT | RSV1, deflated(b"x" * 1001)[:5])
    + frame(FIN | CONTINUATION, deflated(b"x" * 1001)[5:]),
}
COMPRESSION = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


@onoff
def test_large_messages(on: bool, log: Log) -> None:
    limits: dict[str, Any] = {"max_message_size": 1000 if on else 1_000_000, "compression": True}
    with site_of(**limits) as site:
        for kind, wire in LARGE.items():
            headers = COMPRESSION * kind.startswith("compressed")
            with site.peer("/sink" + QUERY, headers=headers) as peer:
                peer.send(wire)
                assert peer.close_code() == 1009 if on else peer.silent(0.1)
        assert site.statistics.bad_messages == (len(LARGE) if on else 0)
        assert not on or log.says("127.0.0.1 - closed with 1009: ", len(LARGE))


def test_messages_of_just_the_size_that_is_allowed() -> None:
    with site_of(max_message_size=1000, max_fragments=4) as site, site.peer("/echo") as peer:
        for wire in (
            frame(FIN | TEXT, b"x" * 1000),
            frame(TEXT, b"x" * 500) + frame(FIN | CONTINUATION, b"x" * 500),
            frame(TEXT, b"x" * 250) + frame(0, b"x" * 250) * 2 + frame(FIN, b"x" * 250),
        ):
            peer.send(wire)
            assert peer.message() == "x" * 1000


#: Messages without an end: what begins them, and what comes every now and then.
UNFINISHED = {
    "half a header": (b"\x81", b""),
    "half a length": (frame(FIN | TEXT, size=300)[:3], b""),
    "a header": (frame(FIN | TEXT, size=300), b""),
    "dripping bytes": (frame(FIN | TEXT, size=65_536), b"x"),
    "fragments": (frame(TEXT, b"x"), frame(CONTINUATION, b"x")),
    "pings in between": (frame(TEXT, b"x"), frame(FIN | PING)),
    "half a ping": (frame(FIN | PING, size=9), b""),
}


@onoff
def test_unfinished_messages(on: bool, log: Log) -> None:
    limit = 0.3
    with (
        site_of(message_timeout=limit if on else NEVER, header_timeout=1) as site,
        ExitStack() as stack,
    ):
        begun = time.monotonic()
        peers = {stack.enter_context(site.peer("/echo" + QUERY)): kind for kind in UNFINISHED}
        for peer, kind in peers.items():
            peer.send(UNFINISHED[kind][0])
        until = begun + limit + (GRACE if on else 0.3)
        while site.statistics.unfinished < len(peers) and time.monotonic() < until:
            for peer, kind in peers.items():
                peer.send(UNFINISHED[kind][1])
            time.sleep(0.02)
        assert site.statistics.unfinished == (len(peers) if on else 0)
        if not on:
            assert site.sockets == len(peers)
            return
        assert time.monotonic() >= begun + limit
        assert [peer.close_code() for peer in peers] == [1008] * len(peers)
        reason = "127.0.0.1 - closed with 1008: message not complete within 0.3 s"
        assert log.says(reason, len(peers))


def test_messages_that_always_straddle_packets_are_finished_each() -> None:
    """There is always one begun, and never one for long."""
    wire = frame(FIN | TEXT, b"x" * 20) + frame(FIN | PING, b"ping")
    with site_of(message_timeout=0.2) as site, site.peer("/echo") as peer:
        deadline, half = time.monotonic() + 1, len(wire) // 2
        peer.send(wire[:half])
        while time.monotonic() < deadline:
            peer.send(wire[half:] + wire[:half])
            assert peer.message() == "x" * 20
        assert site.statistics.unfinished == 0


@onoff
def test_fragments_without_end(on: bool, log: Log) -> None:
    with site_of(max_fragments=64 if on else 1_000_000) as site:
        for payload in (b"", b"x"):
            with site.peer("/echo" + QUERY) as peer:
                more = frame(CONTINUATION, payload)
                peer.send(frame(TEXT, payload) + more * 63)
                peer.ping(b"64 will do")
                assert peer.next() == (PONG, b"64 will do")
                if on:
                    peer.send(more)
                    assert peer.close_code() == 1008
                else:
                    peer.send(more * 4935 + frame(FIN | CONTINUATION, payload))
                    assert peer.message() == (payload * 5000).decode()
        assert site.statistics.bad_messages == (2 if on else 0)
        if on:
            assert log.says("127.0.0.1 - closed with 1008: message in more than 64 frames", 2)


# --- 16: pings whose pongs are not read -----------------------------------------------------------


@loops
@onoff
def test_pings_whose_pongs_are_not_read(loop: str, on: bool, log: Log) -> None:
    """What has no limit to take away is compared with the protocol that uvicorn takes by itself."""
    pytest.importorskip(loop)
    options = {"loop": loop} if on else {"loop": loop, "ws": "auto"}
    number, most = 40_000, 0
    with (
        site_of(options, max_message_rate=0) as site,
        site.peer("/echo" + QUERY, buffer=4096) as peer,
    ):
        for start in range(0, number, 1000):
            numbers = range(start, start + 1000)
            peer.send(b"".join(frame(FIN | PING, b"%0125d" % each) for each in numbers))
            most = max(most, site.unsent)
        if not on:
            wait_until(lambda: site.unsent > 4_000_000)
            return
        assert most < 200_000
        pong = 0
        while pong < number - 1:
            opcode, payload = peer.next()
            assert opcode == PONG
            assert int(payload) > pong or pong == 0
            pong = int(payload)
        assert log.lines == []


# --- 17: floods -----------------------------------------------------------------------------------

RATE = 200
FLOODS = {"messages": frame(FIN | TEXT, b"x"), "pings": frame(FIN | PING)}


@contextmanager
def flooding(peer: Peer, wire: bytes) -> Iterator[None]:
    """A client that sends as fast as it can, as long as it can, and reads nothing."""

    def flood() -> None:
        with suppress(OSError):
            while True:
                peer.send(wire)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds for which a client may flood: fewer than usual, for the test not to take long."""
    monkeypatch.setattr(incoming, "FLOOD_SECONDS", 0.6)
    return 0.6


@pytest.mark.parametrize("kind", FLOODS)
@onoff
def test_a_flood_is_slowed_and_then_closed(kind: str, on: bool, brief: float, log: Log) -> None:
    Sink.handled.clear()
    limits: dict[str, Any] = {"max_message_rate": RATE if on else 0, "message_timeout": 0.4}
    with (
        site_of(**limits, close_timeout=0.3) as site,
        site.peer("/echo") as other,
        site.peer("/sink?run=flood&token=" + TOKEN) as peer,
        flooding(peer, FLOODS[kind] * 1000),
    ):
        begun, echoes = time.monotonic(), []
        until = begun + brief + (GRACE if on else 0)
        while time.monotonic() < until and not site.statistics.floods:
            at = time.monotonic()
            other.text("hi")
            assert other.message() == "hi"
            echoes.append(time.monotonic() - at)
            time.sleep(0.005)  # it is no flood itself
        lasted = time.monotonic() - begun
        assert site.statistics.floods == on
        if not on:
            assert kind == "pings" or Sink.handled["flood"] > 10 * RATE
            return
        assert max(echoes) < 1
        assert brief <= lasted + 0.2
        # As many as may come in that time, and one sweep's more at either end.
        assert Sink.handled["flood"] <= RATE * (lasted + 3 * 0.1)
        assert kind == "pings" or Sink.handled["flood"] >= RATE * brief / 2
        # It reads nothing, so it is aborted in the end.
        wait_until(lambda: site.sockets == 1)
        assert site.statistics.bad_messages == 1
        assert log.says("127.0.0.1 - closed with 1008: more than 200 messages a second")


def test_a_client_within_the_limit_is_not_slowed(brief: float) -> None:
    limits: dict[str, Any] = {"max_message_rate": RATE, "message_timeout": 0.4}
    with site_of(**limits) as site, site.peer("/echo") as peer:
        begun, number = time.monotonic(), 0
        while time.monotonic() < begun + 2 * brief:
            peer.text("hi")
            assert peer.message() == "hi"
            number += 1
            while time.monotonic() < begun + number / (0.9 * RATE):
                time.sleep(0.001)
        assert number > 1.6 * RATE * brief
        assert site.statistics.floods == 0


def test_a_client_that_waits_for_answers_is_slowed_and_never_closed(brief: float) -> None:
    """However quick it is, it never has more than one message on its way."""
    limits: dict[str, Any] = {"max_message_rate": RATE, "message_timeout": 0.4}
    with site_of(**limits) as site, site.peer("/echo") as peer:
        begun, number = time.monotonic(), 0
        peer.text("hi")
        while time.monotonic() < begun + 2 * brief:
            assert peer.message() == "hi"
            peer.text("hi")
            number += 1
        assert number <= RATE * (2 * brief + 0.3)
        assert site.statistics.floods == 0


@onoff
def test_many_bytes_at_once_are_read_no_faster_than_allowed(on: bool) -> None:
    size, count = 8192, 50
    Sink.handled.clear()
    limits: dict[str, Any] = {"max_buffer": 65_536, "max_byte_rate": 500_000 if on else 0}
    with (
        site_of(**limits) as site,
        site.peer("/sink?run=bytes&token=" + TOKEN) as peer,
        site.peer("/echo") as other,
    ):
        begun = time.monotonic()
        peer.send(frame(FIN | TEXT, b"x" * size) * count)
        while Sink.handled["bytes"] < count:
            assert time.monotonic() < begun + GRACE
            other.text("hi")
            assert other.message() == "hi"
        lasted = time.monotonic() - begun
        # The burst may be used twice: bytes earned meanwhile count when they are spent.
        least = (size * (count - 1) - 2 * 65_536) / 500_000
        assert not on or lasted >= least
        peer.send(frame(FIN | CLOSE, b"\x03\xe8"))
        assert peer.next() == (CLOSE, b"\x03\xe8")
        assert site.statistics.bad_messages == 0


# --- 18: decompression bombs ----------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 50])
@onoff
def test_a_bomb_is_inflated_no_further_than_allowed(pieces: int, on: bool, log: Log) -> None:
    size = 30_000_000
    bomb = deflated(bytes(size))
    step = -(-len(bomb) // pieces)
    parts = [bomb[start : start + step] for start in range(0, len(bomb), step)]
    wire = frame(TEXT | RSV1, parts[0]) + b"".join(frame(CONTINUATION, part) for part in parts[1:])
    wire += frame(FIN | CONTINUATION)
    limits: dict[str, Any] = {"max_message_size": 65_536 if on else HUGE, "compression": True}
    options = {"ws_max_size": HUGE}
    with (
        site_of(options, **limits) as site,
        site.peer("/sink" + QUERY, headers=COMPRESSION) as peer,
    ):
        assert "permessage-deflate" in peer.head
        tracemalloc.start()
        try:
            peer.send(wire)
            peer.ping(b"done")
            if not on:
                while peer.next() != (PONG, b"done"):
                    pass
                assert tracemalloc.get_traced_memory()[1] > size
                return
            assert peer.close_code() == 1009
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
        assert site.statistics.bad_messages == 1
        assert log.says("127.0.0.1 - closed with 1009: ")


def test_compression_is_off_unless_asked_for(log: Log) -> None:
    with site_of() as site, site.peer("/echo" + QUERY, headers=COMPRESSION) as peer:
        assert (peer.status, "permessage-deflate" in peer.head) == (101, False)
        peer.send(frame(FIN | TEXT | RSV1, deflated(b"hi")))
        assert peer.close_code() == 1002
        assert site.statistics.bad_messages == 1


# --- 19: too many connections ---------------------------------------------------------------------


def body(peer: Peer) -> str:
    return peer.rest().decode()


FULL = "The server has as many connections as it can take. Try again later.\n"


@onoff
def test_connections_of_a_server(on: bool, log: Log) -> None:
    with site_of(max_connections=3 if on else 0) as site, ExitStack() as stack:
        others = [stack.enter_context(site.peer("/echo")) for _ in range(3)]
        with site.peer("/echo" + QUERY, source="127.0.0.9") as peer:
            assert peer.status == (503 if on else 101)
            if on:
                assert body(peer) == FULL
                assert site.statistics.refused == 1
                assert site.statistics.connections == 3
                assert log.says('^127.0.0.9 - "WebSocket" 503: The server has as many')
        for other in others:
            other.text("still here")
            assert other.message() == "still here"


@onoff
def test_connections_of_an_address(on: bool, log: Log) -> None:
    with site_of(max_address_connections=2 if on else 0) as site, ExitStack() as stack:
        for source in ("127.0.0.1", "127.0.0.2"):
            peers = [stack.enter_context(site.peer("/echo", source=source)) for _ in range(2)]
            assert [peer.status for peer in peers] == [101, 101]
        with site.peer("/echo" + QUERY, source="127.0.0.2") as peer:
            assert peer.status == (429 if on else 101)
            if on:
                assert body(peer) == "There are 2 connections from your address already.\n"
                assert site.statistics.refused == 1
                assert log.says('^127.0.0.2 - "WebSocket" 429: There are 2')
        with site.peer("/echo", source="127.0.0.3") as peer:
            assert peer.status == 101


def test_clients_of_a_unix_socket_have_no_address_to_be_counted_by() -> None:
    admission = Admission(Limits(max_address_connections=1))
    for address, refused in (("", False), ("127.0.0.1", True)):
        assert admission.enter(address) is None
        assert (admission.enter(address) is not None) == refused


@pytest.mark.parametrize("manner", ["mine", "minetoo", "minebypolicy"])
@onoff
def test_connections_of_a_user(manner: str, on: bool, log: Log) -> None:
    ann, bob = (mint(SECRET, user=user, ttl_seconds=60) for user in ("ann", "bob"))
    with site_of(max_user_connections=2 if on else 0) as site, ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(site.peer(f"/{manner}?token={ann}")).status == 101
        with site.peer(f"/{manner}?token={ann}") as peer:
            if not on:
                assert peer.status == 101
                return
            reason = "2 connections are open already"
            if manner == "minetoo":
                assert (peer.status, peer.next()) == (101, (CLOSE, b"\x11\x4d" + reason.encode()))
            elif manner == "mine":
                assert (peer.status, body(peer)) == (429, reason)
            else:
                assert peer.status == 403
        assert site.statistics.refused == 1
        with site.peer(f"/{manner}?token={bob}") as peer:
            assert peer.status == 101
        why, *request = log.lines
        assert why.endswith(f": {reason}")
        assert ann not in "".join((why, *request))


def test_a_wrong_token_takes_nobodys_place() -> None:
    ann = mint(SECRET, user="ann", ttl_seconds=60)
    with site_of(max_user_connections=1) as site:
        for _ in range(3):
            with site.peer(f"/mine?token={ann}x") as peer:
                assert peer.status == 401
        with site.peer(f"/mine?token={ann}") as peer:
            assert peer.status == 101


def break_a_rule(peer: Peer) -> None:
    peer.send(b"\xff\xff")
    assert peer.close_code() == 1002


def reset_unread(peer: Peer) -> None:
    peer.text("go on")
    peer.next()
    peer.reset()


def crash_the_handler(peer: Peer) -> None:
    peer.text("x")
    assert peer.close_code() == 1011


#: How a connection ends: where it was, and what it does there.
ENDS: dict[str, tuple[str, Callable[[Peer], Any]]] = {
    "it closes": ("/mine", Peer.leave),
    "it drops": ("/mine", Peer.drop),
    "it resets": ("/mine", Peer.reset),
    "it breaks a rule": ("/mine", break_a_rule),
    "it resets unread": ("/busy", reset_unread),
    "it was not let in": ("/forbidden", Peer.rest),
    "it has a wrong token": ("/mine?token=x", Peer.rest),
    "its handler crashes": ("/crash", crash_the_handler),
    "its handshake crashes": ("/crashearly", Peer.rest),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_place_is_free_again_however_a_client_ends(end: str, log: Log) -> None:
    if "crash" in end:
        log.expect_tracebacks("boom")
    token = mint(SECRET, user="ann", ttl_seconds=60)
    path, leave = ENDS[end]
    path += "" if "?" in path else f"?token={token}"
    most: dict[str, Any] = dict.fromkeys(
        ("max_connections", "max_address_connections", "max_user_connections"), 2
    )
    with site_of(**most, close_timeout=0.3) as site:
        for _ in range(3):
            peers = [site.peer(path) for _ in range(2)]
            with site.peer("/mine?token=" + token) as one_more:
                assert one_more.status == 503 or path not in ("/mine", "/busy")
            for peer in peers:
                leave(peer)
                peer.drop()
            wait_until(lambda: site.sockets == 0 and not site.hub.admission._users)
        admission = site.hub.admission
        assert (admission._sockets, admission._addresses) == (0, {})
        with site.peer(f"/mine?token={token}") as peer:
            assert peer.status == 101


def test_those_refused_can_come_again(log: Log) -> None:
    with site_of(max_connections=1) as site:
        with site.peer("/echo") as first:
            for _ in range(10):
                with site.peer("/echo") as peer:
                    assert peer.status == 503
            first.text("still here")
            assert first.message() == "still here"
        wait_until(lambda: site.sockets == 0)
        with site.peer("/echo") as peer:
            assert peer.status == 101
        assert site.statistics.refused == 10
        assert log.says("503", 10)


def test_a_refused_client_is_not_counted() -> None:
    """Though it reads no answer, and keeps its socket open."""
    with site_of(max_connections=1, close_timeout=60) as site, site.peer("/forbidden") as peer:
        assert peer.status == 403
        with site.peer("/echo") as other:
            assert other.status == 101
        assert site.sockets >= 1


def test_a_request_for_a_page_takes_no_place() -> None:
    with site_of(max_connections=1) as site, site.peer(None) as page:
        page.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        page.read_head()
        assert page.status == 404
        with site.peer("/echo") as peer:
            assert peer.status == 101


def test_limits_are_settings() -> None:
    """From the setting to the edge, by way of the ready application."""
    app = create_app(Settings(max_connections=1, max_header_size=300))
    with live_server(app) as live, Peer(live.port, "/ws") as peer:
        assert peer.status == 101
        with Peer(live.port, "/ws") as refused:
            assert (refused.status, body(refused)) == (503, FULL)
        with Peer(live.port, "/ws", headers=f"X: {'x' * 300}\r\n") as large:
            assert large.status == 431
        assert app.state.hub.statistics().refused == 1
        assert app.state.hub.statistics().bad_requests == 1


# --- 24: the end ----------------------------------------------------------------------------------


@contextmanager
def command(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`chatserver run` as people run it, and its port."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatserver", "run", "--port", "0", *flags],
            stdout=log,
            stderr=log,
        )
        try:
            pattern = re.compile(r"Open http://127.0.0.1:(\d+)/")
            found = None
            deadline = time.monotonic() + 20
            while found is None or "startup complete" not in (folder / "log").read_text():
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)
                found = pattern.search((folder / "log").read_text())
            yield process, int(found[1])
        finally:
            process.kill()
            process.wait()


def test_sigterm_with_clients_that_read_and_clients_that_never_do(tmp_path: Path) -> None:
    with command(tmp_path) as (process, port), ExitStack() as stack:
        readers = [stack.enter_context(Peer(port, f"/ws/{n}")) for n in range(195)]
        deaf = [stack.enter_context(Peer(port, "/ws" + QUERY, buffer=4096)) for _ in range(5)]
        for peer in deaf:
            # It takes none of its echoes, until it is itself not read any more.
            peer.socket.settimeout(0.3)
            with suppress(TimeoutError):
                for _ in range(400):
                    peer.send(frame(FIN | TEXT, b"x" * 60_000))
        half = [stack.enter_context(Peer(port)) for _ in range(5)]
        for peer in half:
            peer.send(b"GET /ws HTTP/1.1\r\n")
        readers[0].text("hi")
        assert readers[0].message() == "You wrote: hi"
        said = len((tmp_path / "log").read_text().splitlines())
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert [reader.close_code() for reader in readers] == [1012] * len(readers)
        for reader in readers:
            reader.drop()
        process.wait(10)
        assert time.monotonic() - begun < 5
        log = (tmp_path / "log").read_text()
        assert "Traceback" not in log
        assert TOKEN not in log
        assert len(log.splitlines()) - said <= 20
