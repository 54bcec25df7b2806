"""The credentials of a handshake: header, cookie, subprotocol, query.

    for found in credentials(websocket):
        identity = await verifier.verify(found.value)   # or InvalidToken

Other software uses a cookie `session`, too, so the first credential need not be the token: callers
try each in order.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import msgspec
from starlette.requests import HTTPConnection

from chatserver.cookies import cookie

__all__ = ["MAX_TOKEN_LENGTH", "Credential", "Source", "credential", "credentials"]

MAX_TOKEN_LENGTH = 8192  # characters; most servers allow as many in a cookie or header

Source = Literal["authorization", "cookie", "subprotocol", "query"]


class _Header(msgspec.Struct):
    """The header of a token (RFC 7515, section 4.1.1): what tells a token from another text."""

    alg: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A token as the client sent it, not verified; its `repr` does not show it."""

    value: str = field(repr=False)
    source: Source

    @property
    def looks_like_token(self) -> bool:
        """Whether it begins with a header that names an algorithm, as a JSON Web Token does.

        The cookie of Starlette's `SessionMiddleware` doesn't, though it is JSON in base64 with
        two dots. Whether the token is valid is not checked.
        """
        header, dot, _ = self.value[:MAX_TOKEN_LENGTH].partition(".")
        try:
            # A token has no "=" at the end; the standard library needs it, and ignores too many.
            msgspec.json.decode(base64.urlsafe_b64decode(header + "=="), type=_Header)
        except (ValueError, RecursionError, msgspec.DecodeError):
            return False
        return bool(dot)


def credentials(connection: HTTPConnection) -> tuple[Credential, ...]:
    """The tokens that are not empty, in order: header, cookie, subprotocol, query.

    The query comes last, because URLs are kept in browser histories and in other people's logs.
    """
    scope = connection.scope
    # Most requests have none. What Starlette parses would be kept as long as the connection.
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    candidates: tuple[tuple[Source, str], ...] = (
        ("authorization", _bearer(headers[0].decode("latin-1")) if headers else ""),
        ("cookie", cookie(scope, "session") or ""),
        ("subprotocol", _after_marker(scope.get("subprotocols", ()))),
        ("query", connection.query_params.get("token", "") if scope["query_string"] else ""),
    )
    return tuple(Credential(value, source) for source, value in candidates if value)


def credential(connection: HTTPConnection) -> Credential | None:
    """The first of `credentials`; None if there is none."""
    return next(iter(credentials(connection)), None)


def _bearer(header: str) -> str:
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _after_marker(subprotocols: Sequence[str]) -> str:
    """The subprotocol after `bearer`: browsers can't set a header, but can offer subprotocols."""
    offered = pairwise(subprotocols)
    return next((value for marker, value in offered if marker == "bearer"), "")
