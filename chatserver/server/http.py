"""One client's connection from its first byte: `uvicorn --http chatserver.server:HttpProtocol`.

What it adds to uvicorn: the headers of the first request must be complete in time (408) and in
size (431), bytes that a client sent right behind its handshake reach the WebSocket, and a response
reaches a client that is still sending its request. What is not a handshake goes to uvicorn's HTTP
protocol: through `requests` where httptools is installed.
"""

from typing import Any

from chatserver.server.handshake import NAME, InvalidRequest, NoHandshake
from chatserver.server.lingering import LingeringTransport
from chatserver.server.uvicorn_ import HAS_HTTPTOOLS, H11Protocol
from chatserver.server.websocket import WebSocketProtocol

__all__ = ["HttpProtocol", "missing_guards"]


class HttpProtocol(WebSocketProtocol):
    """A WebSocket if the first request asks for one; else uvicorn's HTTP protocol takes over."""

    __slots__ = ()

    def _find_request(self, searched: int) -> None:
        # Bytes that can't begin a request, such as TLS, are answered at once.
        if NAME.match(self._early) and self.config.ws_protocol_class is WebSocketProtocol:
            super()._find_request(searched)
        else:
            self._serve_http()

    def _reject(self, error: InvalidRequest) -> None:
        if isinstance(error, NoHandshake):
            self._serve_http()
        else:
            super()._reject(error)

    def _serve_http(self) -> None:
        """Hand over to an HTTP protocol, with the bytes received so far."""
        self._connections.discard(self)
        protocol = _http_protocol(self.config, self._server_state, self.app_state, self._since)
        self.transport.set_protocol(protocol)
        timeout = self._edge.limits.close_timeout
        protocol.connection_made(LingeringTransport(self.transport, timeout))
        protocol.data_received(self._early)


def _http_protocol(config: Any, server_state: Any, app_state: dict[str, Any], since: float) -> Any:
    if not HAS_HTTPTOOLS:
        return H11Protocol(config, server_state, app_state)
    from chatserver.server.requests import Requests

    return Requests(config, server_state, app_state, since)


def missing_guards() -> str:
    """A sentence about the guards that are missing here; empty if none is."""
    if HAS_HTTPTOOLS:
        return ""
    return (
        "httptools is not installed: of several requests on one connection only the first has "
        "limits for its headers (408, 431), and a client that takes nothing of a response is not "
        "disconnected. WebSockets have all their guards."
    )
