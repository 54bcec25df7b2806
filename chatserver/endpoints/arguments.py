"""What the parameters of a dependency are given: values of the handshake.

    async def current_user(websocket: WebSocket, token: FromHeader[str], page: int = 1) -> User: ...

- `WebSocket` and `HTTPConnection` get the handshake itself, `Request` a request made of it.
- `FromPath`, `FromQuery`, `FromHeader`, `FromCookie` are read as in an endpoint class, and so are
  FastAPI's `Path`, `Query`, `Header` and `Cookie`, with their alias and constraints.
- A parameter without a marker is a path parameter if the route has one of its name, else a query
  parameter.
- FastAPI's `SecurityScopes` has the scopes of the `Security` that led there.

FastAPI is not imported: its objects are known by their attributes.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, get_args

import msgspec
from starlette.requests import HTTPConnection, Request

from chatserver.endpoints.params import (
    COOKIE,
    HEADER,
    MARKERS,
    PATH,
    QUERY,
    REQUIRED,
    Parameter,
    Source,
    make_parameter,
    source_of,
    unaliased,
)

__all__ = [
    "Argument",
    "Given",
    "Unmarked",
    "check_attribute",
    "check_marks",
    "make_argument",
    "split",
]

#: The sources of FastAPI's markers, by the value of their `in_`.
SOURCES: Mapping[str, Source] = {"path": PATH, "query": QUERY, "header": HEADER, "cookie": COOKIE}
#: The constraints of pydantic's metadata that msgspec has, too.
CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
#: What marks pydantic's metadata that msgspec can't check: validators, digits, predicates.
UNKNOWN = ("__get_pydantic_core_schema__", "max_digits", "decimal_places", "func")
SECURITY_SCOPES = ("fastapi.security.oauth2", "SecurityScopes")
_NOT_GIVEN: Any = inspect.Parameter.empty


class Given(NamedTuple):
    """What is made of the handshake itself.

    Attributes:
        make: Makes it.
        scoped: Whether it holds the scopes of a `Security`.
    """

    make: Callable[[HTTPConnection], Any]
    scoped: bool = False

    def read(self, connection: HTTPConnection) -> Any:
        """The value in this handshake."""
        return self.make(connection)


class Unmarked(NamedTuple):
    """A parameter without a marker: of the path if the route has it, else of the query.

    Attributes:
        query: The parameter as one of the query.
    """

    query: Parameter

    def read(self, connection: HTTPConnection) -> Any:
        """The value in this handshake.

        Raises:
            InvalidHandshake: As for `Parameter`.
        """
        in_path = self.query.name in connection.path_params
        return (self.query._replace(source=PATH) if in_path else self.query).read(connection)


Argument: TypeAlias = Parameter | Unmarked | Given


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and its metadata: of `Annotated[T, x]` they are `T` and `(x,)`."""
    annotation = unaliased(annotation)
    metadata = getattr(annotation, "__metadata__", ())
    if type(metadata) is not tuple or not metadata:
        return annotation, ()
    return annotation.__origin__, metadata


def check_marks(where: str, annotation: Any) -> None:
    """Refuse a mark within another type, where it would say nothing.

    Args:
        where: What is annotated, for the error.
        annotation: The annotation, resolved.

    Raises:
        TypeError: There is one, as in `FromQuery[int] | None`.
    """
    for inner in get_args(unaliased(annotation)):
        if any(map(_is_mark, split(inner)[1])):
            raise TypeError(
                f"{where}: a mark such as FromQuery or Depends must be outermost; write "
                "'FromQuery[int | None]', neither 'FromQuery[int] | None' nor "
                "'Final[FromQuery[int]]'"
            )
        check_marks(where, inner)


def _is_mark(value: object) -> bool:
    is_dependency = isinstance(getattr(value, "use_cache", None), bool)
    return type(value) is Source or is_dependency or _source_of_field(value) is not None


def _source_of_field(value: object) -> Source | None:
    """The source of FastAPI's `Path`, `Query`, `Header` or `Cookie`."""
    in_ = getattr(value, "in_", None) if _is_field(value) else None
    return None if in_ is None else SOURCES[in_.value]


def check_attribute(where: str, annotation: Any, value: object) -> None:
    """Refuse marks at an attribute of an endpoint class that would say nothing there.

    Args:
        where: The class and the attribute, for the error.
        annotation: The annotation, resolved.
        value: The attribute's default.

    Raises:
        TypeError: A mark is within another type, or FastAPI's `Query` or the like.
    """
    check_marks(where, annotation)
    for mark in (*split(annotation)[1], value):
        if source := _source_of_field(mark):
            raise TypeError(
                f"{where}: {type(mark).__name__}() is for the parameters of dependencies; "
                f"at an attribute write {MARKERS[source.name]}[...]"
            )


def make_argument(
    where: str, name: str, annotation: Any, default: Any, scopes: Sequence[str]
) -> Argument:
    """What a parameter of a dependency is given.

    Args:
        where: The dependency and the parameter, for the error.
        name: The parameter's name.
        annotation: Its annotation, resolved.
        default: Its default; `inspect.Parameter.empty` without one.
        scopes: What `SecurityScopes` holds.

    Raises:
        TypeError: No handshake has such a value.
    """
    kind, metadata = split(annotation)
    if isinstance(kind, type) and issubclass(kind, HTTPConnection):
        return Given(_request if issubclass(kind, Request) else _itself)
    if (getattr(kind, "__module__", ""), getattr(kind, "__name__", "")) == SECURITY_SCOPES:
        return Given(lambda _: kind(scopes=list(scopes)), scoped=True)
    if _is_field(default):
        metadata, default = (*metadata, default), _default_of(default)
    if annotation is _NOT_GIVEN:
        if default is _NOT_GIVEN:
            raise TypeError(f"{where} needs an annotation, such as 'websocket: WebSocket'")
        kind = Any
    kind = _constrained(where, kind, metadata)
    default = REQUIRED if default is _NOT_GIVEN else default
    if source := source_of(annotation):
        return make_parameter(where, name, source, kind, default)
    for mark in metadata:
        if source := _source_of_field(mark):
            return make_parameter(where, name, source, kind, default, _sent_as(mark, name))
    return Unmarked(make_parameter(where, name, QUERY, kind, default))


def _itself(connection: HTTPConnection) -> HTTPConnection:
    return connection


def _request(connection: HTTPConnection) -> Request:
    """The handshake as the HTTP request that it is (RFC 6455, section 4.1)."""
    scheme = "https" if connection.scope["scheme"] == "wss" else "http"
    return Request({**connection.scope, "type": "http", "method": "GET", "scheme": scheme})


def _is_field(value: Any) -> bool:
    """Whether it is pydantic's `FieldInfo`; FastAPI's markers are subclasses."""
    return type(getattr(value, "metadata", None)) is list and hasattr(value, "default_factory")


def _default_of(field: Any) -> Any:
    return _NOT_GIVEN if field.is_required() else field.default


def _sent_as(mark: Any, name: str) -> str:
    alias = mark.validation_alias or mark.alias
    if isinstance(alias, str):
        return alias
    # Unlike "-", a header with "_" has to be asked for.
    return "" if getattr(mark, "convert_underscores", True) else name


def _constrained(where: str, kind: Any, metadata: Sequence[Any]) -> Any:
    """The type with those of its constraints that msgspec checks.

    Raises:
        TypeError: There are others.
    """
    found: dict[str, Any] = {}
    for mark in metadata:
        if _is_field(mark):
            kind = _constrained(where, kind, _metadata_of(where, mark))
        elif isinstance(mark, msgspec.Meta):
            kind = Annotated[kind, mark]
        elif any(getattr(mark, name, None) is not None for name in UNKNOWN):
            raise TypeError(f"{where}: {mark!r} can't be checked here, check it in the dependency")
        else:
            found |= {n: v for n in CONSTRAINTS if (v := getattr(mark, n, None)) is not None}
    pattern = found.get("pattern")
    if pattern is not None:
        found["pattern"] = getattr(pattern, "pattern", pattern)
    return Annotated[kind, msgspec.Meta(**found)] if found else kind


def _metadata_of(where: str, field: Any) -> Sequence[Any]:
    if field.default_factory is not None:
        raise TypeError(f"{where} has a default_factory; write the default behind '='")
    if type(field).__name__ in ("Body", "Form", "File"):
        raise TypeError(f"{where} is of the body, which a handshake does not have")
    metadata: Sequence[Any] = field.metadata
    return metadata
