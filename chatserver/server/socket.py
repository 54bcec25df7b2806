"""A WebSocket's two directions and its end, from the moment when it is open.

What goes out goes to the transport at once until that is full, and then to a bounded backlog.
What comes in is parsed no further than the application can use: behind a full inbox the socket
isn't read, and the client feels it. Sections are those of RFC 6455.
"""

import asyncio
import logging
from typing import Any, Protocol

from starlette.types import Message as Event
from uvicorn.protocols.utils import ClientDisconnected

from chatserver.errors import InvalidFrame, can_be_sent, close_reason
from chatserver.limits import Limits
from chatserver.server.backlog import Backlog
from chatserver.server.edge import Edge
from chatserver.server.rate import Rate
from chatserver.wire import PING, Close, Parser, Ping, Pong, close_frame, pong_frame

__all__ = ["HANDSHAKE", "LAST_CHANCE", "Socket"]

HANDSHAKE, OPEN, CLOSING, CLOSED = range(4)

#: Sends after which a handler yields to the event loop, which else it might keep for itself.
SENDS_PER_TURN = 16
#: Seconds that a client has to answer a close frame when it answered no ping, or at shutdown.
LAST_CHANCE = 0.5

logger = logging.getLogger("uvicorn.error")


class Listener(Protocol):
    """Whom a socket tells of itself. An object, as two bound methods would cost memory each."""

    def socket_gone(self, code: int, reason: str) -> None:
        """Called once, when the connection has ended."""

    def socket_paced(self) -> None:
        """Called when `full` has changed."""


class Socket(asyncio.Protocol):
    """One client's WebSocket.

    Its life is its `_state`, which only grows:

        HANDSHAKE   the request is being read, then answered by the application
        OPEN        messages both ways
        CLOSING     a close frame is sent, the client's is waited for
        CLOSED      nothing that comes is of interest any more; the socket ends, or is aborted

    Args:
        edge: What it shares with the server's others.

    Attributes:
        client: Address and port; None where there are none.
        limits: What this client may take; those of the server until an endpoint says else.
        window_bits: The client's window for compressed messages; 0 without compression.
        slow: Whether it was closed as a slow consumer.
        listener: Told when the connection has ended, and when `full` has changed.
    """

    __slots__ = (
        "_backlog",
        "_begun",
        "_edge",
        "_ended",
        "_heard",
        "_heard_at",
        "_inbox",
        "_loop",
        "_parser",
        "_pinged",
        "_rate",
        "_reading",
        "_scheduled",
        "_sends",
        "_state",
        "_timer",
        "_transport_full",
        "_violation",
        "_waiter",
        "client",
        "limits",
        "listener",
        "slow",
        "transport",
        "window_bits",
    )

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.client: tuple[str, int] | None = None
        self.limits: Limits = edge.limits
        self.window_bits = 0
        self.slow = False
        self.listener: Listener | None = None
        self._state = HANDSHAKE
        self._ended: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

        self._parser: Parser | None = None
        self._inbox: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._reading = True
        self._scheduled = False
        self._rate = Rate(self._per_sweep())
        self._begun: float | None = None
        self._violation: tuple[InvalidFrame, float] | None = None

        self._transport_full = False
        self._backlog: Backlog | None = None
        self._sends = 0

        self._heard = False
        self._heard_at = self._loop.time()
        self._pinged: float | None = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    # The transport's side

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._heard = True
        if self._parser is not None:
            self._parser.feed(data)
            self._read()

    def eof_received(self) -> None:
        """The client sends no more: without a close frame that is a loss (section 7.1.5).

        The transport closes itself after this, when it has sent what it holds.
        """
        self._abort_after(self.limits.close_timeout)
        self._state = CLOSED
        self._discard()
        self._end(1006, "")

    def pause_writing(self) -> None:
        """The transport is full: what is written from here on waits in the backlog."""
        self._transport_full = True
        if self._backlog is None:
            self._backlog = Backlog()
            self._pace()

    def resume_writing(self) -> None:
        """The transport takes bytes again: first those of the backlog, in their order."""
        self._transport_full = False
        backlog = self._backlog
        while backlog and not self._transport_full:
            self.transport.write(backlog.pop())
        if backlog is None or self._transport_full:
            return
        self._backlog = None
        if backlog.pong is not None and self._state <= CLOSING:
            self.transport.write(pong_frame(backlog.pong))
        self._pace()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; nothing can be read or written any more."""
        self._state = CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._discard()
        self._parser = None
        self._end(1006, "")

    # What comes in

    def _open(self, max_message_size: int, early: bytes) -> None:
        """From here on frames are exchanged; what came too early may hold some."""
        self._state = OPEN
        self._parser = Parser(max_message_size, self.limits.max_fragments, bool(self.window_bits))
        if early:
            self._parser.feed(early)
            self._read()
        else:
            self._resume_reading()

    async def receive(self) -> Event:
        """The next ASGI event, in order; the disconnect is the last, and stays."""
        while not self._inbox:
            if self._violation is not None:
                self._fail(self._violation[0])
            if self._ended is not None:
                code, reason = self._ended
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            # Should two tasks wait, whoever was first is woken behind the other, and looks again.
            other, self._waiter = self._waiter, self._loop.create_future()
            try:
                await self._waiter
            finally:
                _wake(other)
        event = self._inbox.pop(0)
        if not self._inbox and not self._reading and not self._scheduled:
            # In a turn of its own, so that a flood is handled piece by piece between others.
            self._scheduled = True
            self._loop.call_soon(self._read_on)
        return event

    def _read_on(self) -> None:
        self._scheduled = False
        self._read()

    def _read(self) -> None:
        """Take messages out of what has come, as many as may be handled."""
        parser = self._parser
        if self._violation is not None and self._state == CLOSING:
            self._fail(self._violation[0])
        if parser is None or self._state > CLOSING:
            return
        try:
            while self._may_take_more(parser):
                event = parser.next()
                if event is None:
                    self._note_unfinished(parser)
                    self._resume_reading()
                    return
                self._rate.left -= 1
                self._take(event)
                if self._parser is None:
                    return
            self._pause_reading()
        except InvalidFrame as error:
            self._fail_in_turn(error)

    def _may_take_more(self, parser: Parser) -> bool:
        if self._rate.left <= 0:
            self._throttle(parser)
            return False
        return len(self._inbox) < self.limits.max_unhandled

    def _take(self, event: Any) -> None:
        kind = type(event)
        if kind is str or kind is bytes:
            self._begun = None
            if self._state == OPEN:
                key = "text" if kind is str else "bytes"
                self._inbox.append({"type": "websocket.receive", key: event})
                _wake(self._waiter)
        elif kind is Close:
            self._take_close(event)
        elif kind is Ping:
            # Section 5.5.2: unless the client has closed, even behind our own close frame.
            if self._backlog is None:
                self.transport.write(pong_frame(event.payload))
            else:
                self._backlog.pong = event.payload
        else:
            assert kind is Pong

    def _take_close(self, close: Close) -> None:
        """Section 5.5.1: answer with the same code, unless this is the answer."""
        if self._may_say_why:
            self._discard()
            self.transport.write(close_frame(close.code))
        self._hang_up()
        self._end(close.code, close.reason)

    def _note_unfinished(self, parser: Parser) -> None:
        if not parser.unfinished:
            self._begun = None
        elif self._begun is None:
            self._begun = self._loop.time()

    def _fail_in_turn(self, error: InvalidFrame) -> None:
        """Fail when the application has answered what came before; soon, if it doesn't."""
        if self._state == OPEN and (self._inbox or self._waiter is None or self._waiter.done()):
            self._violation = error, self._loop.time()
            self._parser = None
            self._pause_reading()
        else:
            self._fail(error)

    def _fail(self, error: InvalidFrame) -> None:
        """Section 7.1.7: say what is wrong, and listen no more."""
        self._violation = None
        if self._may_say_why:
            self._edge.counts.bad_messages += 1
            logger.info("%s - closed with %d: %s", self._address, error.code, error.reason)
            self._discard()
            self.transport.write(close_frame(error.code, error.reason))
        self._hang_up()
        self._end(error.code, error.reason)

    @property
    def _may_say_why(self) -> bool:
        """Whether a close frame can be sent: none was, or it hasn't left the backlog."""
        return self._state == OPEN or bool(self._backlog)

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # What goes out

    # What goes out

    async def send_wire(self, wire: bytes) -> None:
        """Write a frame's bytes in their turn, and wait until the transport has taken them.

        Raises:
            ClientDisconnected: The client is gone.
        """
        if self._state != OPEN:
            raise ClientDisconnected
        if self._backlog is not None:
            await self._backlog.wait(wire)
            return
        self.transport.write(wire)
        self._sends += 1
        if self._sends % SENDS_PER_TURN == 0:
            await asyncio.sleep(0)

    @property
    def full(self) -> bool:
        """Whether `write` would queue; while it wouldn't, `transport.write` does as well."""
        return self._backlog is not None or self._state != OPEN

    def write(self, wire: bytes) -> None:
        """Write a frame's bytes, or queue them. Never waits; a full backlog ends the connection."""
        backlog = self._backlog
        if self._state != OPEN:
            return
        if backlog is None:
            self.transport.write(wire)
        elif backlog.size + self._unsent + backlog.size_of(wire) > self.limits.max_buffer:
            self._too_slow(f"more than {self.limits.max_buffer} bytes waiting")
        else:
            backlog.append(wire)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, behind what is already on its way out. Never waits."""
        if self._state != OPEN:
            return
        if not can_be_sent(code):
            logger.error("%r can't be sent as a close code, 1011 is sent instead", code)
            code = 1011
        reason = close_reason(reason)
        self._inbox.clear()
        self._state = CLOSING
        frame = close_frame(code, reason)
        if self._backlog is None:
            self.transport.write(frame)
        else:
            self._backlog.append_last(frame)
        limits = self.limits
        unsent = self._backlog is not None and not self.slow
        self._abort_after(limits.send_timeout if unsent else limits.close_timeout)
        self._end(code, reason)
        # The answer to the close frame must be read, whatever is in front of it.
        self._read()

    def abort(self) -> None:
        """Drop the socket and what is in it."""
        self.transport.abort()

    def _too_slow(self, reason: str) -> None:
        if self._state != OPEN:
            return
        self.slow = True
        self._discard()
        self._say_why(1013, f"slow consumer: {reason}")

    def _say_why(self, code: int, reason: str) -> None:
        """Close a client that is at fault, and leave a line about it."""
        logger.info("%s - closed with %d: %s", self._address, code, reason)
        self.close(code, reason)

    def _discard(self) -> None:
        if self._backlog is not None:
            self._backlog.discard()

    # The end

    def _end(self, code: int, reason: str) -> None:
        """Note why the connection has ended, the first time, and tell whoever is concerned."""
        if self._ended is not None:
            return
        self._ended = (code, reason)
        _wake(self._waiter)
        self._pace()
        if self.listener is not None:
            self.listener.socket_gone(code, reason)

    def _hang_up(self) -> None:
        """Send no more, and wait for the client to do so.

        To close at once could reset the connection, and take our last words from the client.
        """
        self._state = CLOSED
        self._parser = None
        if self.transport.is_closing():
            return
        self._resume_reading()
        self._abort_after(self.limits.close_timeout)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client was quicker, and has reset the connection
            self.abort()

    def _abort_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _pace(self) -> None:
        if self.listener is not None:
            self.listener.socket_paced()

    # Deadlines, once in a while

    def check(self, now: float) -> None:
        """Look whether the client has kept to its limits; called by the edge."""
        if self._state != OPEN:
            return
        if self._violation is not None:
            error, since = self._violation
            if now - since >= self._edge.interval:
                self._fail(error)
        else:
            self._check_message(now)
            self._check_socket(now)
            self._check_life(now)
            self._renew_rate()

    def _check_message(self, now: float) -> None:
        if self._begun is not None and now - self._begun > self.limits.message_timeout:
            self._edge.counts.unfinished += 1
            seconds = self.limits.message_timeout
            self._fail(InvalidFrame(f"message not complete within {seconds:g} s", code=1008))

    def _check_socket(self, now: float) -> None:
        """A full socket must take something in time."""
        if self._backlog is None:
            return
        idle = self._backlog.idle(self._unsent, now)
        if idle > self.limits.send_timeout:
            self._too_slow(f"nothing taken for {self.limits.send_timeout:g} s")
        elif not idle:
            # A sign of life, too: our ping stands behind all that waits.
            self._heard = True

    @property
    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _check_life(self, now: float) -> None:
        """Whatever comes is a sign of life; when nothing does, a ping asks for one."""
        if self._heard or not self._reading:
            self._heard, self._heard_at, self._pinged = False, now, None
        elif self._pinged is None:
            if now - self._heard_at >= self._edge.ping_interval - self._edge.interval:
                self._pinged = now
                self.write(PING)
        elif now - self._pinged > self._edge.ping_timeout:
            self._edge.counts.dead_peers += 1
            self._say_why(1011, "no answer to a ping")
            self._abort_after(LAST_CHANCE)

    def _per_sweep(self) -> float:
        rate = self.limits.max_message_rate
        return max(rate * self._edge.interval, 1) if rate else float("inf")

    def _renew_rate(self) -> None:
        if self._rate.renew(self._per_sweep()):
            self._read()

    def _throttle(self, parser: Parser) -> None:
        """Read no more until the next sweep; close a client that always sends far too much."""
        rate, edge = self._rate, self._edge
        if rate.held:
            return
        rate.hold()
        if self._state == CLOSING:
            self.abort()
            return
        # Or it has taken its time, or has sent no more and may be waiting for an answer.
        rate.count_flood(edge.elapsed() <= edge.interval / 2 and parser.unfinished)
        if rate.is_flood(edge.interval):
            edge.counts.floods += 1
            most = self.limits.max_message_rate
            raise InvalidFrame(f"more than {most} messages a second", code=1008)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
