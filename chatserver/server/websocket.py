"""A WebSocket protocol for uvicorn: `uvicorn --ws chatserver.server:WebSocketProtocol`.

It serves any ASGI application. The endpoints of this package get more than ASGI offers: the
protocol itself, as a `Connection` in the scope's extensions. So a connection needs no task of its
own to notice its end, and a publication is framed once and its bytes are written to each transport
directly.
"""

import asyncio
import logging
import re
from functools import cache
from time import monotonic
from typing import Any, cast

from starlette.types import Message, Scope

from chatserver.connection import CONNECTION
from chatserver.server.backlog import ClientDisconnected
from chatserver.server.edge import Address, edge_of
from chatserver.server.handshake import Handshake, InvalidRequest, response
from chatserver.server.incoming import Incoming
from chatserver.server.lingering import LingeringTransport
from chatserver.server.socket import HANDSHAKE, LAST_CHANCE, OPEN, Socket
from chatserver.server.uvicorn_ import (
    Config,
    ServerState,
    is_full,
)
from chatserver.wire import encode

__all__ = ["WebSocketProtocol"]

logger: logging.Logger = logging.getLogger("uvicorn.error")
# RFC 9112, section 2.2: a line may end with "\n" alone, though not in a handshake.
END_OF_HEAD = re.compile(rb"\n\r?\n")


@cache
def _asgi(version: str) -> dict[str, str]:
    """One dict for all connections; nothing changes it."""
    return {"version": version, "spec_version": "2.4"}


class WebSocketProtocol(Socket):
    """One client's connection, from its request on; see `Socket` for its attributes.

    Args:
        config: uvicorn's.
        server_state: uvicorn's, shared by all connections of a server.
        app_state: The lifespan's state, with the limits.
    """

    __slots__ = (
        "_early",
        "_entered",
        "_handshake",
        "_server",
        "_server_state",
        "_since",
        "app_state",
        "config",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(edge_of(config, server_state, app_state))
        self.config: Config = config
        self.app_state: dict[str, Any] = app_state
        self._server_state = server_state
        # The address that the client connected to.
        self._server: Address = None
        # The time from which the request's deadline counts.
        self._since = monotonic()
        # Bytes of the request; then, those that came behind it.
        self._early = b""
        # Set from when the request is complete until it is answered.
        self._handshake: Handshake | None = None
        # Whether it is counted among the connections.
        self._entered = False

    @property
    def _connections(self) -> set[Any]:
        """The connections of the server; uvicorn calls `shutdown` of each when it stops."""
        return cast("set[Any]", self._server_state.connections)

    @property
    def has_asked(self) -> bool:
        """Whether the client has sent its handshake."""
        return self._handshake is not None or self._state is not HANDSHAKE

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once, by the event loop or by an HTTP protocol that hands over the client."""
        if isinstance(transport, LingeringTransport):
            transport = transport.transport
        self.transport = cast("asyncio.Transport", transport)
        self.client = _client_of(self.transport.get_extra_info("peername"))
        self._server = self._edge.shared(_server_of(self.transport.get_extra_info("sockname")))
        self._connections.add(self)
        self._edge.watch()
        # A transport that is full, of responses perhaps, doesn't call `pause_writing` again.
        if is_full(self.transport.get_protocol()):
            self.pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        self._connections.discard(self)
        self._leave()
        self._early = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._state is not HANDSHAKE:
            super().data_received(data)
            return
        searched = max(len(self._early) - len("\n\r"), 0)
        self._early += data
        if self._handshake is None:
            self._find_request(searched)
        elif len(self._early) > self._edge.limits.max_header_size:
            # Before its handshake is answered a client has nothing to send.
            self._pause_reading()

    def check(self, now: float) -> None:
        """Check the client's limits and deadlines; called by the edge."""
        if self._state is not HANDSHAKE:
            super().check(now)
        elif self._handshake is None and now - self._since > self._edge.limits.header_timeout:
            self._turn_away(408, "The request took too long.")

    def shutdown(self) -> None:
        """The server stops: refuse a handshake, and end an open connection in its turn."""
        if self._state is HANDSHAKE:
            self._refuse(503, "The server is restarting.")
        elif self._state is OPEN:
            self._edge.end_in_turn(self._dismiss)
        else:
            self._dismiss()

    def _dismiss(self) -> None:
        """Tell the client to come back (1012), and wait only a moment.

        The application still gets what was received.
        """
        if self._state is OPEN:
            self._read(all_of_it=True)
        self._close(1012, "the server is restarting")
        self._abort_after(min(LAST_CHANCE, self.limits.close_timeout))

    def _leave(self) -> None:
        """Stop counting it among the connections, if it was counted."""
        if self._entered:
            self._entered = False
            self._edge.admission.leave(self._address)

    # The handshake

    def _find_request(self, searched: int) -> None:
        """Check whether the request is complete.

        Args:
            searched: Bytes that were searched before.
        """
        found = END_OF_HEAD.search(self._early, searched)
        size = len(self._early) if found is None else found.end()
        if size > self._edge.limits.max_header_size:
            self._turn_away(431, "The request's headers are too large.")
        elif found is not None:
            self._parse(self._early[:size], self._early[size:])

    def _parse(self, head: bytes, early: bytes) -> None:
        """Parse a request; `early` is what came right behind it."""
        try:
            handshake = Handshake.parse(head, compression=self._edge.limits.compression)
        except InvalidRequest as error:
            self._reject(error)
        else:
            self._begin(handshake, early)

    def _reject(self, error: InvalidRequest) -> None:
        logger.info("%s - invalid WebSocket handshake: %s", self._address, error)
        self._respond(error.answer)

    def _begin(self, handshake: Handshake, early: bytes) -> None:
        """Start the application for a request."""
        self._handshake, self._early = handshake, early
        if (refusal := self._edge.admission.enter(self._address)) is not None:
            self._refuse(*refusal)
            return
        self._entered = True
        self._inbox.append({"type": "websocket.connect"})
        self._edge.start(self._run(self._scope(handshake)))

    def _scope(self, handshake: Handshake) -> Scope:
        root = self.config.root_path
        scope = handshake.scope()
        if root:
            scope["path"] = root + scope["path"]
            scope["raw_path"] = root.encode("ascii") + scope["raw_path"]
        scope.update(
            type="websocket",
            asgi=_asgi(self.config.asgi_version),
            http_version="1.1",
            scheme="wss" if self.transport.get_extra_info("sslcontext") else "ws",
            server=self._server,
            client=self.client,
            root_path=root,
            state=self.app_state.copy(),
            extensions={"websocket.http.response": {}, CONNECTION: self},
        )
        return scope

    async def _run(self, scope: Scope) -> None:
        """Run the application, and end the connection when it has ended."""
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
            if self._state is HANDSHAKE:
                logger.error("ASGI callable returned without completing handshake.")
            elif result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
            self._give_up(1000)

    def _give_up(self, code: int) -> None:
        if self._state is HANDSHAKE:
            self._refuse(500, "Internal Server Error")
        else:
            self.close(code)

    def _answer(self, event: Message) -> None:
        """Take the application's response to the handshake, or a part of it."""
        handshake = self._handshake
        assert handshake is not None, "it is let go when it is answered"
        answer = handshake.answer(event, self._server_state.default_headers)
        if answer is None:
            return
        accepted = answer.status == 101
        if logger.isEnabledFor(logging.INFO):
            address = "{}:{}".format(*self.client) if self.client else ""
            outcome = "[accepted]" if accepted else str(answer.status)
            logger.info('%s - "WebSocket %s" %s', address, handshake.target, outcome)
        if not accepted:
            self._respond(answer.wire)
            return
        self.transport.write(answer.wire)
        self.window_bits = handshake.window_bits
        early, self._early, self._handshake = self._early, b"", None
        incoming = Incoming(
            self.limits,
            self._edge.counts,
            self._edge.interval,
            max_size=self.config.ws_max_size,
            compressed=bool(self.window_bits),
        )
        self._open(incoming, early)

    def _turn_away(self, status: int, reason: str) -> None:
        """Refuse a request that isn't complete."""
        self._edge.counts.bad_requests += 1
        logger.info("%s - %d: %s", self._address, status, reason)
        self._respond(response(status, [], f"{reason}\n".encode()))

    def _refuse(self, status: int, reason: str) -> None:
        """Refuse the handshake without asking the application."""
        logger.info('%s - "WebSocket" %d: %s', self._address, status, reason)
        self._respond(response(status, [], f"{reason}\n".encode()))

    def _respond(self, answer: bytes) -> None:
        """Send an HTTP response, after which the connection ends."""
        self.transport.write(answer)
        self._handshake = None
        self._leave()
        self._hang_up()
        self._end(1006, "")

    # The events of ASGI; `receive` is the socket's

    async def send(self, event: Message) -> None:
        """Send an ASGI event in its turn, and wait until the transport has taken it.

        Raises:
            ClientDisconnected: The client is gone.
        """
        kind = event["type"]
        if self._state is HANDSHAKE:
            self._answer(event)
        elif kind == "websocket.send":
            text = event.get("text")
            await self._send(encode(event["bytes"] if text is None else text, self.window_bits))
        elif kind == "websocket.close":
            self.close(event.get("code", 1000), event.get("reason") or "")
        elif self.close_code is not None:
            raise ClientDisconnected
        else:
            raise RuntimeError(f"Unexpected ASGI message '{kind}' on an open connection.")


def _client_of(found: Any) -> tuple[str, int] | None:
    """Host and port of a client; None on a Unix socket."""
    return (found[0], found[1]) if isinstance(found, tuple) else None


def _server_of(found: Any) -> Address:
    """The address that a client connected to."""
    return (found, None) if isinstance(found, str) else _client_of(found)
