"""For tests of own endpoints: what Starlette's `TestClient` lacks.

with TestClient(app).websocket_connect("/rooms/a") as session:
    session.send_text("hi")
    assert receive(session, timeout=1)["text"] == "hi"
    assert_no_message(session)

with live_server(app) as server:                # uvicorn on a free port of this machine
    with websockets.sync.client.connect(f"{server.ws}/rooms/a") as client: ...
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import anyio
import uvicorn
from starlette.testclient import WebSocketTestSession
from starlette.types import ASGIApp, Message

__all__ = ["LiveServer", "assert_no_message", "live_server", "receive"]

#: The protocols of `chatserver run`, as options of uvicorn.
PROTOCOLS = {
    "ws": "chatserver.server:WebSocketProtocol",
    "http": "chatserver.server:HttpProtocol",
}
#: Seconds in which handlers may finish when the server stops.
GRACE = 3
#: Seconds that a server may take to start or to stop.
SERVER_TIMEOUT = 10.0


def receive(session: WebSocketTestSession, *, timeout: float = 1.0) -> Message:
    """The next ASGI event that the application sends, waited for `timeout` seconds at most.

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
        port: Where it listens, on 127.0.0.1.
        http: "http://127.0.0.1:" and the port.
        ws: "ws://127.0.0.1:" and the port.
        server: uvicorn itself.
    """

    port: int
    http: str
    ws: str
    server: uvicorn.Server

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does; the end of the `with` block waits until it has."""
        self.server.should_exit = True


@contextmanager
def live_server(app: ASGIApp, **options: Any) -> Iterator[LiveServer]:
    """Serve an application by uvicorn, in a thread, on a free port of 127.0.0.1.

    Args:
        app: The application.
        options: For `uvicorn.Config`.

    Raises:
        RuntimeError: It doesn't start or stop within ten seconds.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # As `chatserver run` has it, save for the log, which is left to the test.
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
    # What kept it from starting is in its log; the caller sees that the thread has ended.
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
