"""The document: what an application's endpoints are, put together."""

from typing import Any, Required, TypedDict
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette

from chatserver.asyncapi.channels import channel_objects, channels_of, operation_objects
from chatserver.asyncapi.messages import Messages
from chatserver.asyncapi.schemas import Schemas
from chatserver.asyncapi.security import Security
from chatserver.endpoints.routes import check_routes, endpoint_routes
from chatserver.errors import CLOSE_CODES

__all__ = ["describe", "server_object"]

VERSION = "3.1.0"


class Contact(TypedDict, total=False):
    """A Contact Object."""

    name: str
    url: str
    email: str


class License(TypedDict, total=False):
    """A License Object."""

    name: Required[str]
    url: str


class ExternalDocs(TypedDict, total=False):
    """An External Documentation Object."""

    url: Required[str]
    description: str


class Tag(TypedDict, total=False):
    """A Tag Object."""

    name: Required[str]
    description: str
    externalDocs: ExternalDocs


class Info(TypedDict, total=False):
    """An Info Object."""

    title: str
    version: str
    description: str
    termsOfService: str
    contact: Contact
    license: License
    tags: list[Tag]
    externalDocs: ExternalDocs


#: The attributes that FastAPI has for fields of an Info Object.
_OF_FASTAPI = {
    "title": "title",
    "version": "version",
    "description": "description",
    "termsOfService": "terms_of_service",
    "contact": "contact",
    "license": "license_info",
}
_CLOSE_CODES = "\n".join(
    [
        "### Close codes",
        "",
        "| code | meaning | come back? |",
        "| --- | --- | --- |",
        *(
            f"| {row.code} | {row.meaning} | {'yes' if row.retry else 'no'} |"
            for row in CLOSE_CODES.values()
        ),
    ]
)


def describe(app: Starlette, *, server: str | None = None) -> dict[str, Any]:
    """Describe the endpoints of an application in AsyncAPI 3.1.

    Each route to an endpoint class is a channel, wherever it is mounted. Title, version and the
    like are taken from a FastAPI application, and from `app.state.asyncapi_info`, which wins: the
    fields of an Info Object.

    Args:
        app: The application. What is added to it later is not in the document.
        server: The URL at which clients reach it, such as "wss://chat.example.org/base"; the
            document names no server if left out.

    Returns:
        The document, made of what JSON can hold.

    Raises:
        TypeError: `app.state.asyncapi_info` has other fields or types, or a route lacks what its
            endpoint needs, such as a `FromPath`.
        ValueError: The URL of the server has another scheme, or no host.
    """
    check_routes(app.routes)
    channels = channels_of(endpoint_routes(app.routes))
    types = [each for channel in channels for each in channel.messages]
    received = {each.type for channel in channels for each in channel.received}
    schemas = Schemas([each.type for each in types], received)
    correlated = {kind for channel in channels for kind in channel.correlated}
    messages = Messages(types, schemas, correlated)
    security = Security(channel.found.endpoint for channel in channels)
    components = {
        "messages": messages.components,
        "schemas": schemas.components,
        "securitySchemes": security.components,
        "correlationIds": messages.correlation_ids,
    }
    document: dict[str, Any] = {"asyncapi": VERSION, "info": _info(app)}
    if server is not None:
        document["servers"] = server_object(server)
    document |= {
        "defaultContentType": "application/json",
        "channels": channel_objects(channels, messages),
        "operations": operation_objects(channels, messages, security),
        "components": {name: found for name, found in components.items() if found},
        "x-close-codes": [row._asdict() for row in CLOSE_CODES.values()],
    }
    # Only what JSON can hold: a default may be infinite, or of a class of its own.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    return plain


def server_object(url: str) -> dict[str, Any]:
    """The Servers Object for a URL.

    Raises:
        ValueError: It has another scheme than those of WebSocket and HTTP, or no host.
    """
    parts = urlsplit(url)
    protocol = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}.get(parts.scheme)
    if protocol is None or not parts.netloc:
        raise ValueError(f"expected the URL of a server as in wss://example.org, got {url!r}")
    found = {"host": parts.netloc, "protocol": protocol}
    if path := parts.path.rstrip("/"):
        found["pathname"] = path
    return {"server": found}


def _info(app: Starlette) -> dict[str, Any]:
    theirs = {field: getattr(app, name, None) for field, name in _OF_FASTAPI.items()}
    given = {field: value for field, value in theirs.items() if value}
    # Without the fields that OpenAPI has and AsyncAPI has not, such as a license's identifier.
    found: dict[str, Any] = {**_fitting(given, "the application's info"), **_own_info(app)}
    found["title"] = found.get("title") or "WebSocket endpoints"
    found["version"] = found.get("version") or "0.1.0"
    found["description"] = "\n\n".join(filter(None, (found.get("description"), _CLOSE_CODES)))
    return {field: value for field, value in found.items() if value}


def _own_info(app: Starlette) -> dict[str, Any]:
    own: dict[str, Any] = getattr(app.state, "asyncapi_info", {})
    _fitting(own, "app.state.asyncapi_info")
    known = Info.__annotations__
    if unknown := own.keys() - known.keys():
        raise TypeError(
            f"app.state.asyncapi_info has {', '.join(sorted(unknown))}; "
            f"it may have {', '.join(known)}"
        )
    return own


def _fitting(info: Any, where: str) -> Info:
    """What an Info Object has of this.

    Raises:
        TypeError: It has other types.
    """
    try:
        return msgspec.convert(info, Info)
    except msgspec.ValidationError as error:
        raise TypeError(f"{where}: {error}") from None
