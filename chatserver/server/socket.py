"""The open WebSocket: both directions of it, and its end.

Outgoing bytes go to the transport at once until it is full, and then to a bounded backlog. Incoming
messages are taken as fast as the application handles them: while the inbox is full the socket isn't
read, so that the client has to wait. Sections are those of RFC 6455.
"""

import asyncio
import logging
from enum import IntEnum
from time import monotonic
from typing import Any

from starlette.types import Message

from chatserver.connection import Connection, Write
from chatserver.errors import InvalidFrame, can_be_sent, close_reason
from chatserver.publication import Frame
from chatserver.server.backlog import Backlog, ClientDisconnected
from chatserver.server.edge import Edge, Watched
from chatserver.server.incoming import Incoming
from chatserver.wire import PING, Close, Event, Ping, close_frame, pong_frame

__all__ = ["LAST_CHANCE", "TRANSITIONS", "Socket", "State"]

#: Sends after which a handler yields to the event loop, which it would otherwise block.
SENDS_PER_TURN = 16
#: Seconds to answer a close frame for a client that answered no ping, and at shutdown.
LAST_CHANCE = 0.5

logger: logging.Logger = logging.getLogger("uvicorn.error")


class State(IntEnum):
    """The state of a socket; it only goes forward."""

    #: The request is being read, or the application is answering it.
    HANDSHAKE = 0
    #: Messages go both ways.
    OPEN = 1
    #: Our close frame is sent, or is in the backlog; the client's is awaited.
    CLOSING = 2
    #: No frame is sent or taken any more. The client is to end the TCP connection; if it
    #: doesn't, the connection is aborted.
    CLOSED = 3


HANDSHAKE, OPEN, CLOSING, CLOSED = State

#: The allowed transitions, each with the sentence of RFC 6455 behind it.
TRANSITIONS: dict[tuple[State, State], str] = {
    (HANDSHAKE, OPEN): (
        "4.2.2: This completes the server's handshake. If the server finishes these steps without "
        "aborting the WebSocket handshake, the server considers the WebSocket connection to be "
        "established and that the WebSocket connection is in the OPEN state."
    ),
    (HANDSHAKE, CLOSED): (
        "4.2.2: If the server does not wish to accept this connection, it MUST return an "
        "appropriate HTTP error code and abort the WebSocket handshake."
    ),
    (OPEN, CLOSING): (
        "7.1.3: Upon either sending or receiving a Close control frame, it is said that _The "
        "WebSocket Closing Handshake is Started_ and that the WebSocket connection is in the "
        "CLOSING state."
    ),
    # Without CLOSING in between: the client's close frame is answered at once, a client that
    # broke a rule (7.1.7) is not read any more, or the TCP connection is lost.
    (OPEN, CLOSED): (
        "5.5.1: After both sending and receiving a Close message, an endpoint considers the "
        "WebSocket connection closed and MUST close the underlying TCP connection."
    ),
    (CLOSING, CLOSED): (
        "7.1.4: If the TCP connection is closed after the WebSocket closing handshake was "
        "completed, the WebSocket connection is said to have been closed _cleanly_."
    ),
}


class Socket(Connection, Watched, asyncio.Protocol):
    """One client's WebSocket, which the hub writes to; see `Connection`.

    Args:
        edge: What it shares with the server's other connections.

    Attributes:
        transport: The event loop's transport.
        client: Address and port; None if there are none.
        window_bits: The client's window for compressed messages; 0 without compression.
    """

    __slots__ = (
        "_backlog",
        "_edge",
        "_heard",
        "_heard_at",
        "_inbox",
        "_incoming",
        "_pinged",
        "_reading",
        "_reason",
        "_scheduled",
        "_sends",
        "_state",
        "_timer",
        "_waiter",
        "_writable",
        "client",
        "transport",
        "window_bits",
    )

    # uvicorn cancels it once, when the grace period of a shutdown is over.
    cancelled_at_will = False

    window_bits: int

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge.limits)
        self._edge = edge
        self.transport: asyncio.Transport
        self.client: tuple[str, int] | None = None
        self.window_bits = 0
        self._state = HANDSHAKE
        # The reason given with `close_code`.
        self._reason = ""
        # Aborts the transport when the client doesn't end the connection in time.
        self._timer: asyncio.TimerHandle | None = None

        # Set while frames are taken: in OPEN and CLOSING.
        self._incoming: Incoming | None = None
        # Events that the application has not received yet.
        self._inbox: list[Message] = []
        # Wakes the application when it waits for an event.
        self._waiter: asyncio.Future[None] | None = None
        # Whether the transport is read, and whether a later call of `_read_on` is scheduled.
        self._reading = True
        self._scheduled = False

        # Whether the transport takes more; the backlog exists from when it doesn't until all of
        # the backlog is written.
        self._writable = True
        self._backlog: Backlog | None = None
        # How many sends there were; see SENDS_PER_TURN.
        self._sends = 0

        # Whether bytes came since the last check; when they last came; when a ping was sent.
        self._heard = False
        self._heard_at = monotonic()
        self._pinged: float | None = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _enter(self, state: State) -> None:
        """Change to a state."""
        if state is not self._state:
            assert (self._state, state) in TRANSITIONS, f"{self._state!r} to {state!r}"
            self._state = state

    # The transport's side

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._heard = True
        if self._incoming is not None:
            self._incoming.feed(data)
            self._read()

    def eof_received(self) -> None:
        """The client sends no more: without a close frame the connection is lost (section 7.1.5).

        The transport closes itself after this, when it has sent what it holds.
        """
        self._abort_after(self.limits.close_timeout)
        self._lose()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._lose()

    def _lose(self) -> None:
        """The connection is lost: nothing can be read or written any more.

        7.1.5: If _The WebSocket Connection is Closed_ and no Close control frame was received by
        the endpoint (such as could occur if the underlying transport connection is lost), _The
        WebSocket Connection Close Code_ is considered to be 1006.
        """
        self._enter(CLOSED)
        self._incoming = None
        self._discard()
        self._end(1006, "")

    def pause_writing(self) -> None:
        """The transport is full: from now on frames wait in the backlog."""
        self._writable = False
        if self._backlog is None:
            self._backlog = Backlog()
            self._paced()

    def resume_writing(self) -> None:
        """The transport takes bytes again: first those of the backlog, in order."""
        self._writable = True
        backlog = self._backlog
        while backlog and self._writable:
            self.transport.write(backlog.pop())
        if backlog is None or not self._writable:
            return
        self._backlog = None
        if backlog.pong is not None and self._state is not CLOSED:
            self.transport.write(pong_frame(backlog.pong))
        self._paced()

    # What comes in

    def _open(self, incoming: Incoming, early: bytes) -> None:
        """Begin to exchange frames; `early` is what the client sent before the accept."""
        self._enter(OPEN)
        self.accepted = True
        self._incoming = incoming
        self._paced()
        if early:
            incoming.feed(early)
        self._read()

    @property
    def unhandled(self) -> int:
        """How many messages were received that the application has not taken yet."""
        return len(self._inbox) if self.accepted else 0

    async def receive(self) -> Message:
        """The next ASGI event, in order; after the disconnect it is the disconnect again."""
        while not self._inbox:
            if self._incoming is not None and self._incoming.violation is not None:
                self._fail(self._incoming.violation)
            if self.close_code is not None:
                return {
                    "type": "websocket.disconnect",
                    "code": self.close_code,
                    "reason": self._reason,
                }
            # If two tasks wait, waking the second wakes the first after it, which looks again.
            other, self._waiter = self._waiter, self._edge.loop.create_future()
            try:
                await self._waiter
            finally:
                _wake(other)
        event = self._inbox.pop(0)
        if not self._inbox and not self._reading and not self._scheduled:
            # In a turn of its own, so that other tasks run between the parts of a flood.
            self._scheduled = True
            self._edge.loop.call_soon(self._read_on)
        return event

    def _read_on(self) -> None:
        self._scheduled = False
        self._read()

    def _read(self, *, all_of_it: bool = False) -> None:
        """Take messages from the bytes received: as many as may wait to be handled, or all."""
        incoming, inbox, most = self._incoming, self._inbox, self.limits.max_unhandled
        if incoming is None:
            return
        while len(inbox) < most or self._state is CLOSING or all_of_it:
            event = incoming.next()
            if event is None:
                break
            self._take(event)
            if self._incoming is None:
                return
        else:
            self._pause_reading()
            return
        if incoming.violation is not None and not self._is_in_turn():
            self._fail(incoming.violation)
        elif not incoming.paused:
            self._resume_reading()
        elif incoming.wait:
            self._pause_reading()
            self._read_on_after(incoming.wait)
        elif self._state is CLOSING:
            self.abort()  # it floods us instead of answering our close frame
        else:
            self._pause_reading()

    def _read_on_after(self, seconds: float) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._edge.loop.call_later(seconds, self._read_on)

    def _is_in_turn(self) -> bool:
        """Whether the application has still to answer what came before the rule was broken."""
        idle = self._waiter is not None and not self._waiter.done()
        return self._state is OPEN and (bool(self._inbox) or not idle)

    def _take(self, event: Event) -> None:
        kind = type(event)
        if kind is str or kind is bytes:
            # 1.4: data that comes after our close frame is discarded.
            if self._state is OPEN:
                key = "text" if kind is str else "bytes"
                self._inbox.append({"type": "websocket.receive", key: event})
                _wake(self._waiter)
        elif isinstance(event, Close):
            self._take_close(event)
        elif isinstance(event, Ping):
            # 5.5.2: Upon receipt of a Ping frame, an endpoint MUST send a Pong frame in
            # response, unless it already received a Close frame.
            if self._backlog is None:
                self.transport.write(pong_frame(event.payload))
            else:
                self._backlog.pong = event.payload

    def _take_close(self, close: Close) -> None:
        """Complete the closing handshake; messages received before are still handed out.

        5.5.1: If an endpoint receives a Close frame and did not previously send a Close frame,
        the endpoint MUST send a Close frame in response. (When sending a Close frame in response,
        the endpoint typically echos the status code it received.)
        """
        if self._may_say_why:
            self._discard()
            self.transport.write(close_frame(close.code))
        self._hang_up()
        self._end(close.code, close.reason)

    def _fail(self, error: InvalidFrame) -> None:
        """Close with the code of a broken rule, and read no more.

        7.1.7: If _The WebSocket Connection is Established_ prior to the point where the endpoint
        is required to _Fail the WebSocket Connection_, the endpoint SHOULD send a Close frame
        with an appropriate status code (Section 7.4) before proceeding to _Close the WebSocket
        Connection_.
        """
        if self._may_say_why:
            self._edge.counts.bad_messages += 1
            logger.info("%s - closed with %d: %s", self._address, error.code, error.reason)
            self._discard()
            self.transport.write(close_frame(error.code, error.reason))
        self._hang_up()
        self._end(error.code, error.reason)

    @property
    def _may_say_why(self) -> bool:
        """Whether a close frame can be sent: none was, or it is still in the backlog."""
        return self._state is OPEN or bool(self._backlog)

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # What goes out

    def start(self) -> None:
        """Report an end that came before `on_gone` was set."""
        if self.close_code is not None and self.on_gone is not None:
            self.on_gone(self.close_code)

    @property
    def writer(self) -> Write:
        """What takes publications now."""
        if self._state is CLOSING or self._state is CLOSED:
            return _drop
        return self.write if self._backlog is not None else self.transport.write

    async def push(self, frame: Frame) -> None:
        """Send a frame in its turn; see `Connection`."""
        self._check_accepted()
        try:
            await self._send(frame.wire(self.window_bits))
        except ClientDisconnected:
            # So that a loop that only pushes still yields to the event loop.
            await asyncio.sleep(0)

    async def _send(self, wire: bytes) -> None:
        """Write a frame after everything published before it, and wait until it is taken.

        Raises:
            ClientDisconnected: The client is gone.
        """
        self.catch_up()
        # 5.5.1: The application MUST NOT send any more data frames after sending a Close frame.
        if self._state is not OPEN:
            raise ClientDisconnected
        if self._backlog is not None:
            await self._backlog.wait(wire)
            return
        self.transport.write(wire)
        self._sends += 1
        if self._sends % SENDS_PER_TURN == 0:
            await asyncio.sleep(0)

    def write(self, wire: Any) -> None:
        """Write frames, or queue them as one entry; see `Connection`."""
        backlog = self._backlog
        if self._state is not OPEN:
            return
        if backlog is None:
            self.transport.write(wire)
        elif backlog.size + self._unsent + backlog.size_of(wire) > self.limits.max_buffer:
            self._too_slow(f"more than {self.limits.max_buffer} bytes waiting")
        else:
            backlog.append(wire)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close after everything that was sent before; see `Connection`."""
        if self._state is not OPEN:
            return
        self.catch_up()
        self._inbox.clear()
        self._close(code, reason)

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame, once; messages received before are still handed out."""
        if self._state is not OPEN:
            return
        if not can_be_sent(code):
            logger.error("%r can't be sent as a close code, 1011 is sent instead", code)
            code = 1011
        reason = close_reason(reason)
        self._enter(CLOSING)
        limits, frame = self.limits, close_frame(code, reason)
        if self._backlog is None:
            self.transport.write(frame)
            self._abort_after(limits.close_timeout)
        else:
            self._backlog.append_last(frame)
            self._abort_after(limits.close_timeout if self.slow else limits.send_timeout)
        self._end(code, reason)
        # The client's close frame must be read, whatever comes before it.
        self._read()

    def abort(self) -> None:
        """Drop the TCP connection, and what it has not sent."""
        self.transport.abort()

    def _too_slow(self, reason: str) -> None:
        if self._state is OPEN:
            self.slow = True
            self._discard()
            self._say_why(1013, f"slow consumer: {reason}")

    def _say_why(self, code: int, reason: str) -> None:
        """Close a client that is at fault, and log why."""
        logger.info("%s - closed with %d: %s", self._address, code, reason)
        self._close(code, reason)

    def _discard(self) -> None:
        if self._backlog is not None:
            self._backlog.discard()

    # The end

    def _end(self, code: int, reason: str) -> None:
        """Note why the connection has ended, the first time, and tell those who wait for it."""
        if self.close_code is None:
            self._reason = reason
            _wake(self._waiter)
            self._gone(code)

    def _hang_up(self) -> None:
        """Send no more, and wait until the client ends the TCP connection.

        Closing at once could reset the connection before the client has read our last bytes.
        """
        self._enter(CLOSED)
        self._incoming = None
        if self.transport.is_closing():
            return
        self._resume_reading()
        self._abort_after(self.limits.close_timeout)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # the client has reset the connection already
            self.abort()

    async def departure(self) -> None:
        """Return at once: on this server a denial ends the connection."""

    async def finish(self) -> None:
        """Return at once: a timer aborts the connection unless everything is written in time."""

    def _abort_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._edge.loop.call_later(seconds, self.abort)

    # Deadlines, once per interval

    def check(self, now: float) -> None:
        """Check the client's limits and deadlines; called by the edge."""
        incoming = self._incoming
        if self._state is not OPEN or incoming is None:
            return
        held = incoming.held
        if (error := incoming.check(now)) is not None:
            self._fail(error)
            return
        if incoming.violation is None:
            self._check_socket(now)
            self._check_life(now)
        if held:
            self._read()

    def _check_socket(self, now: float) -> None:
        """Close a client whose full socket has taken nothing in time."""
        if self._backlog is None:
            return
        stalled = self._backlog.stall.seconds(self._unsent, now)
        if stalled > self.limits.send_timeout:
            self._too_slow(f"nothing taken for {self.limits.send_timeout:g} s")
        elif not stalled:
            # That is a sign of life, too: our ping is behind everything that waits.
            self._heard = True

    @property
    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _check_life(self, now: float) -> None:
        """Bytes from the client are a sign of life; when none come, send a ping."""
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


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _drop(_: Any) -> None:
    """The writer of a connection that has ended: it drops publications."""
