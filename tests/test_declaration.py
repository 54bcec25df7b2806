"""Mistakes in an endpoint class are errors when the class is created."""

import abc
import datetime
import functools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar, cast
from uuid import UUID

import msgspec
import pydantic
import pytest
from fastapi import Cookie, Query
from msgspec import Meta
from starlette.types import Message as Event
from starlette.websockets import WebSocket
from typing_extensions import TypeAliasType

from chatserver import (
    Depends,
    Endpoint,
    FromCookie,
    FromHeader,
    FromPath,
    FromQuery,
    Hub,
    Message,
    on_message,
)

T = TypeVar("T")


def declare(**namespace: Any) -> type[Endpoint]:
    return type("Room", (Endpoint,), {"__module__": __name__, **namespace})


class Said(Message):
    pass


async def takes_one(self: Endpoint, websocket: WebSocket) -> None: ...


async def takes_two(self: Endpoint, websocket: WebSocket, more: object) -> None: ...


async def handler(self: Endpoint, websocket: WebSocket, message: Said) -> None: ...


async def takes_channel(cls: type[Endpoint], channel: str) -> None: ...


async def takes_both(cls: type[Endpoint], channel: str, hub: Hub) -> None: ...


def while_occupied(cls: type[Endpoint], channel: str, hub: Hub) -> None: ...


def say(self: Endpoint, websocket: WebSocket, message: Said) -> None: ...


def on_receive(self: Endpoint, websocket: WebSocket, data: object) -> None: ...


def authenticate(self: Endpoint, websocket: WebSocket) -> None: ...


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        (
            {"channels": ("room:{rom}",), "__annotations__": {"room": FromPath[str]}},
            r"Room.channels: 'room:\{rom\}' names 'rom', which is not a parameter of Room "
            r"\(it has room\)",
        ),
        ({"channels": ("room:{room}",)}, r"not a parameter of Room \(it has none\)"),
        (
            {"channels": ("{room.__class__}",), "__annotations__": {"room": FromPath[str]}},
            "names 'room.__class__'",
        ),
        ({"channels": ("{}",)}, "names ''"),
        ({"channels": "chat"}, "Room.channels must be a sequence of names, not a str"),
        ({"subprotocols": "v1.chat"}, "Room.subprotocols must be a sequence of names, not a str"),
        ({"subprotocols": ""}, "Room.subprotocols must be a sequence of names, not a str"),
        ({"channels": None}, "Room.channels must be a sequence of names, not a NoneType"),
        ({"channels": property(len)}, "Room.channels must be a sequence of names, not a property"),
        (
            {"channels": (1,)},
            "Room.channels must be names, which are texts and not empty; got 1",
        ),
        ({"channels": ("",)}, "Room.channels must be names, which are .* not empty; got ''"),
        ({"channels": ("a:{b",)}, r"Room.channels: 'a:\{b' is no name: expected '}' before end"),
        ({"subprotocols": ("v1", None)}, "Room.subprotocols must be names, .* got None"),
        (
            {"allowed_origins": "https://example.com"},
            r"Room.allowed_origins must be a sequence of origins such as \('https://example.com',\),"
            " not a str",
        ),
        ({"allowed_origins": "*"}, "Room.allowed_origins must be a sequence of origins"),
        ({"allowed_origins": b"*"}, "Room.allowed_origins must be .* not a bytes"),
        (
            {"allowed_origins": ("example.org",)},
            "Room.allowed_origins must be origins such as 'https://example.org:8443', or .*; "
            "got 'example.org'",
        ),
        ({"allowed_origins": ("https://example.org/",)}, "got 'https://example.org/'"),
        ({"allowed_origins": (None,)}, "must be origins .* got None"),
        ({"encoding": "xml"}, "Room.encoding must be 'text', 'bytes', 'json' or None, got 'xml'"),
        (
            {"__annotations__": {"user": FromQuery[str]}},
            r"Room.user can't be a parameter, the name is taken",
        ),
        ({"__annotations__": {"send": FromQuery[str]}}, "Room.send can't be a parameter"),
        ({"__annotations__": {"_channels": FromQuery[str]}}, "Room._channels can't be"),
        ({"__annotations__": {"push": FromQuery[str]}}, "Room.push can't be a parameter"),
        (
            {"room": FromPath[str]},
            r"Room.room = FromPath\[...\] declares nothing; write 'room: From",
        ),
        ({"q": FromQuery[int]}, r"write 'q: FromQuery\[...\]', with a colon"),
        (
            {"__annotations__": {"q": FromQuery[dict[str, int]]}},
            "Room.q: a query parameter is a text, which can't be converted to dict",
        ),
        ({"__annotations__": {"q": FromQuery[list[dict[str, str]]]}}, "can't be converted to list"),
        ({"__annotations__": {"q": FromHeader[list[str]]}}, "Room.q: a header is a text"),
        ({"__annotations__": {"q": FromCookie[Message]}}, "Room.q: a cookie is a text"),
        ({"__annotations__": {"q": FromPath[complex]}}, "Room.q: a path parameter is a text"),
        (
            {"__annotations__": {"q": FromQuery[int] | None}, "q": None},
            "Room.q: a mark such as FromQuery or Depends must be outermost",
        ),
        ({"__annotations__": {"q": Final[FromQuery[int]]}}, "Room.q: a mark .* outermost"),
        ({"__annotations__": {"q": ClassVar[FromQuery[int]]}}, "Room.q: a mark .* outermost"),
        (
            {"__annotations__": {"q": Annotated[int, Depends(len)] | None}},
            "Room.q: a mark .* outermost",
        ),
        (
            {"__annotations__": {"q": Annotated[int, Query()]}},
            r"Room.q: Query\(\) is for the parameters of dependencies; .* write FromQuery\[...\]",
        ),
        ({"__annotations__": {"q": int}, "q": Cookie()}, r"write FromCookie\[...\]"),
        ({"on_receive": on_receive}, "Room.on_receive must be 'async def'"),
        ({"authenticate": authenticate}, "Room.authenticate must be 'async def'"),
        ({"say": on_message(cast(Any, say))}, "Room.say must be 'async def', it is awaited"),
        ({"on_recieve": takes_two}, "Room.on_recieve: did you mean 'on_receive'?"),
        ({"onreceive": takes_two}, "did you mean 'on_receive'?"),
        ({"on_conect": takes_one}, "did you mean 'on_connect'?"),
        ({"wellcome": takes_one}, "did you mean 'welcome'?"),
        ({"histroy": 5}, "did you mean 'history'?"),
        ({"linger": "5"}, "Room.linger must be seconds, got '5'"),
        ({"linger": -1}, "Room.linger must be seconds, got -1"),
        ({"disconnect_timeout": "5"}, "Room.disconnect_timeout must be seconds, got '5'"),
        ({"disconnect_timeout": None}, "Room.disconnect_timeout must be seconds, got None"),
        ({"disconnect_timeout": float("nan")}, "Room.disconnect_timeout must be seconds, got nan"),
        ({"on_receive": None}, "Room.on_receive must be a method, got None"),
        ({"autenticate": takes_one}, "did you mean 'authenticate'?"),
        ({"chanels": ("a",)}, "did you mean 'channels'?"),
        ({"channel": "a"}, "did you mean 'channels'?"),
        ({"allowed_origin": ("a",)}, "did you mean 'allowed_origins'?"),
        (
            {"on_receive": takes_one},
            r"Room.on_receive must be 'async def on_receive\(self, websocket, data\)'",
        ),
        ({"on_connect": takes_two}, r"must be 'async def on_connect\(self, websocket\)'"),
        ({"on_disconnect": takes_one}, r"on_disconnect\(self, websocket, close_code\)'"),
        ({"on_message": takes_two}, "Room.on_message: did you mean 'on_receive'?"),
        ({"on_open": takes_one}, "Room.on_open: did you mean 'on_accept'?"),
        ({"on_close": takes_two}, "Room.on_close: did you mean 'on_disconnect'?"),
        ({"welcome": takes_one}, "Room.welcome must be a plain 'def', it is not awaited"),
        ({"last_will": takes_one}, "Room.last_will must be a plain 'def'"),
        (
            {"while_occupied": takes_both},
            r"Room.while_occupied must be a @classmethod, "
            r"'async def while_occupied\(cls, channel, hub\)'",
        ),
        ({"while_occupied": staticmethod(takes_both)}, "must be a @classmethod"),
        (
            {"while_occupied": classmethod(while_occupied)},
            "Room.while_occupied must be 'async def'",
        ),
        (
            {"while_occupied": classmethod(takes_channel)},
            r"Room.while_occupied must be 'async def while_occupied\(cls, channel, hub\)'",
        ),
        ({"while_ocupied": classmethod(takes_both)}, "did you mean 'while_occupied'?"),
        ({"while_ocupied": takes_both}, "did you mean 'while_occupied'?"),
        (
            {"__annotations__": {"while_occupied": FromQuery[str]}},
            "Room.while_occupied can't be a parameter",
        ),
        (
            {"reject_as": "closed"},
            "Room.reject_as must be 'http', 'close' or 'policy', got 'closed'",
        ),
        ({"history": "10"}, "Room.history must be a number of publications, got '10'"),
        ({"history": -1}, "Room.history must be a number"),
        ({"history": True}, "Room.history must be a number"),
        ({"push": on_message(handler)}, "Room.push can't be a handler, the name is taken"),
        ({"send": on_message(handler)}, "Room.send can't be a handler, the name is taken"),
    ],
)
def test_mistakes(namespace: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        declare(**namespace)


def test_what_is_no_mistake() -> None:
    """Other names; other ways to take the arguments; a decorator; texts of all kinds."""

    def logged(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*args: Any) -> Any:
            return method(*args)

        return wrapped

    def delegating_to(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: method(*args)

    @delegating_to
    async def delegating(self: Endpoint, websocket: WebSocket, error: Exception) -> None: ...

    class Magic:
        """Has every attribute, as a proxy of XML-RPC does."""

        def __getattr__(self, name: str) -> Any:
            return self if not name.startswith("__set") else None

    class Fine(Endpoint):
        day: FromPath[datetime.date]
        ids: FromQuery[frozenset[UUID]] = frozenset()
        pair: FromQuery[tuple[int, str]] = (0, "")
        kind: FromQuery[Literal["a", "b"] | None] = None
        level: FromHeader[Annotated[int, Meta(ge=0)] | Decimal] = 1
        anything: FromCookie[Any] = None
        clients: ClassVar[set[str]] = set()
        connect_timeout = 5
        proxy = Magic()
        channel_names = ("a",)

        @logged
        async def on_receive(self, websocket: WebSocket, data: Any) -> None: ...

        async def on_connect(self, *args: Any) -> None: ...

        async def on_accept(self, websocket: WebSocket, more: int = 1) -> None: ...

        async def on_tick(self) -> None: ...

        async def on_connected(self) -> None: ...

        async def on_reconnect(self) -> None: ...

        async def on_receive_json(self, data: Any) -> None: ...

        async def on_receipt(self, number: int) -> None: ...

        async def reauthenticate(self) -> None: ...

        on_invalid = delegating
        on_disconnect = functools.partialmethod(takes_two)

        def authenticated(self) -> bool:
            return True

        async def disconnect(self) -> None: ...

    assert list(Fine.parameters) == ["day", "ids", "pair", "kind", "level", "anything"]


def test_parameters_and_handlers_of_several_bases() -> None:
    class Ping(Message):
        pass

    class Pong(Message):
        pass

    class Left(Endpoint):
        a: FromQuery[int] = 1

        @on_message
        async def ping(self, websocket: WebSocket, message: Ping) -> None: ...

    class Right(Endpoint):
        b: FromQuery[int] = 2

        @on_message
        async def pong(self, websocket: WebSocket, message: Pong) -> None: ...

    class Mixin:
        c: FromQuery[int] = 3

    class Both(Left, Right, Mixin):
        pass

    assert {name: p.default for name, p in Both.parameters.items()} == {"a": 1, "b": 2, "c": 3}
    assert set(Both.handlers) == {"ping", "pong"}

    class Other(Endpoint):
        @on_message
        async def other(self, websocket: WebSocket, message: Ping) -> None: ...

    with pytest.raises(TypeError, match="both handle messages of type 'ping'"):

        class Clash(Left, Other):
            pass


def test_a_mixin_may_bring_a_handler() -> None:
    class Ping(Message):
        pass

    class Mixin:
        @on_message
        async def ping(self, websocket: WebSocket, message: Ping) -> None: ...

    class Mixed(Mixin, Endpoint):
        pass

    assert set(Mixed.handlers) == {"ping"}


def test_on_receive_beside_handlers_would_never_be_called() -> None:
    class Ping(Message):
        pass

    with pytest.raises(TypeError, match=r"Deaf\.on_receive would never be called, .* go to ping"):

        class Deaf(Endpoint):
            @on_message
            async def ping(self, websocket: WebSocket, message: Ping) -> None: ...

            async def on_receive(self, websocket: WebSocket, data: Any) -> None: ...


def test_an_abstract_class_in_a_function() -> None:
    class Ping(Message):
        pass

    class Abstract(Endpoint, abc.ABC):
        word: "FromQuery[str]"

        @on_message
        async def ping(self, websocket: WebSocket, message: "Ping") -> None: ...

    assert set(Abstract.parameters) == {"word"}
    assert set(Abstract.handlers) == {"ping"}


def test_a_parameter_that_can_not_be_resolved() -> None:
    with pytest.raises(TypeError, match=r"Room: FromQuery\[Missing\] can't be resolved"):
        declare(__annotations__={"q": "FromQuery[Missing]"})
    assert declare(__annotations__={"q": "no.such.thing"}).parameters == {}


def test_what_an_alias_of_a_type_stands_for() -> None:
    """`type Number = FromQuery[int]`, and one with a variable, as Python 3.12 has them."""
    alias = cast(Any, TypeAliasType)
    number = alias("number", FromQuery[int])
    other = alias("other", number)
    optional = alias("optional", cast(Any, FromQuery)[cast(Any, T) | None], type_params=(T,))
    cls = declare(__annotations__={"a": number, "b": other, "c": optional[int]}, b=2, c=None)
    assert {name: p.type for name, p in cls.parameters.items()} == {"a": int, "b": int, "c": int}


def test_a_type_that_only_subclasses_know() -> None:
    expected = (
        r"Paged\.after: the type of a query parameter must be known, got list\[~T\]; "
        "declare 'after' in each subclass"
    )
    with pytest.raises(TypeError, match=expected):

        class Paged(Endpoint, Generic[T]):
            after: FromQuery[list[T]]


def test_an_inherited_dependency_can_not_be_replaced_by_a_value() -> None:
    def two() -> int:
        return 2

    class Base(Endpoint):
        size: Annotated[int, Depends(lambda: 1)]

    with pytest.raises(
        TypeError, match=r"Fixed\.size = 7 would have no effect, .* 'size = Depends"
    ):

        class Fixed(Base):
            size = 7

    class Other(Base):
        size = Depends(two)

    assert Other.dependencies["size"].call is two


def test_a_handler_can_not_be_replaced_by_a_value() -> None:
    class Base(Endpoint):
        say = on_message(handler)

    with pytest.raises(TypeError, match=r"Mute\.say must be a method, got None"):

        class Mute(Base):
            say = cast(Any, None)


def test_a_handler_belongs_to_an_instance() -> None:
    form = r"Room\.say must be a handler of the form 'async def say\(self, websocket, message: "
    kinds: list[Any] = [staticmethod, classmethod]
    for kind in kinds:
        for made in (kind(on_message(handler)), on_message(kind(handler))):
            with pytest.raises(TypeError, match=form):
                declare(say=made)


class Struct_(msgspec.Struct):
    text: str


class Model(pydantic.BaseModel):
    text: str


@dataclass
class Data:
    text: str


@pytest.mark.parametrize("kind", [Said, Struct_, Model, Data, list[Said], Said | None, "Said"])
def test_what_on_receive_would_get_unconverted(kind: Any) -> None:
    async def on_receive(self: Endpoint, websocket: WebSocket, data: Any) -> None: ...

    on_receive.__annotations__["data"] = kind
    expected = r"Room\.on_receive gets what JSON holds, not .*; write a handler: '@on_message"
    with pytest.raises(TypeError, match=expected):
        declare(encoding="json", on_receive=on_receive)

    async def decode(self: Endpoint, websocket: WebSocket, message: Event) -> Any: ...

    declare(encoding="json", on_receive=on_receive, decode=decode)  # may well convert it
    on_receive.__annotations__["data"] = dict[str, Any]
    declare(encoding="json", on_receive=on_receive)


def test_a_name_with_literal_braces_and_two_parameters() -> None:
    cls = declare(
        channels=("{{x}}:{a}:{b}",), __annotations__={"a": FromPath[str], "b": FromPath[str]}
    )
    assert [name.format_map({"a": "1", "b": "2"}) for name in cls.channels] == ["{x}:1:2"]
