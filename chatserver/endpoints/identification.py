"""Identifies a client for a dependency as `self.identify` does for its endpoint: `identify`."""

import weakref
from typing import Any

from starlette.requests import HTTPConnection

from chatserver.auth import Identity

__all__ = ["identify", "note_endpoint"]

#: The key in a handshake's scope for a reference to the endpoint that resolves dependencies.
ENDPOINT = "chatserver.endpoint"


def note_endpoint(endpoint: Any) -> None:
    """Let `identify` find the endpoint. Only a weak reference, or the scope would be a cycle."""
    endpoint.scope[ENDPOINT] = weakref.ref(endpoint)


async def identify(connection: HTTPConnection) -> Identity:
    """Identify the client by its token in a dependency, as `Endpoint.identify` does.

    It is a dependency itself: `user: Annotated[Identity, Depends(identify)]`. The token counts for
    the endpoint's channels and the connection's end, whatever the dependency makes of it.

    Raises:
        InvalidToken, KeysUnavailable, VerifierMissing: As for `Endpoint.identify`.
        RuntimeError: There is no endpoint: in an HTTP route, in a dependency of FastAPI's routes,
            or when the connection has ended.
    """
    found = connection.scope.get(ENDPOINT)
    endpoint = found and found()
    if endpoint is None:
        raise RuntimeError(
            "identify() is for dependencies of endpoint classes: make what calls it an attribute "
            "of the class, not a dependency of a route, a router or an application"
        )
    identity: Identity = await endpoint.identify(connection)
    return identity
