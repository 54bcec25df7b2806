"""Helpers for tests of your own endpoints: what Starlette's `TestClient` lacks.

    with TestClient(app).websocket_connect("/rooms/a") as session:
        session.send_text("hi")
        assert receive(session, timeout=1)["text"] == "hi"
        assert_no_message(session)

    with live_server(app) as server:                # uvicorn on a free port of this machine
        with websockets.sync.client.connect(f"{server.ws}/rooms/a") as client: ...

The same for tests that are coroutines, with the application in the same event loop:

    async with open_session(app, "/rooms/a") as session:
        await session.send_text("hi")
        assert await session.receive_json(timeout=1) == "hi"
        await session.assert_no_message()

    async with open_server(app) as server: ...
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import anyio
import uvicorn
from starlette.testclient import WebSocketDenialResponse, WebSocketTestSession
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocketDisconnect

__all__ = [
    "AsyncSession",
    "LiveServer",
    "assert_no_message",
    "live_server",
    "open_server",
    "open_session",
    "receive",
    "receive_json",
]

#: The protocols of `chatserver run`, as options of uvicorn.
PROTOCOLS = {
    "ws": "chatserver.server:WebSocketProtocol",
    "http": "chatserver.server:HttpProtocol",
}
#: Seconds for handlers to finish when the server stops.
GRACE = 3
#: Seconds that a server may take to start or to stop.
SERVER_TIMEOUT = 10.0


def receive(session: WebSocketTestSession, *, timeout: float = 1.0) -> Message:
    """The next ASGI event that the application sends; waits `timeout` seconds at most.

    Raises:
        AssertionError: Nothing came in time.
    """

    async def next_event() -> Message:
        with anyio.fail_after(timeout):
            event: Message = await session._send_rx.receive()
            return event

    try:
        event: Message = session.portal.call(next_event)
    except TimeoutError:
        raise AssertionError(f"nothing was received within {timeout} s") from None
    return event


def receive_json(session: WebSocketTestSession, *, timeout: float = 1.0) -> Any:
    """The next message of the application, text or binary, decoded from JSON.

    Raises:
        AssertionError: Nothing came in time, or a close came.
    """
    return _decoded(receive(session, timeout=timeout))


def _decoded(event: Message) -> Any:
    assert event["type"] == "websocket.send", f"expected a message, but got {event!r}"
    text = event.get("text")
    return json.loads(event["bytes"] if text is None else text)


def assert_no_message(session: WebSocketTestSession, *, timeout: float = 0.1) -> None:
    """Check that the application sends nothing for `timeout` seconds."""
    try:
        event = receive(session, timeout=timeout)
    except AssertionError:
        return
    raise AssertionError(f"expected no message, but got {event!r}")


class LiveServer(NamedTuple):
    """A server that runs in a thread of this process.

    Attributes:
        port: Its port, on 127.0.0.1.
        http: "http://127.0.0.1:" and the port.
        ws: "ws://127.0.0.1:" and the port.
        server: uvicorn itself.
    """

    port: int
    http: str
    ws: str
    server: uvicorn.Server

    def stop(self) -> None:
        """Stop it, as SIGTERM does; the end of the `with` block waits until it has stopped."""
        self.server.should_exit = True


@contextmanager
def live_server(app: ASGIApp, **options: Any) -> Iterator[LiveServer]:
    """Serve an application with uvicorn, in a thread, on a free port of 127.0.0.1.

    Args:
        app: The application.
        options: Options of `uvicorn.Config`.

    Raises:
        RuntimeError: It doesn't start or stop within ten seconds.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # As `chatserver run` does, except for the log, which is left to the test.
    defaults = {"log_config": None, "timeout_graceful_shutdown": GRACE, **PROTOCOLS}
    server = uvicorn.Server(uvicorn.Config(app, **{**defaults, **options}))
    thread = threading.Thread(target=_run, args=(server, listener), daemon=True)
    thread.start()
    try:
        _wait_for_start(server, thread)
        yield LiveServer(port, f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", server)
    finally:
        server.should_exit = True
        thread.join(SERVER_TIMEOUT)
        listener.close()
    if thread.is_alive():
        raise RuntimeError(f"the server did not stop within {SERVER_TIMEOUT} s")


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    # Its log says why it didn't start; the caller sees that the thread has ended.
    with suppress(SystemExit):
        server.run([listener])


def _wait_for_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + SERVER_TIMEOUT
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server ended instead of starting; see its log")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start within {SERVER_TIMEOUT} s")
        time.sleep(0.005)


@asynccontextmanager
async def open_server(app: ASGIApp, **options: Any) -> AsyncIterator[LiveServer]:
    """`live_server` for coroutines: it doesn't block the test's event loop, and has its own."""
    context = live_server(app, **options)
    server = await asyncio.to_thread(context.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


class AsyncSession:
    """A client's side of a WebSocket to an application in this event loop; see `open_session`.

    Attributes:
        subprotocol: The subprotocol that the application accepted, or None.
        headers: The other headers of its accept.
    """

    def __init__(self, scope: Scope) -> None:
        self.subprotocol: str | None = None
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self._scope = scope
        self._sent: asyncio.Queue[Message] = asyncio.Queue()
        self._received: asyncio.Queue[Message | Exception] = asyncio.Queue()

    async def send_text(self, text: str) -> None:
        """Send a text message."""
        self._sent.put_nowait({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        self._sent.put_nowait({"type": "websocket.receive", "bytes": data})

    async def send_json(self, value: Any) -> None:
        """Send a value as a text message of JSON."""
        await self.send_text(json.dumps(value))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        self._sent.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    async def receive(self, *, timeout: float = 1.0) -> Message:
        """The next ASGI event that the application sends; waits `timeout` seconds at most.

        Raises:
            AssertionError: Nothing came in time.
            Exception: The exception that the application raised instead.
        """
        try:
            async with asyncio.timeout(timeout):
                event = await self._received.get()
        except TimeoutError:
            raise AssertionError(f"nothing was received within {timeout} s") from None
        if isinstance(event, Exception):
            raise event
        return event

    async def receive_json(self, *, timeout: float = 1.0) -> Any:
        """The next message of the application, text or binary, decoded from JSON.

        Raises:
            AssertionError: Nothing came in time, or a close came.
        """
        return _decoded(await self.receive(timeout=timeout))

    async def assert_no_message(self, *, timeout: float = 0.1) -> None:
        """Check that the application sends nothing for `timeout` seconds."""
        try:
            event = await self.receive(timeout=timeout)
        except AssertionError:
            return
        raise AssertionError(f"expected no message, but got {event!r}")

    async def _serve(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self._take, self._received.put)
        except Exception as error:
            self._received.put_nowait(error)

    async def _take(self) -> Message:
        """What the application receives; the disconnect again and again, as from a server."""
        event = await self._sent.get()
        if event["type"] == "websocket.disconnect":
            self._sent.put_nowait(event)
        return event

    async def _shake_hands(self, timeout: float) -> None:
        self._sent.put_nowait({"type": "websocket.connect"})
        event = await self.receive(timeout=timeout)
        match event["type"]:
            case "websocket.accept":
                self.subprotocol = event.get("subprotocol")
                self.headers = event.get("headers", ())
            case "websocket.close":
                raise WebSocketDisconnect(event.get("code", 1000), event.get("reason") or "")
            case _:
                body = b""
                more = True
                while more:
                    part = await self.receive(timeout=timeout)
                    body, more = body + part.get("body", b""), part.get("more_body", False)
                raise WebSocketDenialResponse(
                    status_code=event["status"], headers=event["headers"], content=body
                )


@asynccontextmanager
async def open_session(
    app: ASGIApp,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    timeout: float = 5.0,
) -> AsyncIterator[AsyncSession]:
    """Connect to an application in this event loop, without a server.

    It doesn't run the lifespan: use `async with app.router.lifespan_context(app):` for that.

    Args:
        app: The application.
        path: Path and query.
        headers: The handshake's headers, including cookies.
        subprotocols: The subprotocols to offer.
        timeout: Seconds that the handshake may take, and the end.

    Raises:
        AssertionError: The handshake is not answered in time.
        WebSocketDenialResponse: It is refused with an HTTP response.
        WebSocketDisconnect: It is refused with a close.
    """
    session = AsyncSession(_scope(path, headers or {}, subprotocols))
    application = asyncio.create_task(session._serve(app))
    try:
        await session._shake_hands(timeout)
        yield session
    finally:
        await session.close()
        _, late = await asyncio.wait({application}, timeout=timeout)
        application.cancel()
    if late:
        raise AssertionError(f"the application did not end within {timeout} s")


def _scope(path: str, headers: Mapping[str, str], subprotocols: Sequence[str]) -> Scope:
    parts = urlsplit(path)
    sent = {"host": "testserver", **{name.lower(): value for name, value in headers.items()}}
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("testserver", 80),
        "client": ("testclient", 50000),
        "path": unquote(parts.path),
        "raw_path": quote(parts.path, safe="/%").encode("ascii"),
        "root_path": "",
        "query_string": quote(parts.query, safe="=&%+;,/?:@").encode("ascii"),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "subprotocols": list(subprotocols),
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }
