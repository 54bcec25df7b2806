"""What the parameters of a dependency are given, ours and FastAPI's markers alike."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pytest
from fastapi import Body, Cookie, Form, Header, Path, Query
from fastapi.security import SecurityScopes
from msgspec import Meta
from pydantic import AfterValidator, BaseModel, EmailStr, Field, conint
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from chatserver import FromCookie, FromHeader, FromPath, FromQuery
from chatserver.endpoints.arguments import make_argument
from chatserver.endpoints.params import Parameter
from chatserver.errors import InvalidHandshake


async def nothing(*args: Any) -> Any: ...


def handshake(
    query: str = "", headers: Mapping[str, str] | None = None, scheme: str = "ws", **path: Any
) -> WebSocket:
    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {
        "type": "websocket",
        "scheme": scheme,
        "path": "/ws",
        "server": ("example.org", 80),
        "query_string": query.encode(),
        "headers": raw,
        "path_params": path,
    }
    return WebSocket(scope, nothing, nothing)


def read(annotation: Any, source: HTTPConnection, default: Any = inspect.Parameter.empty) -> Any:
    return make_argument("f(a_b)", "a_b", annotation, default, ("s",)).read(source)


def test_the_handshake_itself() -> None:
    source = handshake("q=1", {"cookie": "a=b"}, scheme="wss")
    assert read(WebSocket, source) is source
    assert read(HTTPConnection, source) is source
    request = read(Request, source)
    assert isinstance(request, Request)
    assert (request.method, str(request.url)) == ("GET", "https://example.org:80/ws?q=1")
    assert request.cookies == {"a": "b"}
    request.state.seen = True
    scopes = read(SecurityScopes, source)
    assert scopes.scopes == ["s"]


@pytest.mark.parametrize(
    ("annotation", "default", "source", "expected"),
    [
        (FromQuery[int], ..., handshake("a_b=3"), 3),
        (FromQuery[int], 5, handshake(), 5),
        (FromHeader[str], ..., handshake(headers={"a-b": "x"}), "x"),
        (FromCookie[str], ..., handshake(headers={"cookie": "a_b=x"}), "x"),
        (FromPath[int], ..., handshake(a_b="3"), 3),
        (FromQuery[Annotated[int, Meta(ge=1)]], ..., handshake("a_b=3"), 3),
        # Without a marker
        (int, ..., handshake("a_b=3"), 3),
        (int, ..., handshake("a_b=4", a_b="3"), 3),
        (list[int], ..., handshake("a_b=3&a_b=4"), [3, 4]),
        (str | None, None, handshake(), None),
        (inspect.Parameter.empty, 1, handshake("a_b=3"), "3"),
        (inspect.Parameter.empty, 1, handshake(), 1),
        # FastAPI's
        (Annotated[int, Query()], ..., handshake("a_b=3"), 3),
        (Annotated[int, Query(alias="a-b")], ..., handshake("a-b=3"), 3),
        (Annotated[int, Query(validation_alias="c")], ..., handshake("c=3"), 3),
        (Annotated[int, Query(ge=1)], 7, handshake(), 7),
        (Annotated[list[str], Query()], ..., handshake("a_b=3"), ["3"]),
        (Annotated[str, Header()], ..., handshake(headers={"a-b": "x"}), "x"),
        (
            Annotated[str, Header(convert_underscores=False)],
            ...,
            handshake(headers={"a_b": "x"}),
            "x",
        ),
        (Annotated[str, Header(alias="X-Name")], ..., handshake(headers={"x-name": "x"}), "x"),
        (Annotated[str, Cookie()], ..., handshake(headers={"cookie": "a_b=x"}), "x"),
        (Annotated[int, Path(alias="c")], ..., handshake(c="3"), 3),
        (int, Query(), handshake("a_b=3"), 3),
        (int, Query(9), handshake(), 9),
        (int | None, Query(None), handshake(), None),
        (inspect.Parameter.empty, Cookie("x"), handshake(), "x"),
        (Annotated[int, Field(gt=1)], ..., handshake("a_b=3"), 3),
        (conint(gt=1), ..., handshake("a_b=3"), 3),
        (Annotated[str, Query(pattern="^a+$", max_length=3)], ..., handshake("a_b=aaa"), "aaa"),
        (Annotated[str, Query(pattern=re.compile("a"))], ..., handshake("a_b=a"), "a"),
    ],
)
def test_values(annotation: Any, default: Any, source: HTTPConnection, expected: object) -> None:
    default = inspect.Parameter.empty if default is ... else default
    assert read(annotation, source, default) == expected


@pytest.mark.parametrize(
    ("annotation", "default", "source", "reason"),
    [
        (int, ..., handshake("a_b=x"), "query parameter 'a_b' must be an integer"),
        (int, ..., handshake(a_b="x"), "path parameter 'a_b' must be an integer"),
        (str, ..., handshake(), "query parameter 'a_b' is required"),
        (str, Query(), handshake(), "query parameter 'a_b' is required"),
        (Annotated[int, Query(alias="c")], ..., handshake("c=x"), "query parameter 'c' must be"),
        (Annotated[str, Header()], ..., handshake(), "header 'a-b' is required"),
        (Annotated[int, Query(gt=1)], ..., handshake("a_b=1"), "Expected `int` >= 2"),
        (Annotated[int, Field(le=1)], ..., handshake("a_b=2"), "Expected `int` <= 1"),
        (conint(gt=1), ..., handshake("a_b=1"), "Expected `int` >= 2"),
        (str, Query("x", max_length=2), handshake("a_b=xyz"), "length <= 2"),
        (Annotated[str, Query(pattern="^a$")], ..., handshake("a_b=b"), "matching regex"),
    ],
)
def test_refused(annotation: Any, default: Any, source: HTTPConnection, reason: str) -> None:
    default = inspect.Parameter.empty if default is ... else default
    with pytest.raises(InvalidHandshake, match=reason):
        read(annotation, source, default)


class Model(BaseModel):
    a: int


def same(value: Any) -> Any:
    return value


def factory(make: Callable[[], Any]) -> Any:
    return Annotated[list[str], Query(default_factory=make)]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (inspect.Parameter.empty, r"f\(a_b\) needs an annotation, such as 'websocket: WebSocket'"),
        (Response, r"f\(a_b\): a query parameter is a text, which can't be converted to"),
        (Model, "can't be converted to"),
        (Annotated[Model, Query()], "can't be converted to"),
        (EmailStr, "can't be converted to"),
        (Annotated[list[int], Path()], "a path parameter is a text"),
        (Annotated[int, AfterValidator(same)], r"f\(a_b\): AfterValidator.* can't be checked here"),
        (Annotated[int, Query(max_digits=3)], "can't be checked here"),
        (Annotated[int, Body()], r"f\(a_b\) is of the body, which a handshake does not have"),
        (Annotated[int, Form()], "is of the body"),
        (factory(list), r"f\(a_b\) has a default_factory"),
    ],
)
def test_mistakes(annotation: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_argument("f(a_b)", "a_b", annotation, inspect.Parameter.empty, ())


def test_what_is_marked_is_a_parameter() -> None:
    for annotation in (FromPath[str], Annotated[str, Path()]):
        found = make_argument("f(a)", "a", annotation, inspect.Parameter.empty, ())
        assert isinstance(found, Parameter)
        assert found.source.name == "path parameter"
