"""uvicorn's HTTP protocol on httptools, with limits for every request on a connection.

The headers of each must be complete in time (408) and in size (431), and a client that takes
nothing of a response is disconnected.
"""

import asyncio
import logging
from time import monotonic
from typing import Any, cast

import httptools

from chatserver.server.edge import Watched, edge_of
from chatserver.server.handshake import response
from chatserver.server.socket import LAST_CHANCE
from chatserver.server.stall import Stall
from chatserver.server.uvicorn_ import (
    Config,
    HttpToolsProtocol,
    RequestResponseCycle,
    ServerState,
)

__all__ = ["Requests"]

logger: logging.Logger = logging.getLogger("uvicorn.error")


class Requests(HttpToolsProtocol, Watched):
    """One client's HTTP connection, until it ends or becomes a WebSocket.

    Args:
        config: uvicorn's.
        server_state: uvicorn's, shared by all connections of a server.
        app_state: The lifespan's state.
        since: The time at which the first request began.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], since: float
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._edge = edge_of(config, server_state, app_state)
        # Bytes since the last part of a body, or since the last request.
        self._received = 0
        # Whether the connection was refused, and further bytes are ignored.
        self._refused = False
        self._stall = Stall()
        # Requests without a complete response. uvicorn keeps no reference to the one that is being
        # answered when others are behind it.
        self._cycles: list[RequestResponseCycle] = []
        # When the request with incomplete headers began; None without one.
        self._begun: float | None = since

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        self._expect_no_answers()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The transport takes bytes again, or is about to report that it is lost."""
        if self.transport.is_closing():
            self._expect_no_answers()
        super().resume_writing()

    def _expect_no_answers(self) -> None:
        for cycle in self._cycles:
            cycle.disconnected = True

    def shutdown(self) -> None:
        """The server stops; don't wait for a client that doesn't read."""
        super().shutdown()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(LAST_CHANCE, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if self._begun is None and (self.cycle is None or self.cycle.response_complete):
            self._begun, self._received = monotonic(), 0
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
        """A part of a body; all other bytes are headers, or the trailers after a body."""
        self._received = 0
        if self._begun is not None:  # answered before the body ended; the deadline is renewed
            self._begun = monotonic()
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """A request's headers are complete; refuse them if they are too large."""
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
        """HTTP/1.0 has no handshake (RFC 6455, 4.2.1; RFC 9110, 7.8)."""
        return self.parser.get_http_version() == "1.1" and super()._should_upgrade()

    def check(self, now: float) -> None:
        """Check the client's deadlines; called by the edge."""
        limits = self._edge.limits
        if self._stall.seconds(self.transport.get_write_buffer_size(), now) > limits.send_timeout:
            self._edge.counts.slow_consumers += 1
            self._log(f"aborted: nothing taken for {limits.send_timeout:g} s")
            self.transport.abort()
        elif self._begun is not None and now - self._begun > limits.header_timeout:
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
        """Become a WebSocket, which gets the bytes behind the request."""
        if self.cycle is not None and not self.cycle.response_complete:
            # The rest of that response would be sent in between the WebSocket's frames.
            self._refused = True
            self._edge.counts.bad_requests += 1
            self._log("aborted: a handshake behind a request that was not answered yet")
            self.transport.abort()
            return
        self.handle_websocket_upgrade()
        if rest:
            cast("asyncio.Protocol", self.transport.get_protocol()).data_received(rest)
        # Breaks a reference cycle: the parser refers to us, and we to it.
        self.parser = cast("Any", None)
