"""What a handshake says, read and checked as the class declares it; and what its answer says.

`lifecycle` calls these in order, and accepts or refuses.
"""

import inspect
from collections.abc import Collection
from typing import Any

from starlette.types import Message as Event
from starlette.websockets import WebSocket

from chatserver.auth import Identity
from chatserver.endpoints.application import overrides_of, setting_of
from chatserver.endpoints.channels import fill_in
from chatserver.endpoints.identification import note_endpoint
from chatserver.endpoints.membership import check_may
from chatserver.endpoints.origin import check_origin
from chatserver.endpoints.recovery import positions
from chatserver.endpoints.resolution import Opened, Resolution
from chatserver.endpoints.served import Served

__all__ = ["read_handshake", "take_user", "tells_status", "with_subprotocol"]


async def read_handshake(endpoint: Served, websocket: WebSocket) -> None:
    """Check the origin, and give the endpoint its parameters, channels and dependencies.

    Raises:
        InvalidHandshake: The origin may not connect, or a parameter can't be used.
        Exception: What a dependency raises.
    """
    check_origin(endpoint.scope, _allowed_origins(endpoint))
    for parameter in endpoint.parameters.values():
        setattr(endpoint, parameter.name, parameter.read(websocket))
    endpoint._channels = fill_in(endpoint._templates, vars(endpoint))
    if endpoint.recover:
        most = endpoint.connection.limits.max_channels
        endpoint._positions = positions(websocket, most)
    if endpoint.dependencies:
        await _resolve(endpoint, websocket)


def _allowed_origins(endpoint: Served) -> Collection[str]:
    if endpoint.allowed_origins is not None:
        return endpoint.allowed_origins
    allowed: Collection[str] = setting_of(endpoint.scope, "allowed_origins", ())
    return allowed


async def _resolve(endpoint: Served, websocket: WebSocket) -> None:
    """Give the endpoint the values of its dependencies."""
    note_endpoint(endpoint)
    opened: list[Opened] = []
    endpoint._opened = opened
    resolution = Resolution(websocket, overrides_of(endpoint.scope), opened)
    for name, dependency in endpoint.dependencies.items():
        setattr(endpoint, name, await resolution.value(dependency))


def take_user(endpoint: Served, user: Any) -> None:
    """Give the endpoint its user, and check that the user may join the channels.

    Args:
        endpoint: The connection's.
        user: What `authenticate` returned; None leaves the user as it is.

    Raises:
        InvalidToken: The token doesn't open a channel.
        TypeError: `authenticate` has returned an awaitable.
    """
    if user is not None:
        endpoint.user = user
    user = endpoint.user
    if user is not None and inspect.isawaitable(user):
        if inspect.iscoroutine(user):
            user.close()  # so that Python doesn't warn of it, too
        name = type(endpoint).__name__
        raise TypeError(f"{name}.authenticate() returned an awaitable: 'await' is missing")
    if isinstance(user, Identity):
        endpoint.identity = user
    for channel in endpoint._channels:
        check_may(endpoint, channel)


def with_subprotocol(endpoint: Served, accept: Event) -> Event:
    """An accept with the subprotocol that is selected of those that the client offers."""
    offered = endpoint.scope.get("subprotocols")
    if not offered or accept.get("subprotocol"):
        return accept
    # A browser that offered subprotocols fails the connection unless one is echoed. Of a
    # token behind the marker "bearer", only the marker is echoed.
    known = ("bearer",) if "bearer" in offered else endpoint.subprotocols
    return {**accept, "subprotocol": next((name for name in offered if name in known), None)}


def tells_status(endpoint: Served, status: int) -> bool:
    """Whether a refusal before the accept is sent with its own status."""
    if "websocket.http.response" not in endpoint.scope.get("extensions", {}):
        return False
    return endpoint.reject_as != "policy" or status >= 500
