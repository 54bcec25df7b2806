"""One client's connection, which the hub writes to and the endpoint reads from.

On our server its protocol is the connection. On every other server a `QueuedConnection` is between
the server and the application.
"""

from starlette.types import Receive, Scope, Send

from chatserver.connection.base import (
    MESSAGE_OVERHEAD,
    NO_MEMBERS,
    Connection,
    Source,
    Wire,
    Write,
    connection_of,
)
from chatserver.connection.queued import QueuedConnection
from chatserver.limits import Limits

__all__ = [
    "CONNECTION",
    "MESSAGE_OVERHEAD",
    "NO_MEMBERS",
    "Connection",
    "QueuedConnection",
    "Source",
    "Wire",
    "Write",
    "connect",
    "connection_of",
]

#: The extension in the scope in which our server passes the `Connection`.
CONNECTION = "chatserver.connection"


def connect(
    scope: Scope, receive: Receive, send: Send, limits: Limits
) -> tuple[Connection, Receive, Send]:
    """The connection for a handshake, and the `receive` and `send` for it.

    Args:
        scope: The handshake's ASGI scope.
        receive: The server's, wrapped by the middleware.
        send: The server's, wrapped by the middleware.
        limits: What the client may take.
    """
    connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    if connection is None:
        queued = QueuedConnection(receive, send, limits)
        return queued, queued.receive, queued.send
    connection.limits = limits
    return connection, receive, send
