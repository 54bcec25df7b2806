"""uvicorn's HTTP protocol with limits: `uvicorn --http chatserver.server:HttpProtocol`.

Beyond what uvicorn's does, the headers of a request must be complete in time (408) and in size
(431), and what a client sent right behind its handshake reaches the WebSocket.
"""

import asyncio
import logging
from functools import lru_cache
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from chatserver.server.edge import edge_of
from chatserver.server.handshake import Handshake, InvalidRequest, response
from chatserver.server.socket import LAST_CHANCE
from chatserver.server.websocket import WebSocketProtocol

__all__ = ["HttpProtocol"]

logger = logging.getLogger("uvicorn.error")

#: Names of headers that many clients send alike: each such header is kept once for all of them.
ALIKE = frozenset(
    {
        *(b"host", b"connection", b"upgrade", b"origin", b"user-agent", b"pragma"),
        *(b"sec-websocket-version", b"sec-websocket-extensions", b"cache-control"),
        *(b"accept-encoding", b"accept-language"),
    }
)
#: Bytes of a value up to which it is; and how many headers are kept.
MAX_ALIKE, MOST_ALIKE = 256, 256
#: Of each of these every client has its own; only the name is kept once.
OWN = {name: name for name in (b"sec-websocket-key", b"cookie", b"sec-websocket-protocol")}


class HttpProtocol(HttpToolsProtocol):
    """One client's HTTP connection, until it closes or becomes a WebSocket."""

    def __init__(self, config: Any, server_state: ServerState, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, server_state, *args, **kwargs)
        self._edge = edge_of(config, server_state, self.app_state)
        self._received = 0  # bytes since the last part of a body, or since the last request
        self._refused = False
        self._unsent, self._idle_since = 0, 0.0
        # Requests without a complete answer. uvicorn has lost sight of the one that is being
        # answered when there are others behind it.
        self._cycles: list[RequestResponseCycle] = []
        # When the request began whose headers are not complete.
        self._begun: float | None = self.loop.time()

    def connection_made(self, transport: Any) -> None:
        """Called once; from here on the client has to say what it wants."""
        super().connection_made(transport)
        self._edge.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._expect_no_answers()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The transport takes bytes again, or is about to say that it is lost."""
        if self.transport.is_closing():
            self._expect_no_answers()
        super().resume_writing()

    def _expect_no_answers(self) -> None:
        for cycle in self._cycles:
            cycle.disconnected = True

    def shutdown(self) -> None:
        """The server stops; who doesn't read is not waited for."""
        super().shutdown()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LAST_CHANCE, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if self._begun is None and (self.cycle is None or self.cycle.response_complete):
            self._begun, self._received = self.loop.time(), 0
        self._received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._upgrade(data[upgrade.args[0] :])
            else:
                self._unsupported_upgrade_warning()
        except httptools.HttpParserError:
            if not self._refused:
                logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
        else:
            if self._received > self._edge.limits.max_header_size:
                self._refuse(431, "The request's headers are too large.")

    def on_body(self, body: bytes) -> None:
        """A part of a body; whatever else comes is headers, or the trailers behind a body."""
        self._received = 0
        if self._begun is not None:  # the answer came first; as long as there is more, it may
            self._begun = self.loop.time()
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """A request's headers are here, maybe too many of them."""
        self._begun, self._received = None, 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._edge.limits.max_header_size:
            self._refuse(431, "The request's headers are too large.")
            raise ValueError("the request was refused")
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle is not None and self.cycle not in self._cycles:
            self._cycles.append(self.cycle)

    def _should_upgrade(self) -> bool:
        """In HTTP/1.0 there is no handshake (RFC 6455, 4.2.1; RFC 9110, 7.8)."""
        return self.parser.get_http_version() == "1.1" and super()._should_upgrade()

    def check(self, now: float) -> None:
        """Look whether the client has kept to its time; called by the edge."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._idle_since = unsent, now
        elif now - self._idle_since > self._edge.limits.send_timeout:
            self._edge.counts.slow_consumers += 1
            self._log(f"aborted: nothing taken for {self._edge.limits.send_timeout:g} s")
            self.transport.abort()
            return
        if self._begun is not None and now - self._begun > self._edge.limits.header_timeout:
            self._refuse(408, "The request took too long.")

    def _refuse(self, status: int, reason: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._edge.counts.bad_requests += 1
        self._log(f"{status}: {reason}")
        self.transport.write(response(status, [], f"{reason}\n".encode()))
        self.transport.close()

    def _log(self, outcome: str) -> None:
        logger.info("%s - %s", self.client[0] if self.client else "", outcome)

    def _upgrade(self, rest: bytes) -> None:
        """Become a WebSocket; what came behind the request goes there."""
        if self.cycle is not None and not self.cycle.response_complete:
            # The rest of that answer would come in the midst of the WebSocket's frames.
            self._refused = True
            self._edge.counts.bad_requests += 1
            self._log("aborted: a handshake behind a request that was not answered yet")
            self.transport.abort()
            return
        if self.ws_protocol_class is WebSocketProtocol and self.parser.get_method() == b"GET":
            self._become(WebSocketProtocol(self.config, self.server_state, self.app_state), rest)
        else:
            self.handle_websocket_upgrade()
            if rest:
                cast("asyncio.Protocol", self.transport.get_protocol()).data_received(rest)
        # The parser refers to us, and we to it.
        self.parser = cast("Any", None)

    def _become(self, protocol: WebSocketProtocol, rest: bytes) -> None:
        """Hand on what is parsed already, where uvicorn would have it parsed again."""
        self.connections.discard(self)
        protocol.take(self.transport, self.client, self.server)
        self.transport.set_protocol(protocol)
        headers = [_shared(name, value) for name, value in self.headers]
        try:
            handshake = Handshake.of(self.url, headers, compression=self._edge.limits.compression)
        except InvalidRequest as error:
            protocol.reject(error.answer)
        else:
            protocol.begin(handshake, rest)


def _shared(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header, of which as much as possible is there already."""
    if name in ALIKE and len(value) <= MAX_ALIKE:
        return _alike(name, value)
    return OWN.get(name, name), value


@lru_cache(maxsize=MOST_ALIKE)
def _alike(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return name, value
