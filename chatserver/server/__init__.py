"""The edge: protocol classes for uvicorn, lean and guarded.

    uvicorn app:app --ws chatserver.server:WebSocketProtocol --http chatserver.server:HttpProtocol

`chatserver run` uses them.

    frames, deflate    the protocol's bytes, without I/O
    http               a connection's first request, within its limits
    websocket          from the handshake to the application: uvicorn's and ASGI's side
    handshake          what the handshake asks, and the ways to answer it
    socket             the open WebSocket: both directions, back-pressure, deadlines, the end
    backlog, rate      what waits for a full socket; how fast a client may send
    edge               what a server's connections share: limits, counts, one sweep over all
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatserver.server.http import HttpProtocol
    from chatserver.server.websocket import WebSocketProtocol

__all__ = ["HttpProtocol", "WebSocketProtocol"]


def __getattr__(name: str) -> Any:
    # Who only wants a frame imports no server.
    if name == "WebSocketProtocol":
        from chatserver.server.websocket import WebSocketProtocol

        return WebSocketProtocol
    if name == "HttpProtocol":
        from chatserver.server.http import HttpProtocol

        return HttpProtocol
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
