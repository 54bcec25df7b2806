"""What tests of `Connection` and `Hub` hold on to: a server in memory, a client of bare bytes."""

import asyncio
import base64
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from starlette.types import Message

from chatserver.connection import Connection, QueuedConnection, Write
from chatserver.limits import Limits
from chatserver.publication import Frame
from chatserver.testing import LiveServer

#: Options of uvicorn that say which protocols serve; see the fixture of that name.
Edge: TypeAlias = dict[str, Any]

#: Seconds after which something that should have happened is taken for lost.
PATIENCE = 5.0


class MemoryServer:
    """An ASGI `receive` and `send` as uvicorn's, over a socket that the test fills and empties.

    Attributes:
        inbox: What `receive` returns next; an exception is raised.
        sent: What the connection sent and the socket took.
        writable: Cleared, the socket takes nothing.
        failure: Raised by `send` when set.
        turns: Turns of the event loop that `send` takes when the socket takes everything.
        transport: What `Connection` finds by way of `receive`, as it does with uvicorn; or None.
    """

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.sent: list[Message] = []
        self.sending = 0
        self.received = 0
        self.writable = asyncio.Event()
        self.writable.set()
        self.failure: Exception | None = None
        self.turns = 0
        self.transport: Any = Transport(self)

    async def receive(self) -> Message:
        message = await self.inbox.get()
        self.received += 1
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        self.sending += 1
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            await self.writable.wait()
            if self.failure is not None:
                raise self.failure
            self.sent.append(message)
        finally:
            self.sending -= 1

    def block(self) -> None:
        self.writable.clear()

    def unblock(self) -> None:
        self.writable.set()

    def say(self, *texts: str) -> None:
        for text in texts:
            self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    def disconnect(self, **fields: Any) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", **fields})

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.sent if event.get("text") is not None]

    @property
    def closes(self) -> list[tuple[int, str]]:
        return [(e["code"], e["reason"]) for e in self.sent if e["type"] == "websocket.close"]


class Transport:
    """As much of a transport as a connection asks for; to abort it loses the connection."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self.aborted = 0
        self.buffered = 0
        self.closing = False

    def abort(self) -> None:
        self.aborted += 1
        self.buffered = 0
        self.server.failure = OSError("the connection was lost")
        self.server.unblock()
        self.server.disconnect(code=1005)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.buffered


async def accepted(limits: Limits | None = None) -> tuple[MemoryServer, QueuedConnection]:
    """A connection after its handshake, and the server below it."""
    server = MemoryServer()
    connection = QueuedConnection(server.receive, server.send, limits or Limits())
    connection.start()
    await connection.send({"type": "websocket.accept"})
    server.sent.clear()
    return server, connection


class MemoryConnection(Connection):
    """A connection of a server of ours, after its handshake, in memory.

    Attributes:
        written: What was written, in pieces.
        queued: How many of these came by `write` while the socket was full.
        failure: Raised instead of writing, when set.
    """

    cancelled_at_will = False

    def __init__(self, window_bits: int = 0, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits())
        self.window_bits = window_bits
        self.accepted = True
        self.written: list[bytes] = []
        self.queued = 0
        self.failure: Exception | None = None
        self._full = False

    @property
    def full(self) -> bool:
        """Whether the socket takes nothing."""
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full
        self._paced()

    @property
    def writer(self) -> Write:
        if self.close_code is not None:
            return self._drop
        return self.write if self._full else self._write_directly

    @property
    def unhandled(self) -> int:
        return 0

    def start(self) -> None:
        pass

    async def push(self, frame: Frame) -> None:
        self.catch_up()
        self.write(frame.wire(self.window_bits or 0))

    def write(self, wire: bytes) -> None:
        if self.close_code is None:
            self.queued += self._full
            self._write_directly(wire)

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.catch_up()
        self._gone(code)

    def abort(self) -> None:
        raise AssertionError("nothing is to be aborted here")

    async def departure(self) -> None:
        pass

    async def finish(self) -> None:
        pass

    def _write_directly(self, wire: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.written.append(wire)

    def _drop(self, wire: bytes) -> None:
        pass


def text(data: str) -> Frame:
    return Frame(data)


async def until(condition: Callable[[], Any], *, patience: float = PATIENCE) -> None:
    """Wait until `condition()` holds; fail when it doesn't in time."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], Any]) -> None:
    """As `until`, in a thread without an event loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.001)


@contextmanager
def raw_client(server: LiveServer, receive_buffer: int = 4096) -> Iterator[socket.socket]:
    """A socket after its handshake, which reads nothing by itself."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(10)
    with client:
        client.connect(("127.0.0.1", server.port))
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += client.recv(1)
        assert answer.startswith(b"HTTP/1.1 101")
        yield client
