"""Real-time channels over WebSocket, as endpoint classes for Starlette.

    from chatserver import Endpoint, FromPath
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    class Room(Endpoint):
        encoding = "text"
        room: FromPath[str]
        channels = ("room:{room}",)

        async def on_receive(self, websocket, data):
            await self.publish(data)

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)])

The map, in the order in which a message passes the packages:

- `server/` takes it off the wire, within limits: protocol classes for uvicorn
- `endpoints/` decode it, authenticate the client, and call your code
- `hub/` publishes, and writes publications to the members of their channel
- `brokers/` number publications, and keep history and presence
- `connection/` is one client's bounded buffer, whatever the server
- `wire/` is the protocol's bytes: frames, their parser, compression

and around them `auth/` (tokens), `limits` (every guard), `rules` (what is kept of which channels),
`errors` (exceptions, close codes), `logs` (redaction of secrets), `settings`, `configuration`
(gives an application its settings), `asyncapi/` (describes an application's endpoints), `tryit` (a
page made from that), `health` (routes for probes), `pages` (what pages have in common), `app` (the
ready application), `publisher` (for programs that are no server), `loading` (finds an application
by its name), `cli`, `testing`.

The words: an *endpoint* is a class, with one instance per connection. A *channel* is a named
topic. A *publication* is one message in a channel. A *position* (offset, epoch) is a place in a
channel's stream; *history* is the retained tail of that stream; *recovery* gives a client that
comes back exactly what it missed. *Presence* is which clients are in a channel now. A *slow
consumer* is a connection whose outgoing buffer is full: it is closed, never waited for.
"""

from typing import TYPE_CHECKING, Any

from chatserver.auth import OPEN_MODE, Identity
from chatserver.brokers import MemoryBroker, broker_from_url
from chatserver.configuration import configure
from chatserver.endpoints import (
    Ack,
    BroadcastEndpoint,
    Depends,
    EchoEndpoint,
    Endpoint,
    ErrorMessage,
    FromCookie,
    FromHeader,
    FromPath,
    FromQuery,
    ItemEndpoint,
    Message,
    hub_of,
    identify,
    lifespan,
    on_message,
)
from chatserver.errors import BrokerUnavailable, InvalidToken
from chatserver.health import health_routes
from chatserver.hub import Hub
from chatserver.limits import Limits
from chatserver.publication import Position, Publication
from chatserver.publisher import Publisher

if TYPE_CHECKING:
    from chatserver.auth import Verifier
    from chatserver.tryit import docs_routes

__all__ = [
    "OPEN_MODE",
    "Ack",
    "BroadcastEndpoint",
    "BrokerUnavailable",
    "Depends",
    "EchoEndpoint",
    "Endpoint",
    "ErrorMessage",
    "FromCookie",
    "FromHeader",
    "FromPath",
    "FromQuery",
    "Hub",
    "Identity",
    "InvalidToken",
    "ItemEndpoint",
    "Limits",
    "MemoryBroker",
    "Message",
    "Position",
    "Publication",
    "Publisher",
    "Verifier",
    "broker_from_url",
    "configure",
    "docs_routes",
    "health_routes",
    "hub_of",
    "identify",
    "lifespan",
    "on_message",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Verifier":  # imported on first use, because that takes a while
        from chatserver.auth import Verifier

        return Verifier
    if name == "docs_routes":  # so that only those who use it import it
        from chatserver.tryit import docs_routes

        return docs_routes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
