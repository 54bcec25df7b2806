"""Our HTTP protocol where it differs from uvicorn's: requests that never end or are never read."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from chatserver import BroadcastEndpoint, EchoEndpoint
from chatserver.endpoints.application import lifespan
from chatserver.hub import Hub
from chatserver.limits import Limits
from chatserver.testing import LiveServer, live_server
from tests.asgi import wait_until
from tests.raw import REQUEST, Peer, keep_little_in_the_kernel

LARGE = 1_000_000


async def large(_: Request) -> Response:
    return Response(bytes(LARGE))


async def slow(_: Request) -> Response:
    await asyncio.sleep(0.2)
    return PlainTextResponse("late")


async def refused(_: Request) -> Response:
    """Answers before the body is there."""
    return PlainTextResponse("no", 401)


async def size(request: Request) -> Response:
    try:
        return PlainTextResponse(str(len(await request.body())))
    except ClientDisconnect:
        return Response()


def request(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


UPGRADE = REQUEST.format(path="/ws/1", headers="").encode()


class Site:
    def __init__(self, live: LiveServer, hub: Hub) -> None:
        self.live = live
        self.hub = hub

    def peer(self, path: str | None = None, **options: Any) -> Peer:
        return Peer(self.live.port, path, **options)

    @property
    def connections(self) -> tuple[Any, ...]:
        return tuple(self.live.server.server_state.connections)

    @property
    def idle(self) -> bool:
        return not self.connections and not self.live.server.server_state.tasks


@contextmanager
def site_of(
    loop: str = "asyncio", options: dict[str, Any] | None = None, **limits: Any
) -> Iterator[Site]:
    pytest.importorskip(loop)
    routes = [
        Route("/large", large),
        Route("/slow", slow),
        Route("/refused", refused, methods=["POST"]),
        Route("/size", size, methods=["POST"]),
        WebSocketRoute("/ws", EchoEndpoint),
        WebSocketRoute("/ws/{client_id}", BroadcastEndpoint),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.hub = hub = Hub(limits=Limits(**limits))
    with live_server(app, loop=loop, **(options or {})) as live:
        keep_little_in_the_kernel(live)
        yield Site(live, hub)


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


loops = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


def full(site: Site) -> bool:
    """Whether an answer waits for a client that doesn't read it."""
    return any(each.flow.write_paused for each in site.connections if hasattr(each, "flow"))


@loops
@pytest.mark.parametrize("http", ["ours", "h11"])
def test_a_handshake_behind_an_answer_that_nobody_reads(loop: str, http: str) -> None:
    """The transport is full from the start, of which it has told the HTTP protocol."""
    options = {} if http == "ours" else {"http": http}
    with (
        site_of(loop, options, max_buffer=200_000, close_timeout=0.3) as site,
        site.peer("/ws/2") as speaker,
        site.peer(buffer=2048) as deaf,
    ):
        deaf.send(request("/large"))
        wait_until(lambda: full(site))
        deaf.send(UPGRADE)
        wait_until(lambda: site.hub.statistics().connections == 2)
        for _ in range(10):
            speaker.text("x" * 50_000)
            speaker.message()
        wait_until(lambda: len(site.connections) == 1)
        assert site.hub.statistics().slow_consumers == 1


@loops
def test_a_handshake_behind_a_request_without_an_answer_yet(loop: str) -> None:
    """What is left of the answer must not come in the midst of frames."""
    with site_of(loop) as site:
        with site.peer() as peer:
            peer.send(request("/slow") + UPGRADE)
            assert peer.rest() == b""
        wait_until(lambda: site.idle)
        assert site.hub.statistics().bad_requests == 1
        # One after the other is as it should be.
        with site.peer() as peer:
            peer.send(request("/slow"))
            peer.read_head()
            assert peer.take(4) == b"late"
            peer.send(UPGRADE)
            peer.read_head()
            assert peer.status == 101


def test_an_answer_before_the_body_has_come() -> None:
    """The rest of the body is no header, however long it is and takes."""
    body, piece = 3_000_000, bytes(65_536)
    with site_of(header_timeout=0.2) as site, site.peer() as peer:
        peer.send(request("/refused", "POST", f"Content-Length: {body}\r\n"))
        peer.read_head()
        assert (peer.status, peer.take(2)) == (401, b"no")
        for start in range(0, body, len(piece)):
            peer.send(piece[: body - start])
            peer.silent(0.01)
        peer.send(request("/size", "POST", "Content-Length: 2\r\n") + b"ab")
        peer.read_head()
        assert (peer.status, peer.take(1)) == (200, b"2")


ENDLESS = {
    "trailers": request("/size", "POST", "Transfer-Encoding: chunked\r\n") + b"1\r\na\r\n0\r\n",
    "headers behind a request": request("/slow") + request("/slow")[:-2],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_fields(kind: str) -> None:
    line = b"X-Y: " + b"z" * 1000 + b"\r\n"
    with site_of(max_header_size=10_000) as site, site.peer() as peer:
        peer.send(ENDLESS[kind])
        with suppress(OSError):
            for _ in range(5000):
                peer.send(line)
        wait_until(lambda: site.hub.statistics().bad_requests == 1)
        wait_until(lambda: site.idle)


@loops
def test_clients_that_read_no_answer(loop: str) -> None:
    with site_of(loop, send_timeout=0.3) as site, ExitStack() as stack:
        for _ in range(5):
            peer = stack.enter_context(site.peer(buffer=2048))
            peer.send(request("/large") * 5)
        wait_until(lambda: full(site))
        wait_until(lambda: site.idle)
        assert site.hub.statistics().slow_consumers == 5


@loops
def test_a_slow_reader_of_an_answer_gets_all_of_it(loop: str) -> None:
    with site_of(loop, send_timeout=0.2) as site, site.peer(buffer=32_768) as peer:
        peer.send(request("/large"))
        peer.read_head()
        for _ in range(20):
            peer.take(LARGE // 20)
            peer.silent(0.02)


@loops
def test_a_stop_waits_for_no_client_that_reads_no_answer(loop: str) -> None:
    with ExitStack() as stack, site_of(loop, close_timeout=60, send_timeout=60) as site:
        deaf = stack.enter_context(site.peer(buffer=2048))
        deaf.send(request("/large") * 5)
        wait_until(lambda: full(site))
        begun = time.monotonic()
    # As this is how long uvicorn itself would wait for it.
    assert time.monotonic() - begun < 4


@loops
def test_a_client_that_resets_with_requests_on_their_way(loop: str) -> None:
    with site_of(loop) as site:
        for _ in range(5):
            peer = site.peer(buffer=2048)
            peer.send(request("/large") * 50)
            wait_until(lambda: full(site))
            peer.reset()
        wait_until(lambda: site.idle)
