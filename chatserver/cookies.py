"""A request's cookies, limited in bytes and read in linear time.

    check_cookies(scope, limits.max_cookie_size)     # before any cookie is read
    cookie(scope, "session")                         # its value; None without that cookie

Starlette's `Request.cookies` gives the same values. But it removes quotes with `http.cookies`,
whose time grows with the square of a value's length before Python 3.11.10 and 3.12.6: 60 KB of
escaped quotes take seconds.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from chatserver.errors import InvalidHandshake

__all__ = ["check_cookies", "cookie"]

# A character as its octal number (`\073`), or escaped as itself (`\"`): RFC 2109, section 4.1,
# which `http.cookies` follows when it quotes a value.
_ESCAPED = re.compile(r"\\(?:([0-3][0-7][0-7])|(.))")


def check_cookies(scope: Mapping[str, Any], limit: int) -> None:
    """Refuse a request whose `Cookie` headers together have more than `limit` bytes.

    Raises:
        InvalidHandshake: HTTP 431, or 4431; RFC 6585, section 5.
    """
    size = sum(map(len, _headers(scope)))
    if size > limit:
        raise InvalidHandshake(
            f"cookies of {size} bytes exceed the limit of {limit}", status=431, code=4431
        )


def cookie(scope: Mapping[str, Any], name: str) -> str | None:
    """The value of a cookie without its quotes; the last one if there are several.

    A text without "=" is the value of the cookie without a name, as in browsers.
    """
    found = None
    for header in _headers(scope):
        for pair in header.decode("latin-1").split(";"):
            key, mark, value = pair.partition("=")
            key, value = (key.strip(), value.strip()) if mark else ("", key.strip())
            if key == name and (key or value):
                found = value
    return None if found is None else _without_quotes(found)


def _headers(scope: Mapping[str, Any]) -> Iterator[bytes]:
    return (value for name, value in scope["headers"] if name == b"cookie")


def _without_quotes(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return _ESCAPED.sub(_character, value[1:-1])


def _character(escaped: re.Match[str]) -> str:
    octal, itself = escaped.groups()
    return chr(int(octal, 8)) if octal else str(itself)
