"""A connection on any ASGI server: an inbox, a bounded outgoing queue, and a task for each.

Below it are only a `send` and a `receive`. The rules of this file:

- One reader: only `_read` awaits the server's `receive`, up to the disconnect, so that pongs
  are read and a disconnect is noticed whatever a handler does.
- One writer at a time: the task that cleared `_idle` awaits the server's `send`. Everything else
  queues behind it, in the order in which it was sent.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from starlette.types import Message, Receive, Send

from chatserver.connection.base import MESSAGE_OVERHEAD, Connection, Write
from chatserver.errors import can_be_sent, close_reason
from chatserver.limits import Limits
from chatserver.publication import Frame

__all__ = ["QueuedConnection"]

logger: logging.Logger = logging.getLogger("chatserver")

#: Sends after which a handler yields to the event loop. While the client takes everything at once,
#: the server's `send` never yields, and a handler that only sends would block every other task.
SENDS_PER_TURN = 16

#: Seconds after which a reader with a full inbox checks whether the connection was lost.
FULL_PAUSE = 0.25
#: Seconds to wait for the end of a connection that was refused with an HTTP response.
DENIAL_TIMEOUT = 1.0


class _Outgoing(NamedTuple):
    message: Message
    size: int
    written: asyncio.Future[None] | None = None


class QueuedConnection(Connection):
    """A client's connection with an inbox and an outgoing buffer of its own; see `Connection`.

    Args:
        receive: The server's ASGI `receive`.
        send: The server's ASGI `send`.
        limits: What the client may take.
    """

    #: ASGI can't send bytes that are framed already.
    window_bits: int | None = None

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        super().__init__(limits)
        self._close_reason = ""
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Task[None] | None = None
        self._inbox: deque[Message] = deque()
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._outgoing: deque[_Outgoing] = deque()
        self._in_flight: _Outgoing | None = None
        self._sends = 0
        self._buffered = 0
        self._abortion: asyncio.TimerHandle | None = None

    # What comes in

    def start(self) -> None:
        """See `Connection`."""
        self._reader = self._loop.create_task(self._read())

    async def receive(self) -> Message:
        """The next ASGI event for the application, in order; the last one is the disconnect."""
        while True:
            if self._inbox:
                message = self._inbox.popleft()
                self._room.set()
                return message
            if self.close_code is not None:
                return {
                    "type": "websocket.disconnect",
                    "code": self.close_code,
                    "reason": self._close_reason,
                }
            self._arrival.clear()
            await self._arrival.wait()

    async def _read(self) -> None:
        try:
            while self.close_code is None:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    if self.close_code is None:
                        self._close_reason = message.get("reason") or ""
                    self._gone(_disconnect_code(message))
                    self._discard()
                    if self._unsent():
                        self._abort_after(self.limits.close_timeout)
                else:
                    await self._take(message)
        except Exception:
            # It is no fault of the application, and there is no task left to tell.
            logger.debug("The server's receive() failed", exc_info=True)
            self._gone(1006)

    async def _take(self, message: Message) -> None:
        if self.close_code is not None:
            return
        if _exceeds(message, self.limits.max_message_size):
            self.close(1009, f"message exceeds the limit of {self.limits.max_message_size} bytes")
            return
        self._inbox.append(message)
        self._arrival.set()
        while self._is_full() and not self._hung_up():
            self._room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(FULL_PAUSE):
                    await self._room.wait()

    def _is_full(self) -> bool:
        return len(self._inbox) >= self.limits.max_unhandled and self.close_code is None

    # What goes out

    async def send(self, message: Message) -> None:
        """Send an ASGI event in its turn, and wait until the server has taken it.

        Raises:
            OSError: The client is gone; Starlette turns it into a `WebSocketDisconnect`.
        """
        kind = message["type"]
        if kind == "websocket.accept":
            await self._deliver(message)
            self.accepted = True
        elif kind == "websocket.close" and self.accepted:
            self.close(message.get("code", 1000), message.get("reason") or "")
        elif kind == "websocket.send":
            # This encodes once more than the server does, so that bad text is found here.
            text = message.get("text")
            await self._write_and_wait(Frame(text if text is not None else message["bytes"]))
        else:
            await self._deliver(message)

    async def push(self, frame: Frame) -> None:
        """See `Connection`."""
        try:
            await self._write_and_wait(frame)
        except OSError:
            # So that a loop that only pushes still yields to the event loop.
            await asyncio.sleep(0)

    @property
    def writer(self) -> Write:
        """See `Connection`."""
        return self.write

    @property
    def unhandled(self) -> int:
        """See `Connection`."""
        return sum(message["type"] == "websocket.receive" for message in self._inbox)

    def write(self, wire: Sequence[Frame]) -> None:
        """See `Connection`."""
        if self.close_code is not None:
            return
        size = sum(frame.size + MESSAGE_OVERHEAD for frame in wire)
        # One write into an empty buffer passes, however large it is.
        if self._buffered and self._buffered + size > self.limits.max_buffer:
            self._too_slow(f"more than {self.limits.max_buffer} bytes waiting")
            return
        self._buffered += size
        for frame in wire:
            self._queue(_Outgoing(frame.message, frame.size + MESSAGE_OVERHEAD))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """See `Connection`."""
        self.catch_up()
        self._close(code, reason)

    def _close(self, code: int, reason: str) -> None:
        if self.close_code is not None:
            return
        if not can_be_sent(code):
            logger.error("%r can't be sent as a close code, 1011 is sent instead", code)
            code = 1011
        reason = close_reason(reason)
        self._inbox.clear()
        self._queue(_Outgoing({"type": "websocket.close", "code": code, "reason": reason}, 0))
        self._abort_after(self.limits.close_timeout if self.slow else self.limits.send_timeout)
        self._close_reason = reason
        self._gone(code)

    async def departure(self) -> None:
        """Wait until the server has noticed the end of a connection that was denied.

        If an application returns between its denial response and the end of the connection,
        uvicorn reports that it forgot to answer. uvicorn sends two disconnects, the second
        when the connection has ended; on other servers we wait a second for it, at no cost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(DENIAL_TIMEOUT):
                while (await self.receive())["type"] != "websocket.disconnect":
                    pass
                while (await self._receive())["type"] != "websocket.disconnect":
                    pass

    def abort(self) -> None:
        """See `Connection`."""
        if (transport := self._transport()) is not None:
            transport.abort()

    async def finish(self) -> None:
        """Wait until all is written or the socket was aborted; then stop reader and writer."""
        try:
            async with asyncio.timeout(self.limits.send_timeout + 1):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            # A task that still sends, perhaps another connection's, starts no writer again.
            self._discard()
            if self._abortion is not None and not self._unsent():
                self._abortion.cancel()
            tasks = {task for task in (self._reader, self._writer) if task is not None}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _write_and_wait(self, frame: Frame) -> None:
        self._check_accepted()
        self.catch_up()
        if self.close_code is not None:
            raise ConnectionResetError(f"the connection is closed ({self.close_code})")
        if not self._idle.is_set():
            await self._write_in_turn(frame)
            return
        self._idle.clear()
        try:
            await self._deliver(frame.message)
            self._sends += 1
            if self._sends % SENDS_PER_TURN == 0:
                await asyncio.sleep(0)
        finally:
            if self._outgoing:
                self._start_writer()
            else:
                self._idle.set()

    async def _write_in_turn(self, frame: Frame) -> None:
        """Queue a frame and wait until it is written; when cancelled, take it out again.

        So it needs no room in the bounded buffer: there is at most one per waiting task.
        """
        written = self._loop.create_future()
        outgoing = _Outgoing(frame.message, 0, written)
        self._queue(outgoing)
        try:
            await written
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._outgoing.remove(outgoing)
            raise

    def _queue(self, outgoing: _Outgoing) -> None:
        self._outgoing.append(outgoing)
        if self._idle.is_set():
            self._start_writer()

    def _start_writer(self) -> None:
        self._idle.clear()
        self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._outgoing:
                self._in_flight = self._outgoing.popleft()
                await self._deliver(self._in_flight.message)
                self._buffered -= self._in_flight.size
                _wake(self._in_flight.written)
                self._in_flight = None
        except OSError:
            pass  # the client is gone, as `_deliver` has noted
        finally:
            self._discard()
            self._idle.set()

    async def _deliver(self, message: Message) -> None:
        """Hand one event to the server; a client that takes nothing in time is too slow."""
        stalled = self._loop.call_later(
            self.limits.send_timeout, self._too_slow, "nothing taken in time"
        )
        try:
            await self._send(message)
        except Exception as exc:
            # Servers raise different exceptions when the client is gone. Before the accept it
            # may also be the application's own mistake, such as a bad header.
            if not self.accepted and not isinstance(exc, OSError):
                raise
            logger.debug("The server's send() failed", exc_info=True)
            # The reader may be about to read the client's close code.
            await asyncio.sleep(0)
            self._gone(1006)
            raise ConnectionResetError("the client is gone") from exc
        finally:
            stalled.cancel()

    def _too_slow(self, reason: str) -> None:
        if not self.accepted:
            self.abort()
        elif self.close_code is None:
            self.slow = True
            self._discard()
            self._close(1013, f"slow consumer: {reason}")

    def _discard(self) -> None:
        """Drop what is queued; tasks that wait for it learn that the client is gone."""
        waiting = [self._in_flight.written] if self._in_flight is not None else []
        waiting += [outgoing.written for outgoing in self._outgoing]
        self._outgoing.clear()
        for waiter in waiting:
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionResetError("the client is gone"))

    def _transport(self) -> asyncio.WriteTransport | None:
        """The server's transport, which ASGI doesn't offer.

        In uvicorn and others `receive` is a method of the protocol that owns the transport. On
        other servers their own time-outs must do.
        """
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        return transport if hasattr(transport, "abort") else None

    def _unsent(self) -> bool:
        transport = self._transport()
        return transport is not None and transport.get_write_buffer_size() > 0

    def _hung_up(self) -> bool:
        transport = self._transport()
        return transport is not None and transport.is_closing()

    def _abort_after(self, seconds: float) -> None:
        if self._abortion is not None:
            self._abortion.cancel()
        self._abortion = self._loop.call_later(seconds, self.abort)

    def _gone(self, code: int) -> None:
        if self.close_code is None:
            self._arrival.set()
            self._room.set()
        super()._gone(code)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _exceeds(message: Message, limit: int) -> bool:
    text: str | None = message.get("text")
    if text is None:
        return len(message.get("bytes") or b"") > limit
    # The length in characters decides nearly every case without encoding again.
    return len(text) > limit or (len(text) * 4 > limit and len(text.encode()) > limit)


def _disconnect_code(message: Message) -> int:
    """The close code of a disconnect event.

    When the TCP connection is lost without a close frame, uvicorn reports 1005 and no
    reason; by RFC 6455, section 7.1.5, that is a 1006.
    """
    code = int(message.get("code") or 1000)
    return 1006 if code == 1005 and "reason" not in message else code
