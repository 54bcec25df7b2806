"""Same origin by default: which pages may connect from a browser (RFC 6454, RFC 6455 10.2).

A browser sends cookies with a WebSocket handshake to any site, from any page, and CORS doesn't
apply. Only the header `Origin` tells a foreign page from one of the site's own.
"""

import re
from collections.abc import Collection

from starlette.types import Scope

from chatserver.errors import InvalidHandshake

__all__ = ["check_origin", "check_origins"]

#: What may be allowed, in lower case; the setting has the same.
ALLOWED = re.compile(r"\*|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
#: Characters of a refused origin that are shown.
MAX_SHOWN = 80
_DEFAULT_PORT = {"http": 80, "https": 443}
_PAGE_SCHEME = {"ws": "http", "wss": "https", "http": "http", "https": "https"}


def check_origins(allowed: Collection[str], name: str) -> None:
    """Refuse what no browser sends as an origin: it would allow nothing.

    Args:
        allowed: The allowed origins of a class.
        name: Where they were given, for the error sentence.

    Raises:
        TypeError: One is no origin, or there is a single text in place of a collection.
    """
    _check_collection(allowed, name)
    for origin in allowed:
        if not isinstance(origin, str) or not ALLOWED.fullmatch(origin.lower()):
            raise TypeError(
                f"{name} must be origins such as 'https://example.org:8443', or '*'; got {origin!r}"
            )


def _check_collection(allowed: Collection[str], name: str) -> None:
    """Refuse a single text in place of a collection of origins.

    `"https://e" in "https://example.com"` is true in Python: parts of an origin would be allowed.

    Args:
        allowed: The value given as the allowed origins.
        name: Where it was given, for the error sentence.

    Raises:
        TypeError: It is a str, or bytes.
    """
    if isinstance(allowed, str | bytes):
        raise TypeError(
            f"{name} must be a sequence of origins such as ({allowed!r},), "
            f"not a {type(allowed).__name__}"
        )


def check_origin(scope: Scope, allowed: Collection[str]) -> None:
    """Refuse a handshake from a foreign page.

    A handshake without the header passes, because it doesn't come from a browser. Otherwise
    scheme, host and port must be those with which the client addressed this server, or be among
    `allowed`. The scheme is the server's; behind a proxy that ends TLS the server takes it from
    `X-Forwarded-Proto`, if it trusts that proxy.

    Args:
        scope: The handshake's ASGI scope.
        allowed: Other origins, such as "https://example.com:8443"; "*" allows all.

    Raises:
        InvalidHandshake: HTTP 403, or 4403.
        TypeError: `allowed` is a single text, a mistake of the application.
    """
    _check_collection(allowed, "app.state.allowed_origins")
    origins = _header(scope, b"origin")
    if not origins or "*" in allowed:
        return
    if len(origins) == 1 and (origins[0] in allowed or _matches(origins[0], scope, allowed)):
        return
    shown = ", ".join(origins)[:MAX_SHOWN]
    raise InvalidHandshake(f"the origin {shown!r} may not connect", status=403, code=4403)


def _matches(origin: str, scope: Scope, allowed: Collection[str]) -> bool:
    parsed = _parse(origin)
    if parsed is None:
        return False
    hosts = _header(scope, b"host")
    # The ASGI specification lets a server leave the scheme out.
    scheme = _PAGE_SCHEME.get(scope.get("scheme", "ws"))
    own = f"{scheme}://{hosts[0]}" if len(hosts) == 1 else ""
    return parsed == _parse(own) or any(parsed == _parse(other) for other in allowed)


def _parse(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for a text that no browser sends as an origin."""
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    return scheme, host, int(port) if port else _DEFAULT_PORT[scheme]


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
