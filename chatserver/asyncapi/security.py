"""The places where a token may stand, as security schemes, and which class asks for a token."""

import inspect
from types import CodeType, FunctionType
from typing import Any

from chatserver.endpoints import Endpoint

__all__ = ["SCHEMES", "asks_for_token"]

#: As `chatserver.auth.credentials` reads them, in its order.
SCHEMES: dict[str, dict[str, Any]] = {
    "authorization": {
        "type": "http",
        "scheme": "bearer",
        "description": "The header `Authorization: Bearer <token>`.",
    },
    "cookie": {
        "type": "httpApiKey",
        "in": "cookie",
        "name": "session",
        "description": "The cookie `session`; a browser sends it by itself.",
    },
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": (
            "The subprotocols `bearer` and the token, in this order: in a browser "
            '`new WebSocket(url, ["bearer", token])`. The server selects `bearer`.'
        ),
    },
    "query": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": (
            "The query parameter `token`; the last choice, because others may log URLs."
        ),
    },
}


def asks_for_token(cls: type[Endpoint]) -> bool:
    """Whether a class calls `identify` in `authenticate`, or in what that calls of the class.

    Found in the code, so that a class has to declare nothing. It is for documentation only.
    """
    return "identify" in _names_called(cls, "authenticate")


def _names_called(cls: type[Endpoint], name: str) -> set[str]:
    """The names in a method, and in those methods of the class and its bases that it names."""
    seen: set[str] = set()
    ahead = {name}
    while ahead:
        seen |= ahead
        ahead = {found for each in ahead for found in _names_in(cls, each)} - seen
    return seen


def _names_in(cls: type[Endpoint], method: str) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__[: cls.__mro__.index(Endpoint)]:
        function = inspect.unwrap(vars(base).get(method, str))
        if isinstance(function, FunctionType):
            names = set(_names(function.__code__))
            found |= names
            if "super" not in names:
                break  # it replaces those of the bases
    return found


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names}.union(*inner)
