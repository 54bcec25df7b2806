"""A connection on a server of ours, which does by itself what others leave to us.

It queues, notices the end, and closes slow consumers; so there is nothing here but the way to it,
no task, no buffer and no timer. ASGI events still go by `send` and `receive`, for the middleware
around; only what is written to many passes it by.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import Message, Receive, Send

from chatserver.connection.base import Connection, Format
from chatserver.limits import Limits
from chatserver.publication import Encoder, Frame

__all__ = ["WRITER", "DirectConnection", "Writer"]

#: The extension in the scope by which a server offers a `Writer`.
WRITER = "chatserver.writer"


class Writer(Protocol):
    """What a server offers besides ASGI; `chatserver.server.websocket` has it in its words."""

    limits: Limits
    window_bits: int
    listener: "DirectConnection | None"
    transport: asyncio.Transport

    @property
    def full(self) -> bool:
        """Whether `write` has to be used in place of `transport.write`."""

    @property
    def slow(self) -> bool:
        """Whether the client was closed as a slow consumer."""

    def write(self, wire: bytes) -> None:
        """Write a frame's bytes, or queue them."""

    async def send_wire(self, wire: bytes) -> None:
        """Write a frame's bytes in their turn, and wait until they are taken."""

    def close(self, code: int, reason: str) -> None:
        """Close behind what is queued."""

    def abort(self) -> None:
        """Drop the socket."""


class DirectConnection(Connection):
    """A client's connection whose buffer is in the server; see `Connection`.

    Args:
        writer: The server's end of it.
        receive: The server's ASGI `receive`.
        send: The server's ASGI `send`.
        encoder: Turns a publication into what this client gets.
        limits: What it may take.
    """

    __slots__ = ("_receive", "_send", "_writer")

    in_scopes = False

    def __init__(
        self, writer: Writer, receive: Receive, send: Send, encoder: Encoder, limits: Limits
    ) -> None:
        super().__init__(encoder, limits)
        self._writer = writer
        self._receive = receive
        self._send = send

    @property
    def format(self) -> Format:
        """What its frames have in common with those of others."""
        return self.encoder, self._writer.window_bits

    @property
    def fast(self) -> Callable[[bytes], None] | None:
        """The transport's own `write`, while the transport isn't full."""
        return None if self._writer.full else self._writer.transport.write

    def start(self) -> None:
        """See `Connection`."""
        self._writer.limits = self.limits
        self._writer.listener = self

    def receive(self) -> Awaitable[Message]:
        """See `Connection`."""
        return self._receive()

    async def send(self, message: Message) -> None:
        """See `Connection`."""
        kind = message["type"]
        if kind == "websocket.close" and self.accepted:
            self.close(message.get("code", 1000), message.get("reason") or "")
            return
        if kind == "websocket.send":
            self._check_accepted()
            self._catch_up()
        await self._send(message)
        if kind == "websocket.accept":
            self.accepted = True

    async def push(self, frame: Frame) -> None:
        """See `Connection`."""
        self._check_accepted()
        wire = self._published_before() + frame.wire(self._writer.window_bits)
        try:
            await self._writer.send_wire(wire)
        except OSError:
            # Even so a loop that only pushes gives the event loop its turn.
            await asyncio.sleep(0)

    def write(self, frame: Frame) -> None:
        """See `Connection`."""
        self._writer.write(frame.wire(self._writer.window_bits))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """See `Connection`."""
        self._catch_up()
        self._writer.close(code, reason)

    def abort(self) -> None:
        """See `Connection`."""
        self._writer.abort()

    async def departure(self) -> None:
        """See `Connection`: the server knows."""

    async def finish(self) -> None:
        """See `Connection`: the server does it, without us."""
        self._writer.listener = None

    def socket_gone(self, code: int, _: str) -> None:
        """Called by the writer when it has ended."""
        self.slow = self._writer.slow
        self._gone(code)

    def socket_paced(self) -> None:
        """Called by the writer when `fast` has changed."""
        if self.on_pace is not None:
            self.on_pace(self)
