"""Handshake values as annotated class attributes, checked before `authenticate` is called.

    class Item(Endpoint):
        item_id: FromPath[str]
        token: FromQuery[str | None] = None
        tags: FromQuery[tuple[str, ...]] = ()
        user_agent: FromHeader[str | None] = None      # the header `User-Agent`
        session: FromCookie[str | None] = None

An attribute without a default is required. Values are converted by msgspec, so that its
constraints work too: `FromQuery[Annotated[int, Meta(ge=1)]]`.
"""

import re
import sys
import types
from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import inspect
from starlette.convertors import IntegerConvertor
from starlette.requests import HTTPConnection
from starlette.routing import Mount, WebSocketRoute

from chatserver.cookies import cookie
from chatserver.errors import InvalidHandshake

__all__ = [
    "COOKIE",
    "HEADER",
    "MARKERS",
    "PATH",
    "QUERY",
    "REQUIRED",
    "FromCookie",
    "FromHeader",
    "FromPath",
    "FromQuery",
    "Parameter",
    "Source",
    "bound_integers",
    "find_parameters",
    "make_parameter",
    "source_of",
    "unaliased",
]

T = TypeVar("T")


class Source(NamedTuple):
    """Where a value comes from; a refusal calls it by `name`."""

    name: str


PATH = Source("path parameter")
QUERY = Source("query parameter")
HEADER = Source("header")
COOKIE = Source("cookie")

FromPath: TypeAlias = Annotated[T, PATH]
FromQuery: TypeAlias = Annotated[T, QUERY]
FromHeader: TypeAlias = Annotated[T, HEADER]
FromCookie: TypeAlias = Annotated[T, COOKIE]

#: Stands for the default of a parameter that has none.
REQUIRED: Any = object()

#: How one writes each source at an attribute.
MARKERS = {
    "path parameter": "FromPath",
    "query parameter": "FromQuery",
    "header": "FromHeader",
    "cookie": "FromCookie",
}
_SEQUENCES = (
    inspect.ListType,
    inspect.SetType,
    inspect.FrozenSetType,
    inspect.VarTupleType,
)
_OF_TEXT = (
    *(inspect.AnyType, inspect.StrType, inspect.BytesType, inspect.ByteArrayType),
    *(inspect.IntType, inspect.FloatType, inspect.BoolType, inspect.DecimalType),
    *(inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType),
    inspect.UUIDType,
)

#: The value that msgspec quotes, if it is none of an enumeration.
_ENUM_VALUE = re.compile(r"(?<=^Invalid enum value) .*", re.DOTALL)
_LEADING_ZEROS = re.compile(r"^(-?)\+?0*(?=[0-9])")
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


class Parameter(NamedTuple):
    """One handshake value of an endpoint class, or of a dependency.

    Attributes:
        name: The name of the class attribute, or of the dependency's parameter.
        source: Where the value comes from.
        type: What it is converted to.
        default: The value when it is absent; `REQUIRED` if it must not be absent.
        is_number: Whether a text such as "007" is read as a number.
        sent_as: Its name in the handshake; that of a header has "-" for "_".
    """

    name: str
    source: Source
    type: Any
    default: Any
    is_number: bool
    sent_as: str

    @property
    def label(self) -> str:
        """Source and name, for a refusal: "query parameter 'q'"."""
        return f"{self.source.name} {self.sent_as!r}"

    def read(self, connection: HTTPConnection) -> Any:
        """The value in this handshake.

        Raises:
            InvalidHandshake: It is required and absent, or can't be converted.
            TypeError: The route has no such path parameter.
        """
        raw = self._raw(connection)
        if raw is None or raw == []:
            if self.default is REQUIRED and self.source.name == "path parameter":
                raise TypeError(f"{self.label} is not in the path of this endpoint's route")
            if self.default is REQUIRED:
                raise InvalidHandshake(f"{self.label} is required")
            return copy(self.default)  # one connection's list is not another's
        try:
            return msgspec.convert(raw, self.type, strict=False)
        except (msgspec.ValidationError, RecursionError) as exc:
            # Not the value itself: it may be a secret that was put in the wrong place.
            expected = _KINDS.get(self.type)
            why = _ENUM_VALUE.sub("", str(exc))
            detail = f"must be {expected}" if expected else f"can't be used: {why}"
            raise InvalidHandshake(f"{self.label} {detail}") from None

    def _raw(self, connection: HTTPConnection) -> Any:
        match self.source.name:
            case "path parameter":
                value = connection.path_params.get(self.sent_as)
                if type(value) is int:
                    bound_integers(connection.scope.get("route"))
            case "query parameter" if self._is_list:
                return [self._plain(item) for item in connection.query_params.getlist(self.sent_as)]
            case "query parameter":
                value = connection.query_params.get(self.sent_as)
            case "header":
                value = connection.headers.get(self.sent_as)
            case _:
                value = cookie(connection.scope, self.sent_as)
        return self._plain(value)

    def _plain(self, value: Any) -> Any:
        # JSON, and so msgspec, refuses "007" and "+7", which a URL written by hand may contain.
        if self.is_number and isinstance(value, str) and value[:1] in "+-0":
            return _LEADING_ZEROS.sub(r"\1", value)
        return value

    @property
    def _is_list(self) -> bool:
        return get_origin(self.type) in (list, tuple, set, frozenset)


def find_parameters(cls: type, annotations: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters among the annotations of a class, with their defaults.

    Raises:
        TypeError: A marker was assigned as a value, or a text can't be converted to its type.
    """
    for name, value in vars(cls).items():
        if source := source_of(value):
            marker = MARKERS[source.name]
            raise TypeError(
                f"{cls.__name__}.{name} = {marker}[...] declares nothing; "
                f"write '{name}: {marker}[...]', with a colon"
            )
    found = {}
    for name, annotation in annotations.items():
        if source := source_of(annotation):
            where, default = f"{cls.__name__}.{name}", getattr(cls, name, REQUIRED)
            found[name] = make_parameter(where, name, source, annotation, default)
    return found


def make_parameter(
    where: str, name: str, source: Source, annotation: Any, default: Any, sent_as: str = ""
) -> Parameter:
    """A parameter of this type.

    Args:
        where: Where it is declared, for the error.
        name: As for `Parameter`.
        source: As for `Parameter`.
        annotation: The type, with or without the source among its metadata.
        default: As for `Parameter`.
        sent_as: As for `Parameter`; empty for what follows from the name.

    Raises:
        TypeError: A text can't be converted to the type, or it depends on a `TypeVar`.
    """
    inner, *others = get_args(annotation) if _metadata(annotation) else (annotation,)
    inner = unaliased(inner)
    if _depends_on_a_variable(inner):
        raise TypeError(
            f"{where}: the type of a {source.name} must be known, got {inner!r}; "
            f"declare {name!r} in each subclass"
        )
    rest = tuple(other for other in others if type(other) is not Source)
    kind = Annotated[(_without_none(inner), *rest)] if rest else _without_none(inner)
    if not _can_be_read(kind, source):
        raise TypeError(
            f"{where}: a {source.name} is a text, which can't be converted to {inner!r}"
        )
    is_number = _mentions(kind, int) and not _mentions(kind, str)
    sent_as = sent_as or (name.replace("_", "-") if source == HEADER else name)
    return Parameter(name, source, kind, default, is_number, sent_as)


def unaliased(annotation: Any) -> Any:
    """What an annotation stands for that names a `type Page = FromQuery[int]`, of Python 3.12."""
    while type(alias := get_origin(annotation) or annotation).__name__ == "TypeAliasType":
        arguments = get_args(annotation)
        annotation = alias.__value__[arguments] if arguments else alias.__value__
    return annotation


def source_of(annotation: Any) -> Source | None:
    """The marker in an annotation such as `FromPath[str]`; None without one."""
    return next((mark for mark in _metadata(annotation) if type(mark) is Source), None)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    metadata = getattr(annotation, "__metadata__", ())
    return metadata if type(metadata) is tuple else ()


def _can_be_read(kind: Any, source: Source) -> bool:
    """Whether this type can be made from a text, or from several texts in a query."""
    try:
        info = msgspec.inspect.type_info(kind)
    except TypeError:
        return False
    if source.name == "query parameter" and isinstance(info, _SEQUENCES):
        return _is_of_text(info.item_type)
    if source.name == "query parameter" and isinstance(info, inspect.TupleType):
        return all(map(_is_of_text, info.item_types))
    return _is_of_text(info)


def _is_of_text(info: inspect.Type) -> bool:
    match info:
        case inspect.UnionType():
            return any(map(_is_of_text, info.types))
        case inspect.Metadata():
            return _is_of_text(info.type)
        case inspect.LiteralType() | inspect.EnumType():
            return True
        case _:
            return isinstance(info, _OF_TEXT)


def bound_integers(route: object) -> None:
    """Limit the digits that a route matches for `{name:int}` to those that Python converts.

    With more than 4,300 digits `int()` raises, and the handshake would end in a traceback before
    it reaches an endpoint; so such a path is not found. Starlette's convertor itself is not
    changed, because all applications in the process share it. Calling it again changes nothing.
    """
    most = sys.get_int_max_str_digits()  # 0 means no limit
    if not most or not isinstance(route, WebSocketRoute | Mount):
        return
    for name, convertor in route.param_convertors.items():
        unbounded, bounded = (f"(?P<{name}>[0-9]{digits})" for digits in ("+", f"{{1,{most}}}"))
        pattern = route.path_regex.pattern
        if type(convertor) is IntegerConvertor and unbounded in pattern:
            route.path_regex = re.compile(
                pattern.replace(unbounded, bounded), route.path_regex.flags
            )


def _without_none(annotation: Any) -> Any:
    """The type of a value that is present: a text such as "null" is never None."""
    if get_origin(annotation) in (Union, types.UnionType):
        kept = tuple(arg for arg in get_args(annotation) if arg is not type(None))
        return Union[kept]  # noqa: UP007 (the members are known only at run time)
    return annotation


def _mentions(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_mentions(arg, wanted) for arg in get_args(annotation))


def _depends_on_a_variable(annotation: Any) -> bool:
    return isinstance(annotation, TypeVar) or any(map(_depends_on_a_variable, get_args(annotation)))
