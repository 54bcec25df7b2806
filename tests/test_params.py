"""Handshake parameters: what is read, what is refused and in which words."""

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from fastapi import FastAPI
from msgspec import Meta
from starlette.applications import Starlette
from starlette.convertors import CONVERTOR_TYPES, IntegerConvertor
from starlette.requests import HTTPConnection
from starlette.routing import Host, Mount, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatserver import Endpoint, FromCookie, FromHeader, FromPath, FromQuery, lifespan
from chatserver.errors import InvalidHandshake


class Many(Endpoint):
    item_id: FromPath[str]
    word: FromQuery[str]
    number: FromQuery[int | None] = None
    ratio: FromQuery[float] = 0.5
    flag: FromQuery[bool] = False
    tags: FromQuery[list[int]] = []  # noqa: RUF012
    either: FromQuery[int | str] = 0
    page: FromQuery[Annotated[int, Meta(ge=1)]] = 1
    key: FromQuery[UUID | None] = None
    user_agent: FromHeader[str | None] = None
    session: FromCookie[str | None] = None


def connection(
    query: bytes = b"", headers: Mapping[str, str] | None = None, **path: Any
) -> HTTPConnection:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return HTTPConnection(
        {"type": "websocket", "query_string": query, "headers": raw, "path_params": path}
    )


def read(name: str, source: HTTPConnection) -> Any:
    return Many.parameters[name].read(source)


@pytest.mark.parametrize(
    ("name", "query", "value"),
    [
        ("number", b"", None),
        ("number", b"number=3", 3),
        ("number", b"number=-3", -3),
        ("number", b"number=%2B3", 3),
        ("number", b"number=007", 7),
        ("number", b"number=-007", -7),
        ("number", b"number=0", 0),
        ("number", b"number=000", 0),
        ("number", b"number=" + b"9" * 30, int("9" * 30)),
        ("number", b"number=1&number=2", 2),
        ("ratio", b"", 0.5),
        ("ratio", b"ratio=1e3", 1000.0),
        ("flag", b"flag=true", True),
        ("flag", b"flag=0", False),
        ("tags", b"", []),
        ("tags", b"tags=1&tags=2", [1, 2]),
        ("tags", b"tags=007", [7]),
        ("either", b"either=0041abc", "0041abc"),
        ("page", b"page=2", 2),
        ("key", b"key=0123456789abcdef0123456789abcdef", UUID("0123456789abcdef" * 2)),
    ],
)
def test_query(name: str, query: bytes, value: object) -> None:
    assert read(name, connection(query)) == value


def test_path_header_and_cookie() -> None:
    source = connection(headers={"user-agent": "x", "cookie": "session=abc"}, item_id="foo")
    assert read("item_id", source) == "foo"
    assert read("user_agent", source) == "x"
    assert read("session", source) == "abc"
    assert read("user_agent", connection()) is None
    assert read("session", connection()) is None


@pytest.mark.parametrize(
    ("name", "query", "reason"),
    [
        ("number", b"number=x", "query parameter 'number' must be an integer"),
        ("number", b"number=", "query parameter 'number' must be an integer"),
        ("number", b"number=null", "query parameter 'number' must be an integer"),
        ("number", b"number=1.5", "query parameter 'number' must be an integer"),
        ("number", b"number=1_0", "query parameter 'number' must be an integer"),
        ("number", b"number=%D9%A3", "query parameter 'number' must be an integer"),
        ("number", b"number=" + b"9" * 5000, "query parameter 'number' must be an integer"),
        ("number", b"number=%ff", "query parameter 'number' must be an integer"),
        ("ratio", b"ratio=x", "query parameter 'ratio' must be a number"),
        ("flag", b"flag=maybe", "query parameter 'flag' must be true or false"),
        ("page", b"page=0", "query parameter 'page' can't be used: Expected `int` >= 1"),
        ("word", b"", "query parameter 'word' is required"),
    ],
)
def test_refused(name: str, query: bytes, reason: str) -> None:
    with pytest.raises(InvalidHandshake) as refusal:
        read(name, connection(query))
    assert refusal.value.reason == reason
    assert (refusal.value.status, refusal.value.code) == (422, 4422)


class Color(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


class Chosen(Endpoint):
    key: FromQuery[UUID | None] = None
    color: FromQuery[Color | None] = None
    colors: FromQuery[list[Color]] = []  # noqa: RUF012
    size: FromQuery[Size] = Size.SMALL
    order: FromQuery[Literal["up", "down"]] = "up"
    side: FromQuery[Literal[1, 2]] = 1


@pytest.mark.parametrize("name", Chosen.parameters)
@pytest.mark.parametrize("value", ["12345", "my-12345-value", "12345'%0A12345"])
def test_a_refusal_does_not_quote_the_value(name: str, value: str) -> None:
    parameter = Chosen.parameters[name]
    with pytest.raises(InvalidHandshake) as refusal:
        parameter.read(connection(f"{name}={value}".encode()))
    assert refusal.value.reason.startswith(f"query parameter {name!r} can't be used: ")
    assert "12345" not in refusal.value.reason


def test_a_choice() -> None:
    source = connection(b"color=red&colors=red&size=1&order=down&side=2")
    found = [each.read(source) for each in Chosen.parameters.values()]
    assert found == [None, Color.RED, [Color.RED], Size.SMALL, "down", 2]


def test_defaults_and_parameters_are_inherited() -> None:
    class Child(Many):
        ratio = 0.25
        extra: FromQuery[str]

    assert set(Child.parameters) == {*Many.parameters, "extra"}
    assert Child.parameters["ratio"].read(connection()) == 0.25
    assert Many.parameters["ratio"].read(connection()) == 0.5


def test_a_default_that_is_changed_is_not_the_default_of_others() -> None:
    none: list[str] = []

    class Tagged(Endpoint):
        tags: FromQuery[list[str]] = none

        async def on_accept(self, websocket: WebSocket) -> None:
            self.tags.append("seen")
            await self.push(",".join(self.tags))

    client = TestClient(Starlette(routes=[WebSocketRoute("/", Tagged)]))
    for _ in range(2):
        with client.websocket_connect("/") as session:
            assert session.receive_text() == "seen"
    with client.websocket_connect("/?tags=a") as session:
        assert session.receive_text() == "a,seen"


def test_attributes_of_the_instance() -> None:
    class Show(Endpoint):
        item_id: FromPath[str]
        q: FromQuery[int | None] = None

        async def on_accept(self, websocket: Any) -> None:
            await self.push(f"{self.item_id} {self.q}")

    client = TestClient(Starlette(routes=[WebSocketRoute("/{item_id}", Show)]))
    with client.websocket_connect("/foo?q=3") as session:
        assert session.receive_text() == "foo 3"


class Number(Endpoint):
    n: FromPath[int]


async def plain(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


@pytest.mark.parametrize(
    "app",
    [
        Starlette(routes=[WebSocketRoute("/{n:int}", Number)], lifespan=lifespan),
        FastAPI(routes=[WebSocketRoute("/{n:int}", Number)], lifespan=lifespan),
        Starlette(
            routes=[Mount("/", routes=[WebSocketRoute("/{n:int}", Number)])], lifespan=lifespan
        ),
        Starlette(
            routes=[Mount("/{n:int}", routes=[WebSocketRoute("/ws", Number)])], lifespan=lifespan
        ),
        Starlette(
            routes=[Mount("/", Starlette(routes=[WebSocketRoute("/{n:int}", Number)]))],
            lifespan=lifespan,
        ),
        Starlette(
            routes=[Host("testserver", Router([WebSocketRoute("/{n:int}", Number)]))],
            lifespan=lifespan,
        ),
    ],
    ids=["starlette", "fastapi", "mounted", "in the mount's path", "application", "host"],
)
def test_a_converted_path_parameter_too_long_for_python(app: Starlette) -> None:
    rest = "/ws" if isinstance(app.routes[0], Mount) and "{" in app.routes[0].path else ""
    with TestClient(app) as client:
        refused(client, "/" + "9" * 4301 + rest)
        refused(client, "/" + "0" * 5000 + rest)
        with client.websocket_connect("/" + "9" * 4300 + rest):
            pass


def test_without_a_lifespan_digits_are_bounded_from_the_first_handshake_on() -> None:
    client = TestClient(Starlette(routes=[WebSocketRoute("/{n:int}", Number)]))
    with client.websocket_connect("/7"):
        pass
    refused(client, "/" + "9" * 4301)


def refused(client: TestClient, path: str) -> None:
    """Refused without any exception in the application."""
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(path):
        pass


def test_the_convertor_of_everybody_else_stays_as_it_is() -> None:
    assert type(CONVERTOR_TYPES["int"]) is IntegerConvertor
    assert IntegerConvertor.regex == "[0-9]+"
    routes = [WebSocketRoute("/a/{n:int}", Number), WebSocketRoute("/b/{n:int}", plain)]
    client = TestClient(Starlette(routes=routes, lifespan=lifespan))
    with client:
        refused(client, "/a/" + "9" * 4301)
        with pytest.raises(ValueError, match="4300"), client.websocket_connect("/b/" + "9" * 4301):
            pass


def test_without_a_lifespan_the_route_is_to_blame_not_the_client() -> None:
    client = TestClient(Starlette(routes=[WebSocketRoute("/items", Many)]))
    with (
        pytest.raises(TypeError, match="'item_id' is not in the path of this endpoint's route"),
        client.websocket_connect("/items"),
    ):
        pass
