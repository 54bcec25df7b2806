"""An answer reaches a client that is still sending, with each parser of HTTP and on both loops.

RFC 9112, section 9.6: to close at once would reset the connection, and take the answer along.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from chatserver.hub import ADMISSION, Admission
from chatserver.limits import Limits
from chatserver.server import http, lingering
from chatserver.testing import LiveServer, live_server
from tests.asgi import PATIENCE, wait_until
from tests.raw import Peer

LARGE = 8_000_000


class App:
    """Answers every request before its body is there, and then hangs up."""

    def __init__(self, limits: Limits, body: bytes) -> None:
        self.limits = limits
        self.body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"][ADMISSION] = Admission(self.limits)
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                await send({"type": f"lifespan.{kind}.complete"})
            return
        headers = [(b"connection", b"close"), (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(str(request.param))
    return str(request.param)


@pytest.fixture(params=["httptools", "h11"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What parses HTTP: httptools, and h11 where that isn't installed."""
    monkeypatch.setattr(http, "HAS_HTTPTOOLS", request.param == "httptools")
    return str(request.param)


@contextmanager
def served(loop: str, body: bytes = b"too much", **limits: Any) -> Iterator[LiveServer]:
    with live_server(App(Limits(**limits), body), loop=loop) as live:
        yield live


def connections(live: LiveServer) -> int:
    return len(live.server.server_state.connections)


def upload(size: int) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    return head.encode()


def test_an_early_413_reaches_a_client_that_sends_on(loop: str, parser: str) -> None:
    with served(loop) as live:
        for _ in range(5):
            with Peer(live.port) as peer:
                peer.send(upload(LARGE))
                # The server has answered and hung up long before this is sent.
                peer.send(bytes(LARGE))
                peer.read_head()
                assert (peer.status, peer.take(8)) == (413, b"too much")
        wait_until(lambda: connections(live) == 0)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_early_431_reaches_a_client_that_sends_on(loop: str, parser: str, method: str) -> None:
    with served(loop) as live, Peer(live.port) as peer:
        peer.send(f"{method} / HTTP/1.1\r\nHost: x\r\nX: ".encode() + b"x" * LARGE)
        peer.read_head()
        assert peer.status == 431
        assert b"too large" in peer.rest()


def test_a_408_reaches_a_client_that_sends_on(loop: str, parser: str) -> None:
    with served(loop, header_timeout=0.2) as live:
        for begin in (b"GET", b"POST /"):
            with Peer(live.port) as peer:
                peer.send(begin)
                deadline = time.monotonic() + PATIENCE
                while peer.silent(0.01) and time.monotonic() < deadline:
                    peer.send(b"x")
                with suppress(OSError):
                    peer.send(b"x" * 100_000)
                peer.read_head()
                assert peer.status == 408


def test_a_400_reaches_a_client_that_sends_on(loop: str, parser: str) -> None:
    with served(loop) as live, Peer(live.port) as peer:
        peer.send(b"POST nonsense\r\n\r\n" + b"x" * LARGE)
        peer.read_head()
        assert peer.status == 400


def test_a_client_that_never_ends_is_aborted_in_time(loop: str, parser: str) -> None:
    with served(loop, close_timeout=0.3) as live, Peer(live.port) as peer:
        peer.send(upload(1 << 40))
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while time.monotonic() < begun + PATIENCE:
                peer.send(bytes(65_536))
        assert time.monotonic() - begun >= 0.2
        wait_until(lambda: connections(live) == 0)


def test_a_client_that_is_quiet_is_aborted_sooner(
    loop: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "QUIET", 0.1)
    with served(loop, close_timeout=60) as live, Peer(live.port) as peer:
        peer.send(upload(10))
        peer.read_head()
        assert peer.rest() == b"too much"
        wait_until(lambda: connections(live) == 0)


def test_a_slow_reader_gets_all_of_the_answer(
    loop: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "QUIET", 0.05)
    with (
        served(loop, bytes(LARGE), close_timeout=0.1) as live,
        Peer(live.port, buffer=65_536) as peer,
    ):
        peer.send(upload(10))
        peer.read_head()
        for _ in range(20):
            peer.take(LARGE // 20)
            peer.silent(0.02)


def test_what_is_written_behind_the_close_is_dropped() -> None:
    class Closed:
        written = 0

        def write(self, data: bytes) -> None:
            self.written += 1

        def is_closing(self) -> bool:
            return False

        def can_write_eof(self) -> bool:
            return False

        def close(self) -> None:
            self.written += 100

    under: Any = Closed()
    transport = lingering.LingeringTransport(under, 1)
    transport.write(b"a")
    transport.close()
    transport.close()
    transport.write(b"b")
    assert under.written == 101
    assert transport.is_closing()


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]
