"""A lean WebSocket protocol for uvicorn: `uvicorn --ws chatserver.server:WebSocketProtocol`.

It serves any ASGI application. To the endpoints of this package it gives more than ASGI can say:
in `scope["extensions"]["chatserver.writer"]` stands the protocol itself, as what
`chatserver.connection` calls a `Writer`. So a connection needs no task of its own to notice its
end, and a publication's bytes, framed once, go straight to the transport.

The life of a connection is its `_state`, which only grows:

    HANDSHAKE   the request is being read, then answered by the application
    OPEN        messages both ways
    CLOSING     a close frame is sent, the client's is waited for
    CLOSED      nothing that comes is of interest any more; the socket ends, or is aborted in time

What goes out goes to the transport at once until that is full, and then to a bounded backlog.
What comes in is parsed no further than the application can use: behind a full inbox the socket
isn't read, and the client feels it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from starlette.types import Message as Event
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import (
    ClientDisconnected,
    get_local_addr,
    get_remote_addr,
    is_ssl,
)
from uvicorn.server import ServerState

from chatserver.errors import InvalidFrame, can_be_sent, close_reason
from chatserver.limits import Limits
from chatserver.server.edge import edge_of
from chatserver.server.frames import (
    PING,
    Close,
    Parser,
    Ping,
    Pong,
    close_frame,
    encode,
    pong_frame,
)
from chatserver.server.handshake import Handshake, InvalidRequest, response

__all__ = ["WRITER", "WebSocketProtocol"]

#: The name of the extension in the scope.
WRITER = "chatserver.writer"

HANDSHAKE, OPEN, CLOSING, CLOSED = range(4)

#: Bytes for which a waiting message counts besides its size, so that empty ones count too.
OVERHEAD = 64
#: Sends after which a handler yields to the event loop, which else it might keep for itself.
SENDS_PER_TURN = 16
#: Seconds on end in which a client may send twice what it should.
FLOOD_SECONDS = 5
#: Seconds that a client has to answer a close frame when it answered no ping, or at shutdown.
LAST_CHANCE = 0.5

logger = logging.getLogger("uvicorn.error")
END_OF_HEAD = b"\r\n\r\n"


class _Waiting(NamedTuple):
    """Bytes in the backlog; their size is 0 where somebody waits until they are written."""

    wire: bytes
    size: int
    written: asyncio.Future[None] | None


class WebSocketProtocol(asyncio.Protocol):
    """One client's connection, from its handshake on.

    Args:
        config: uvicorn's.
        server_state: uvicorn's, shared by all connections of a server.
        app_state: The lifespan's state; the limits are in it.

    Attributes:
        limits: What this client may take; those of the server until an endpoint says else.
        window_bits: The client's window for compressed messages; 0 without compression.
        slow: Whether it was closed as a slow consumer.
        on_gone: Called once, with code and reason, when the connection has ended.
        on_pace: Called when `full` has changed.
    """

    __slots__ = (
        "_allowance",
        "_backlog",
        "_backlogged",
        "_begun",
        "_denial",
        "_early",
        "_edge",
        "_ended",
        "_entered",
        "_flooding",
        "_handshake",
        "_heard",
        "_heard_at",
        "_inbox",
        "_loop",
        "_parser",
        "_pinged",
        "_pong",
        "_reading",
        "_scheduled",
        "_sends",
        "_server",
        "_server_state",
        "_since",
        "_state",
        "_stuck",
        "_stuck_at",
        "_throttled",
        "_timer",
        "_transport_full",
        "_violated_at",
        "_violation",
        "_waiter",
        "app_state",
        "client",
        "config",
        "limits",
        "on_gone",
        "on_pace",
        "slow",
        "transport",
        "window_bits",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.config = config
        self.app_state = app_state
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._edge = edge_of(config, server_state, app_state)
        self.limits: Limits = self._edge.limits
        self.window_bits = 0
        self.slow = False
        self.on_gone: Callable[[int, str], None] | None = None
        self.on_pace: Callable[[], None] | None = None

        self.transport: asyncio.Transport
        self.client: tuple[str, int] | None = None
        self._server: tuple[str, int | None] | None = None
        self._state = HANDSHAKE
        self._handshake: Handshake | None = None
        self._denial: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self._entered = False
        self._ended: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

        self._early = b""
        self._parser: Parser | None = None
        self._inbox: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._reading = True
        self._scheduled = False
        self._allowance = self._per_sweep()
        self._throttled = False
        self._flooding = 0
        self._begun: float | None = None
        self._violation: InvalidFrame | None = None
        self._violated_at = 0.0

        self._transport_full = False
        self._backlog: deque[_Waiting] | None = None
        self._backlogged = 0
        self._pong: bytes | None = None
        self._sends = 0
        self._stuck = 0
        self._stuck_at = 0.0

        self._since = self._heard_at = self._loop.time()
        self._heard = False
        self._pinged: float | None = None

    @property
    def _connections(self) -> set[Any]:
        """uvicorn's, which asks them all to shut down when it does."""
        return self._server_state.connections

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once, by uvicorn's own HTTP protocols."""
        taken = cast("asyncio.Transport", transport)
        self.take(taken, get_remote_addr(taken), get_local_addr(taken))

    def take(
        self,
        transport: asyncio.Transport,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
    ) -> None:
        """Take over a transport between these two addresses."""
        self.transport = transport
        self.client = client
        self._server = self._edge.shared(server)
        self._connections.add(self)
        self._edge.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; nothing can be read or written any more."""
        self._state = CLOSED
        self._connections.discard(self)
        self._edge.unwatch(self)
        if self._entered:
            self._entered = False
            self._edge.leave(self._address)
        if self._timer is not None:
            self._timer.cancel()
        self._discard()
        self._parser = None
        self._early = b""
        self._end(1006, "")

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._heard = True
        if self._parser is not None:
            self._parser.feed(data)
            self._read()
        elif self._state == HANDSHAKE:
            self._early += data
            if self._handshake is None:
                self._parse()
            elif len(self._early) > self._edge.limits.max_header_size:
                # Before its handshake is answered a client has nothing to say.
                self._pause_reading()

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
            self._backlog = deque()
            self._stuck, self._stuck_at = self._unsent, self._loop.time()
            self._pace()

    def resume_writing(self) -> None:
        """The transport takes bytes again: first those of the backlog, in their order."""
        self._transport_full = False
        self._stuck = -1  # whatever waits next, something was taken
        while self._backlog and not self._transport_full:
            waiting = self._backlog.popleft()
            self._backlogged -= waiting.size
            _wake(waiting.written)
            self.transport.write(waiting.wire)
        if self._backlog is None or self._transport_full:
            return
        self._backlog = None
        if self._pong is not None and self._state <= CLOSING:
            self.transport.write(pong_frame(self._pong))
        self._pong = None
        self._pace()

    def shutdown(self) -> None:
        """The server stops: tell the client to come back (1012), and wait but a moment."""
        if self._state == HANDSHAKE:
            self._refuse(503, "The server is restarting.")
        else:
            self.close(1012, "the server is restarting")
            self._abort_after(min(LAST_CHANCE, self.limits.close_timeout))

    # The handshake

    def _parse(self) -> None:
        """Parse the request, once it is here."""
        head, end, rest = self._early.partition(END_OF_HEAD)
        if not end:
            if len(head) > self._edge.limits.max_header_size:
                self._edge.counts.bad_requests += 1
                self._refuse(431, "The request's headers are too large.")
            return
        try:
            handshake = Handshake.parse(head + end, compression=self._edge.limits.compression)
        except InvalidRequest as error:
            self.reject(error.answer)
        else:
            self.begin(handshake, rest)

    def begin(self, handshake: Handshake, early: bytes) -> None:
        """Hand a request to the application.

        Args:
            handshake: The request.
            early: What the client sent behind it.
        """
        self._handshake, self._early = handshake, early
        if handshake.refusal:
            self.reject(handshake.refusal)
            return
        if (refusal := self._edge.refusal(self._address)) is not None:
            self._edge.counts.refused += 1
            self._refuse(*refusal)
            return
        self._edge.enter(self._address)
        self._entered = True
        self._inbox.append({"type": "websocket.connect"})
        task = self._loop.create_task(self._run(self._scope(handshake)))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def reject(self, answer: bytes) -> None:
        """Refuse what is no handshake."""
        logger.info("%s - invalid WebSocket handshake", self._address)
        self._respond(answer)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _scope(self, handshake: Handshake) -> Scope:
        asked = handshake.scope()
        root = self.config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(self.transport) else "ws",
            "server": self._server,
            "client": self.client,
            "root_path": root,
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}, WRITER: self},
            **asked,
            "path": root + asked["path"],
            "raw_path": root.encode("ascii") + asked["raw_path"],
        }

    async def _run(self, scope: Scope) -> None:
        """Serve the application, to whatever end."""
        try:
            result = await self.config.loaded_app(scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            self._give_up(1012)
            raise
        except BaseException:
            logger.exception("Exception in ASGI application\n")
            self._give_up(1011)
        else:
            if self._state == HANDSHAKE:
                logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
            self._give_up(1000)

    def _give_up(self, code: int) -> None:
        if self._state == HANDSHAKE:
            self._refuse(500, "Internal Server Error")
        else:
            self.close(code)

    def _answer(self, event: Event) -> None:
        """The application's answer to the handshake."""
        kind = event["type"]
        if self._denial is not None and kind == "websocket.http.response.body":
            self._deny(event)
        elif self._denial is None and kind == "websocket.accept":
            self._accept(event)
        elif self._denial is None and kind == "websocket.close":
            self._log("403")
            self._respond(response(403, [], b""))
        elif self._denial is None and kind == "websocket.http.response.start":
            if not 200 <= event["status"] < 600:
                raise RuntimeError(f"Invalid HTTP status code '{event['status']}' in response.")
            self._log(str(event["status"]))
            self._denial = (event["status"], list(event.get("headers", [])), b"")
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' before the handshake's end.")

    @property
    def _opening(self) -> Handshake:
        assert self._handshake is not None, "the handshake has been let go"
        return self._handshake

    def _accept(self, event: Event) -> None:
        handshake = self._opening
        headers = [*self._server_state.default_headers, *event.get("headers", [])]
        answer = handshake.accept(event.get("subprotocol"), headers)
        self._log("[accepted]")
        self.transport.write(answer)
        self.window_bits = handshake.window_bits
        self._state = OPEN
        self._handshake = None
        limits = self.limits
        self._parser = Parser(
            min(limits.max_message_size, self.config.ws_max_size),
            limits.max_fragments,
            bool(self.window_bits),
        )
        if self._early:
            self._parser.feed(self._early)
            self._early = b""
            self._read()
        else:
            self._resume_reading()

    def _deny(self, event: Event) -> None:
        assert self._denial is not None, "the answer has not begun"
        status, headers, body = self._denial
        body += event.get("body", b"")
        self._denial = (status, headers, body)
        if not event.get("more_body", False):
            self._respond(response(status, headers, body))

    def _refuse(self, status: int, reason: str) -> None:
        """Answer the handshake without asking the application."""
        logger.info('%s - "WebSocket" %d: %s', self._address, status, reason)
        self._respond(response(status, [], f"{reason}\n".encode()))

    def _respond(self, response: bytes) -> None:
        """Send an HTTP response, after which the connection ends."""
        self.transport.write(response)
        self._handshake = None
        self._hang_up()
        self._end(1006, "")

    def _log(self, outcome: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            address = "{}:{}".format(*self.client) if self.client else ""
            logger.info('%s - "WebSocket %s" %s', address, self._opening.target, outcome)

    # What comes in

    async def receive(self) -> Event:
        """The next ASGI event, in order; the disconnect is the last, and stays."""
        while not self._inbox:
            if self._violation is not None:
                self._fail(self._violation)
            if self._ended is not None:
                code, reason = self._ended
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._waiter = self._loop.create_future()
            await self._waiter
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
            self._fail(self._violation)
        if parser is None or self._state > CLOSING:
            return
        try:
            while self._may_take_more(parser):
                event = parser.next()
                if event is None:
                    self._note_unfinished(parser)
                    self._resume_reading()
                    return
                self._allowance -= 1
                self._take(event)
                if self._parser is None:
                    return
            self._pause_reading()
        except InvalidFrame as error:
            self._fail_in_turn(error)

    def _may_take_more(self, parser: Parser) -> bool:
        if self._allowance <= 0:
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
                # Section 5.5.3: the latest one will do, so unread pongs don't pile up.
                self._pong = event.payload
        else:
            assert kind is Pong

    def _take_close(self, close: Close) -> None:
        """Section 5.5.1: answer with the same code, unless this is the answer."""
        if self._state == OPEN or self._backlog:
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
            self._violation, self._violated_at = error, self._loop.time()
            self._parser = None
            self._pause_reading()
        else:
            self._fail(error)

    def _fail(self, error: InvalidFrame) -> None:
        """Section 7.1.7: say what is wrong, and listen no more."""
        self._violation = None
        if self._state == OPEN or self._backlog:
            self._edge.counts.bad_messages += 1
            logger.info("%s - closed with %d: %s", self._address, error.code, error.reason)
            self._discard()
            self.transport.write(close_frame(error.code, error.reason))
        self._hang_up()
        self._end(error.code, error.reason)

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # What goes out

    async def send(self, event: Event) -> None:
        """Send an ASGI event in its turn, and wait until the transport has taken it.

        Raises:
            ClientDisconnected: The client is gone.
        """
        kind = event["type"]
        if self._state == HANDSHAKE:
            self._answer(event)
        elif kind == "websocket.send":
            text = event.get("text")
            await self.send_wire(encode(event["bytes"] if text is None else text, self.window_bits))
        elif kind == "websocket.close":
            self.close(event.get("code", 1000), event.get("reason") or "")
        elif self._ended is not None:
            raise ClientDisconnected
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' on an open connection.")

    async def send_wire(self, wire: bytes) -> None:
        """Write a frame's bytes in their turn, and wait until the transport has taken them.

        Raises:
            ClientDisconnected: The client is gone.
        """
        if self._state != OPEN:
            raise ClientDisconnected
        if self._backlog is not None:
            await self._wait_in_line(self._backlog, wire)
            return
        self.transport.write(wire)
        self._sends += 1
        if self._sends % SENDS_PER_TURN == 0:
            await asyncio.sleep(0)

    async def _wait_in_line(self, backlog: deque[_Waiting], wire: bytes) -> None:
        """Queue and wait; when cancelled, take it out again.

        So it needs no room in the bounded backlog: there is at most one for each who waits.
        """
        waiting = _Waiting(wire, 0, self._loop.create_future())
        backlog.append(waiting)
        assert waiting.written is not None, "it was made just now"
        try:
            await waiting.written
        except asyncio.CancelledError:
            if waiting in backlog:
                backlog.remove(waiting)
            raise

    @property
    def full(self) -> bool:
        """Whether `write` would queue; while it wouldn't, `transport.write` does as well."""
        return self._backlog is not None or self._state != OPEN

    def write(self, wire: bytes) -> None:
        """Write a frame's bytes, or queue them. Never waits; a full backlog ends the connection."""
        if self._state != OPEN:
            return
        if self._backlog is None:
            self.transport.write(wire)
            return
        size = len(wire) + OVERHEAD
        waiting = self._backlogged + self._unsent
        if waiting + size > self.limits.max_buffer:
            self._too_slow(f"more than {self.limits.max_buffer} bytes waiting")
            return
        self._backlogged += size
        self._backlog.append(_Waiting(wire, size, None))

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
            self._backlog.append(_Waiting(frame, 0, None))
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
        """Drop the backlog; whoever waits for it learns that the client is gone."""
        if self._backlog is None:
            return
        for waiting in self._backlog:
            if waiting.written is not None and not waiting.written.done():
                waiting.written.set_exception(ClientDisconnected())
        self._backlog.clear()
        self._backlogged = 0

    # The end

    def _end(self, code: int, reason: str) -> None:
        """Note why the connection has ended, the first time, and tell whoever is concerned."""
        if self._ended is not None:
            return
        self._ended = (code, reason)
        _wake(self._waiter)
        self._pace()
        if self.on_gone is not None:
            self.on_gone(code, reason)

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
        if self.on_pace is not None:
            self.on_pace()

    # Deadlines, once in a while

    def check(self, now: float) -> None:
        """Look whether the client has kept to its limits; called by the edge."""
        if self._state == HANDSHAKE and self._handshake is None:
            if now - self._since > self._edge.limits.header_timeout:
                self._edge.counts.bad_requests += 1
                self._refuse(408, "The request took too long.")
        elif self._state == OPEN and self._violation is not None:
            if now - self._violated_at >= self._edge.interval:
                self._fail(self._violation)
        elif self._state == OPEN:
            self._check_message(now)
            self._check_socket(now)
            self._check_life(now)
            self._renew_allowance()

    def _check_message(self, now: float) -> None:
        if self._begun is not None and now - self._begun > self.limits.message_timeout:
            self._edge.counts.unfinished += 1
            seconds = self.limits.message_timeout
            self._fail(InvalidFrame(f"message not complete within {seconds:g} s", code=1008))

    def _check_socket(self, now: float) -> None:
        """A full socket must take something in time."""
        if self._backlog is None:
            return
        if self._unsent != self._stuck:
            self._stuck, self._stuck_at = self._unsent, now
            # A sign of life, too: our ping stands behind all that waits.
            self._heard = True
        elif now - self._stuck_at > self.limits.send_timeout:
            self._too_slow(f"nothing taken for {self.limits.send_timeout:g} s")

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

    def _renew_allowance(self) -> None:
        self._allowance = self._per_sweep()
        if self._throttled:
            self._throttled = False
            self._read()
        else:
            self._flooding = 0

    def _throttle(self, parser: Parser) -> None:
        """Read no more until the next sweep; close a client that always sends far too much."""
        if self._throttled:
            return
        self._throttled = True
        if self._state == CLOSING:
            self.abort()
        elif self._edge.elapsed() > self._edge.interval / 2 or not parser.unfinished:
            # It has taken its time, or has sent no more and may be waiting for an answer.
            self._flooding = 0
        else:
            self._flooding += 1
            if self._flooding * self._edge.interval >= FLOOD_SECONDS:
                self._edge.counts.floods += 1
                rate = self.limits.max_message_rate
                raise InvalidFrame(f"more than {rate} messages a second", code=1008)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
