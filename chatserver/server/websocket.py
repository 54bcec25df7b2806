"""A lean WebSocket protocol for uvicorn: `uvicorn --ws chatserver.server:WebSocketProtocol`.

It serves any ASGI application. To the endpoints of this package it gives more than ASGI can say:
in `scope["extensions"]["chatserver.writer"]` stands the protocol itself, as what
`chatserver.connection` calls a `Writer`. So a connection needs no task of its own to notice its
end, and a publication's bytes, framed once, go straight to the transport.
"""

import asyncio
import logging
from typing import Any, cast

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

from chatserver.server.edge import edge_of
from chatserver.server.handshake import Handshake, InvalidRequest, response
from chatserver.server.socket import HANDSHAKE, LAST_CHANCE, Socket
from chatserver.wire import encode

__all__ = ["WRITER", "WebSocketProtocol"]

#: The name of the extension in the scope.
WRITER = "chatserver.writer"

logger = logging.getLogger("uvicorn.error")
END_OF_HEAD = b"\r\n\r\n"


class WebSocketProtocol(Socket):
    """One client's connection, from its handshake on; see `Socket` for its attributes.

    Args:
        config: uvicorn's.
        server_state: uvicorn's, shared by all connections of a server.
        app_state: The lifespan's state; the limits are in it.
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
        self.config = config
        self.app_state = app_state
        self._server_state = server_state
        self._server: tuple[str, int | None] | None = None
        self._since = self._loop.time()
        self._early = b""
        self._handshake: Handshake | None = None
        self._entered = False

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
        self._edge.watch()
        # Whoever served the transport until now may have been told that it is full: with answers
        # that the client doesn't read. A transport doesn't say so twice.
        flow = getattr(transport.get_protocol(), "flow", None)
        if flow is not None and flow.write_paused:
            self.pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._connections.discard(self)
        self._leave()
        self._early = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._state != HANDSHAKE:
            super().data_received(data)
            return
        self._early += data
        if self._handshake is None:
            self._parse()
        elif len(self._early) > self._edge.limits.max_header_size:
            # Before its handshake is answered a client has nothing to say.
            self._pause_reading()

    def check(self, now: float) -> None:
        """Look whether the client has kept to its limits; called by the edge."""
        if self._state != HANDSHAKE:
            super().check(now)
        elif self._handshake is None and now - self._since > self._edge.limits.header_timeout:
            self._edge.counts.bad_requests += 1
            self._refuse(408, "The request took too long.")

    def shutdown(self) -> None:
        """The server stops: tell the client to come back (1012), and wait but a moment."""
        if self._state == HANDSHAKE:
            self._refuse(503, "The server is restarting.")
        else:
            self.close(1012, "the server is restarting")
            self._abort_after(min(LAST_CHANCE, self.limits.close_timeout))

    def _leave(self) -> None:
        """Free the place that it has among the connections, if it has one."""
        if self._entered:
            self._entered = False
            self._edge.leave(self._address)

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
        self._edge.start(self._run(self._scope(handshake)))

    def reject(self, answer: bytes) -> None:
        """Refuse what is no handshake."""
        logger.info("%s - invalid WebSocket handshake", self._address)
        self._respond(answer)

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
        """The application's answer to the handshake, or a part of it."""
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
        self._open(min(self.limits.max_message_size, self.config.ws_max_size), early)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer the handshake without asking the application."""
        logger.info('%s - "WebSocket" %d: %s', self._address, status, reason)
        self._respond(response(status, [], f"{reason}\n".encode()))

    def _respond(self, response: bytes) -> None:
        """Send an HTTP response, after which the connection ends."""
        self.transport.write(response)
        self._handshake = None
        self._leave()
        self._hang_up()
        self._end(1006, "")

    # The events of ASGI; `receive` is the socket's

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
