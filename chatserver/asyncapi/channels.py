"""Routes to endpoints as channels and operations of AsyncAPI."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from starlette.routing import Host

from chatserver.asyncapi.docstrings import docstring_of
from chatserver.asyncapi.messages import Messages
from chatserver.asyncapi.operations import MessageType, Operation, operations_of
from chatserver.asyncapi.parameters import (
    address_parameters,
    handshake_parameters,
    websocket_binding,
)
from chatserver.asyncapi.schemas import free_name, valid_name
from chatserver.asyncapi.security import Security
from chatserver.endpoints import Endpoint
from chatserver.endpoints.routes import EndpointRoute

__all__ = ["Channel", "channel_objects", "channels_of", "operation_objects"]

_REFUSED = {
    "http": "A handshake is refused with the HTTP status of the reason.",
    "close": "A handshake is refused by a close with 4000 and the HTTP status of the reason.",
    "policy": "A handshake is refused with the HTTP status 403.",
}


class Channel(NamedTuple):
    """A route to an endpoint class, the key of its channel, and its operations."""

    key: str
    found: EndpointRoute
    operations: tuple[Operation, ...]

    @property
    def messages(self) -> Iterator[MessageType]:
        """The types of its messages, which may be repeated."""
        for operation in self.operations:
            yield from operation.messages
            yield from operation.replies

    @property
    def correlated(self) -> Iterator[Any]:
        """The types of those that may have an id: messages of clients, and their answers."""
        for operation in self.operations:
            if operation.carries_id:
                yield from (each.type for each in (*operation.messages, *operation.replies))

    @property
    def received(self) -> Iterator[MessageType]:
        """The types of those that clients send."""
        for operation in self.operations:
            if operation.action == "receive":
                yield from operation.messages


def channels_of(routes: Iterable[EndpointRoute]) -> list[Channel]:
    """A channel for each route. Its key is the route's name, with the path where names collide."""
    found = list(routes)
    names = Counter(each.route.name for each in found)
    channels: dict[str, Channel] = {}
    for each in found:
        name = each.route.name
        wanted = valid_name(name if names[name] == 1 else f"{name}{each.path}")
        key = free_name(wanted or valid_name(each.path) or "channel", channels)
        channels[key] = Channel(key, each, operations_of(each.endpoint))
    return list(channels.values())


def channel_objects(channels: Sequence[Channel], messages: Messages) -> dict[str, Any]:
    """The Channels Object."""
    return {channel.key: _channel(channel, messages) for channel in channels}


def _channel(channel: Channel, messages: Messages) -> dict[str, Any]:
    found = channel.found
    cls: type[Endpoint] = found.endpoint
    docstring = docstring_of(cls, Endpoint)
    told = [docstring.description, *_facts(channel)]
    keys = dict.fromkeys(messages.key_of(each) for each in channel.messages)
    # The parameters of a host are not in the address.
    convertors = {n: each for n, each in found.convertors.items() if f"{{{n}}}" in found.path}
    parameters = handshake_parameters(cls, convertors)
    described: dict[str, Any] = {
        "address": found.path,
        "title": cls.__name__,
        "summary": docstring.summary,
        "description": "\n\n".join(filter(None, told)),
        "parameters": address_parameters(convertors, parameters, docstring.attributes),
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in keys},
        "bindings": {"ws": websocket_binding(parameters, docstring.attributes)},
        "x-subprotocols": list(cls.subprotocols),
        "x-recover": cls.recover,
    }
    return {name: value for name, value in described.items() if value}


def _facts(channel: Channel) -> Iterator[str]:
    """What a client should know besides, a paragraph each."""
    cls: type[Endpoint] = channel.found.endpoint
    for mount in channel.found.mounts:
        if isinstance(mount, Host):
            yield f"At the host `{mount.host}`."
    if cls.channels:
        names = ", ".join(f"`{name}`" for name in cls.channels)
        yield f"While connected, a client gets what is published to {names}."
    if cls.history and cls.welcome is Endpoint.welcome:
        yield f"The {cls.history} newest publications, as far as there are, come first."
    if cls.recover:
        yield (
            "Publications come in envelopes. A client that comes back says in the query parameter "
            "`since` where it stands, and gets what it missed."
        )
    if cls.presence:
        yield "Others can see that a client is connected."
    if cls.subprotocols:
        yield "Subprotocols: " + ", ".join(f"`{name}`" for name in cls.subprotocols) + "."
    yield _REFUSED[cls.reject_as]


def operation_objects(
    channels: Sequence[Channel], messages: Messages, security: Security
) -> dict[str, Any]:
    """The Operations Object."""
    found: dict[str, Any] = {}
    for channel in channels:
        for operation in channel.operations:
            key = free_name(f"{channel.key}_{operation.name}", found)
            found[key] = _operation(channel, operation, messages)
            if schemes := security.of(channel.found.endpoint):
                found[key]["security"] = schemes
    return found


def _operation(channel: Channel, operation: Operation, messages: Messages) -> dict[str, Any]:
    itself = {"$ref": f"#/channels/{channel.key}"}

    def references(types: Iterable[MessageType]) -> list[dict[str, str]]:
        keys = dict.fromkeys(messages.key_of(each) for each in types)
        return [{"$ref": f"{itself['$ref']}/messages/{key}"} for key in keys]

    described: dict[str, Any] = {
        "action": operation.action,
        "channel": itself,
        **operation.docstring.fields(),
        "messages": references(operation.messages),
    }
    if operation.replies:
        described["reply"] = {"channel": itself, "messages": references(operation.replies)}
    return described
