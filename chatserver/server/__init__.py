"""The edge: protocol classes for uvicorn, lean and guarded.

    uvicorn app:app --ws chatserver.server:WebSocketProtocol --http chatserver.server:HttpProtocol

`chatserver run` uses them. `frames` and `deflate` know the protocol's bytes and do no I/O;
`websocket`, `handshake` and `http` serve a connection; `edge` is what a server's connections share.
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
