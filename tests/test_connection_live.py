"""A connection on a real uvicorn, with clients that never read, never wait or just vanish."""

import asyncio
import contextlib
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from chatserver.connection import Connection, QueuedConnection
from chatserver.connection import connect as connect_to
from chatserver.hub.log import joined
from chatserver.limits import Limits
from chatserver.publication import Frame
from chatserver.testing import LiveServer, live_server
from tests.asgi import Edge, MemoryServer, raw_client, wait_until


class Talk(NamedTuple):
    """A connection, and how to talk ASGI on it."""

    connection: Connection
    receive: Receive
    send: Send

    def write(self, data: str) -> None:
        """Publish to it, whatever form it takes that in."""
        self.connection.writer(joined([Frame(data)], self.connection.window_bits))


class Served:
    """An application that hands its one connection to the test's function, and keeps it."""

    def __init__(self, limits: Limits, use: Callable[[Talk], Any]) -> None:
        self.limits = limits
        self.use = use
        self.connection: Connection | None = None
        self.finished = threading.Event()
        self.leftover: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        before = asyncio.all_tasks()
        talk = Talk(*connect_to(scope, receive, send, self.limits))
        self.connection = connection = talk.connection
        connection.start()
        await talk.receive()
        await talk.send({"type": "websocket.accept"})
        try:
            await self.use(talk)
        finally:
            connection.close()
            await connection.finish()
            self.leftover = [str(task) for task in asyncio.all_tasks() - before]
            self.finished.set()

    def wait(self) -> Connection:
        assert self.finished.wait(10)
        assert self.connection is not None
        assert self.leftover == []
        return self.connection


def served(app: ASGIApp, edge: Edge) -> contextlib.AbstractContextManager[LiveServer]:
    return live_server(app, lifespan="off", **edge)


@pytest.fixture(params=["asyncio", "uvloop"])
def options(request: pytest.FixtureRequest, edge: Edge) -> Edge:
    pytest.importorskip(request.param)
    return {**edge, "loop": request.param}


@pytest.mark.parametrize("how", ["write", "push"])
def test_a_client_that_never_reads_is_closed_and_aborted(options: Edge, how: str) -> None:
    async def flood(talk: Talk) -> None:
        while talk.connection.close_code is None:
            if how == "write":
                talk.write("x" * 10_000)
                await asyncio.sleep(0)
            else:
                await talk.connection.push(Frame("x" * 10_000))

    app = Served(Limits(send_timeout=0.2, close_timeout=0.2), flood)
    with served(app, options) as server, raw_client(server) as client:
        connection = app.wait()
        assert (connection.slow, connection.close_code) == (True, 1013)
        wait_until(lambda: not server.server.server_state.connections)
        # What the kernel has still comes, and then the end, without a close frame.
        last = b""
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(1 << 20):
                last = data
        assert set(last[-100:]) <= {ord("x")}


def test_a_client_that_leaves_is_noticed_while_the_handler_is_busy(options: Edge) -> None:
    async def wait(talk: Talk) -> None:
        gone = asyncio.Event()
        talk.connection.on_gone = lambda _: gone.set()
        await asyncio.wait_for(gone.wait(), 10)

    for leave, code in (("close", 1000), ("reset", 1006)):
        app = Served(Limits(), wait)
        with served(app, options) as server, connect(server.ws) as client:
            client.send("never handled")
            if leave == "close":
                client.close()
            else:
                client.socket.shutdown(socket.SHUT_RDWR)
            assert app.wait().close_code == code


def test_a_client_that_sends_faster_than_is_handled_feels_it(options: Edge) -> None:
    go_on = threading.Event()

    async def handle(talk: Talk) -> None:
        await asyncio.to_thread(go_on.wait)
        while (await talk.receive())["type"] == "websocket.receive":
            pass

    app = Served(Limits(max_unhandled=4), handle)
    message = b"\x82\xfe\x40\x00" + bytes(4) + bytes(0x4000)
    with served(app, options) as server, raw_client(server) as client:
        client.settimeout(0.2)
        sent = 0
        with pytest.raises(TimeoutError):
            for _ in range(10_000):  # 160 MB; what is unhandled is at rest in the kernel
                client.sendall(message)
                sent += 1
        assert app.connection is not None
        if isinstance(app.connection, QueuedConnection):
            assert len(app.connection._inbox) == 4
        go_on.set()
        client.close()
        app.wait()
    assert 4 <= sent < 5000


def test_what_is_written_before_the_close_arrives(options: Edge) -> None:
    async def say(talk: Talk) -> None:
        for number in range(1000):
            talk.write(f"{number:0500}")
        talk.connection.close(4000, "that is all")

    app = Served(Limits(), say)
    with served(app, options) as server, connect(server.ws) as client:
        for number in range(1000):
            assert client.recv(10) == f"{number:0500}"
        with pytest.raises(ConnectionClosedError):
            client.recv(10)
        assert (client.close_code, client.close_reason) == (4000, "that is all")
        app.wait()


def test_a_handler_that_only_sends_to_a_quick_client_leaves_others_the_loop(options: Edge) -> None:
    async def send_on(talk: Talk) -> None:
        while True:
            await talk.send({"type": "websocket.send", "text": "x"})

    app = Served(Limits(), send_on)
    with served(app, options) as server, raw_client(server, 1 << 20) as client:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            client.recv(1 << 20)
        client.close()
        assert app.wait().close_code == 1006


def _tell_id(results: Any) -> None:
    async def tell() -> None:
        server = MemoryServer()
        results.put(QueuedConnection(server.receive, server.send, Limits()).id)

    asyncio.run(tell())


def test_connections_of_processes_that_were_forked_have_different_ids() -> None:
    """As those of gunicorn, which may import the application before it forks."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    for _ in range(2):
        child = context.Process(target=_tell_id, args=(results,))
        child.start()
        child.join(20)
    assert results.get(timeout=5) != results.get(timeout=5)
