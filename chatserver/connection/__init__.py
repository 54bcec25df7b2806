"""One client's connection: what the hub writes to, and the endpoint reads from.

On a server of ours the server's own end of the socket is the connection. On every other, a
`QueuedConnection` stands between that server and the application.
"""

from starlette.types import Receive, Scope, Send

from chatserver.connection.base import (
    MESSAGE_OVERHEAD,
    NO_MEMBERS,
    Connection,
    Source,
    Wire,
    Write,
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
]

#: The extension in the scope by which a server of ours hands over the `Connection`.
CONNECTION = "chatserver.connection"


def connect(
    scope: Scope, receive: Receive, send: Send, limits: Limits
) -> tuple[Connection, Receive, Send]:
    """The connection that a server has handed to the application, and how to talk ASGI on it.

    Args:
        scope: Of ASGI, as are `receive` and `send`.
        receive: The server's, with the middleware around it.
        send: The server's, with the middleware around it.
        limits: What the client may take.
    """
    connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    if connection is None:
        queued = QueuedConnection(receive, send, limits)
        return queued, queued.receive, queued.send
    connection.limits = limits
    return connection, receive, send
