"""What a class asks a client for, as security schemes.

It is found in the code, so that a class has to declare nothing: a call of `identify`, and FastAPI's
security objects among the dependencies.
"""

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from chatserver.asyncapi.schemas import free_name, valid_name
from chatserver.endpoints import Endpoint, identify
from chatserver.endpoints.dependencies import Dependency

__all__ = ["Security"]

Scheme: TypeAlias = dict[str, Any]

#: The places where a token may stand, as `chatserver.auth.credentials` reads them, in its order.
TOKEN: dict[str, Scheme] = {
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


class Security:
    """The security schemes of a document.

    Args:
        classes: The endpoint classes.
    """

    def __init__(self, classes: Iterable[type[Endpoint]]) -> None:
        #: By name: what stands in `components.securitySchemes`.
        self.components: dict[str, Scheme] = {}
        self._by_class = {cls: list(self._describe(cls)) for cls in dict.fromkeys(classes)}

    def of(self, cls: type[Endpoint]) -> list[Scheme]:
        """The schemes of a class; one of them is enough."""
        return self._by_class[cls]

    def _describe(self, cls: type[Endpoint]) -> Iterator[Scheme]:
        if _asks_for_token(cls):
            for name, scheme in TOKEN.items():
                yield self._reference(name, scheme)
        for dependency in _all_dependencies(cls.dependencies.values()):
            if (model := _model_of(dependency)) is not None:
                scheme = _scheme(model)
                if dependency.scopes and scheme["type"] in ("oauth2", "openIdConnect"):
                    # Scopes are a part of the scheme, and of this class alone.
                    yield {**scheme, "scopes": list(dependency.scopes)}
                else:
                    yield self._reference(_name_of(dependency), scheme)

    def _reference(self, name: str, scheme: Scheme) -> Scheme:
        if self.components.get(name) != scheme:
            name = free_name(name, self.components)
            self.components[name] = scheme
        return {"$ref": f"#/components/securitySchemes/{name}"}


def _all_dependencies(found: Iterable[Any]) -> Iterator[Dependency]:
    """Dependencies, and what they depend on."""
    for each in found:
        if isinstance(each, Dependency):
            yield each
            yield from _all_dependencies(each.arguments.values())


# FastAPI's security objects, known by their attributes


def _model_of(dependency: Dependency) -> Any:
    """What a security object of FastAPI says of itself in OpenAPI; None for another dependency."""
    model = getattr(dependency.call, "model", None)
    return model if hasattr(dependency.call, "scheme_name") and hasattr(model, "type_") else None


def _name_of(dependency: Dependency) -> str:
    return valid_name(getattr(dependency.call, "scheme_name", "")) or "scheme"


def _scheme(model: Any) -> Scheme:
    """A scheme of OpenAPI as one of AsyncAPI."""
    scheme: Scheme = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    if scheme["type"] == "apiKey":
        return {**scheme, "type": "httpApiKey"}
    urls = list(_urls(scheme))
    if not all(urlsplit(url).scheme for url in urls):
        # AsyncAPI wants absolute URLs, and the server's is not known.
        places = ", ".join(f"`{url}`" for url in urls)
        told = (scheme.get("description", ""), f"A token from {places}.")
        return {"type": "http", "scheme": "bearer", "description": " ".join(told).strip()}
    for flow in scheme.get("flows", {}).values():
        flow["availableScopes"] = flow.pop("scopes", {})
    return scheme


def _urls(scheme: Scheme) -> Iterator[str]:
    for each in (scheme, *scheme.get("flows", {}).values()):
        yield from (value for name, value in each.items() if name.endswith("Url"))


# Tokens, which `identify` finds


def _asks_for_token(cls: type[Endpoint]) -> bool:
    """Whether `authenticate`, what it calls of the class, or a dependency calls `identify`."""
    if "identify" in _names_called(cls, "authenticate"):
        return True
    return any(map(_identifies, _all_dependencies(cls.dependencies.values())))


def _identifies(dependency: Dependency) -> bool:
    if dependency.call is identify:
        return True
    function = inspect.unwrap(dependency.call)
    if not inspect.isfunction(function):
        return False
    names = _names(function.__code__)
    return any(function.__globals__.get(name) is identify for name in names)


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
        if inspect.isfunction(function):
            names = _names(function.__code__)
            found |= names
            if "super" not in names:
                break  # it replaces those of the bases
    return found


def _names(code: CodeType) -> set[str]:
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names}.union(*inner)
