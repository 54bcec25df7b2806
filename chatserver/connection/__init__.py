"""One client's connection: what the hub writes to, and the endpoint reads from.

`connect` makes the right kind for the server below: a `DirectConnection` on one of ours, a
`QueuedConnection` on every other.
"""

from starlette.types import Receive, Scope, Send

from chatserver.connection.base import MESSAGE_OVERHEAD, NO_CHANNELS, Connection, Format
from chatserver.connection.direct import WRITER, DirectConnection
from chatserver.connection.queued import QueuedConnection
from chatserver.limits import Limits
from chatserver.publication import Encoder

__all__ = [
    "MESSAGE_OVERHEAD",
    "NO_CHANNELS",
    "Connection",
    "DirectConnection",
    "Format",
    "QueuedConnection",
    "connect",
]


def connect(
    scope: Scope, receive: Receive, send: Send, encoder: Encoder, limits: Limits
) -> Connection:
    """The connection that a server has handed to the application.

    Args:
        scope: Of ASGI, as are `receive` and `send`.
        receive: The server's.
        send: The server's.
        encoder: Turns a publication into what this client gets.
        limits: What it may take.
    """
    writer = scope.get("extensions", {}).get(WRITER)
    if writer is not None:
        return DirectConnection(writer, receive, send, encoder, limits)
    return QueuedConnection(receive, send, encoder, limits)
