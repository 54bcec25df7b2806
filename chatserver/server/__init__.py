"""The edge: protocol classes for uvicorn, lean and guarded.

    uvicorn app:app --ws chatserver.server:WebSocketProtocol --http chatserver.server:HttpProtocol

`chatserver run` uses them.

    http               a connection from its first byte: a WebSocket, or HTTP
    requests           uvicorn's HTTP on httptools, with limits for every request
    lingering          closes an HTTP connection whose client is still sending
    websocket          from the handshake to the application: the sides of uvicorn and ASGI
    handshake          parses a client's handshake, and makes the answers to it
    socket             the open WebSocket: both directions, back-pressure, the end
    incoming           from a client's bytes to messages, within its limits
    backlog, stall     what waits for a full socket, and how long nothing was taken
    edge               what a server's connections share: limits, counts, one sweep over all, an end
    processes          what `chatserver run` starts: a server, or several processes of it
    uvicorn_           all that we use of uvicorn's internals
    websockets_        the negotiation of compression, by `websockets`
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatserver.server.http import HttpProtocol
    from chatserver.server.websocket import WebSocketProtocol

__all__ = ["HttpProtocol", "WebSocketProtocol"]


def __getattr__(name: str) -> Any:
    # So that code that needs only a frame imports no server.
    if name == "WebSocketProtocol":
        from chatserver.server.websocket import WebSocketProtocol

        return WebSocketProtocol
    if name == "HttpProtocol":
        from chatserver.server.http import HttpProtocol

        return HttpProtocol
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
