"""Dependencies as class attributes: in Starlette and FastAPI, on both kinds of server."""

import asyncio
import contextvars
import json
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, Generic, TypeVar, cast

import fastapi
import pytest
from fastapi import FastAPI
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from chatserver import (
    Depends,
    Endpoint,
    FromHeader,
    FromPath,
    FromQuery,
    Hub,
    Identity,
    InvalidToken,
    Limits,
    identify,
    lifespan,
)
from chatserver.auth import Verifier, mint
from chatserver.errors import BrokerUnavailable
from chatserver.testing import live_server
from tests.asgi import Edge, wait_until

SECRET = "correct-horse-battery-staple-0123456789"


def application(
    endpoint: type[Endpoint], path: str = "/ws", kind: type[Starlette] = Starlette
) -> Starlette:
    return kind(routes=[WebSocketRoute(path, endpoint)])


def shown(
    endpoint: type[Endpoint[Any]], url: str = "/ws", path: str = "/ws", **options: Any
) -> Any:
    return first(application(endpoint, path), url, **options)


def first(app: ASGIApp, url: str = "/ws", **options: Any) -> Any:
    """What an endpoint pushes first."""
    with TestClient(app).websocket_connect(url, **options) as session:
        return session.receive_json()


def refused(app: ASGIApp, url: str = "/ws", **options: Any) -> WebSocketDenialResponse:
    with pytest.raises(WebSocketDenialResponse) as denied:
        TestClient(app).websocket_connect(url, **options).__enter__()
    return denied.value


class Shows(Endpoint[Any]):
    """Pushes the value of its attribute `value` with the accept."""

    value: Any

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(json.dumps(self.value))


# What can be called


T = TypeVar("T")


class Repository(Generic[T]):
    """Its parameters are read though it is asked for with a type."""

    def __init__(self, q: int, agent: FromHeader[str], user_agent: FromHeader[str]) -> None:
        self.q, self.agent = q, user_agent


class Searches(Generic[T]):
    def __init__(self, q: T) -> None: ...


def test_a_generic_class_with_its_type() -> None:
    class Shop(Shows):
        items: Annotated[Repository[int], Depends()]
        value = Depends(Repository[str])

        async def on_accept(self, websocket: WebSocket) -> None:
            assert type(self.value) is Repository
            assert self.items is not self.value
            await self.push(json.dumps([self.items.q, self.value.q, self.items.agent]))

    assert shown(Shop, "/ws?q=7", headers={"agent": "a", "user-agent": "b"}) == [7, 7, "b"]
    expected = r"Searches\(q\): the type of a query parameter must be known, got ~T"
    with pytest.raises(TypeError, match=expected):

        class Wrong(Shows):
            value = Depends(Searches[int])


def test_a_mark_within_the_type_of_a_parameter() -> None:
    def current(page: FromQuery[int] | None = None) -> None: ...

    with pytest.raises(TypeError, match=r"current\(page\): a mark .* must be outermost"):

        class Wrong(Shows):
            value = Depends(current)


def plain(q: int) -> list[Any]:
    return [q, threading.current_thread() is threading.main_thread()]


async def coroutine(q: int) -> int:
    return q


def generator(q: int) -> Iterator[int]:
    yield q


async def async_generator(q: int) -> AsyncIterator[int]:
    yield q


class Caller:
    def __init__(self, add: int = 0) -> None:
        self.add = add

    def __call__(self, q: int) -> int:
        return q + self.add

    def method(self, q: int) -> int:
        return q + self.add

    @staticmethod
    async def static(q: int) -> int:
        return q

    @classmethod
    def made(cls, q: int) -> int:
        return q


class AsyncCaller:
    async def __call__(self, q: int) -> int:
        return q


class YieldingCaller:
    async def __call__(self, q: int) -> AsyncIterator[int]:
        yield q


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_annotation(q: str) -> str:
    return q


async def multiplied(q: int, by: int) -> int:
    return q * by


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (plain, [3, False]),
        (coroutine, 3),
        (generator, 3),
        (async_generator, 3),
        (Caller(4), 7),
        (Caller(4).method, 7),
        (Caller.static, 3),
        (Caller.made, 3),
        (AsyncCaller(), 3),
        (YieldingCaller(), 3),
        (decorated(coroutine), 3),
        (decorated(async_generator), 3),
        (partial(multiplied, by=5), 15),
        (partial(partial(multiplied, by=5)), 15),
        (with_annotation, "3"),
        (lambda func=1, self=2, args=3: [func, self, args], [1, 2, 3]),
        (lambda *args, **kwargs: [args, kwargs], [[], {}]),
        (lambda websocket=None: coroutine(3), 3),
    ],
)
@pytest.mark.parametrize("depends", [Depends, fastapi.Depends, fastapi.Security])
def test_whatever_can_be_called(depends: Any, call: Any, expected: Any) -> None:
    class Room(Shows):
        value: Annotated[Any, depends(call)]

    # What a partial binds is not the client's.
    assert shown(Room, "/ws?q=3&by=100") == expected


@dataclass
class Page:
    number: int = 1
    size: FromQuery[int] = 10


def test_a_class_is_its_own_dependency() -> None:
    class Room(Endpoint):
        page: Annotated[Page, Depends()]
        other: Page = Depends(use_cache=False)
        third: Annotated[Page, fastapi.Depends()]

        async def on_accept(self, websocket: WebSocket) -> None:
            same = [self.page is self.other, self.page is self.third]
            await self.push([self.page.number, self.page.size, *same])

    assert shown(Room, "/ws?number=2&size=20") == [2, 20, False, True]


def test_a_default_marks_as_well() -> None:
    def inner(q: int = 1) -> int:
        return q

    def outer(a: int = Depends(inner), b: int = fastapi.Depends(inner)) -> int:
        return a + b

    class Room(Shows):
        value = Depends(outer)

    assert shown(Room, "/ws?q=4") == 8


def test_attributes_without_annotations_are_resolved_in_their_order() -> None:
    names = [f"value_{number}" for number in range(20)]
    cls: Any = type("Many", (Endpoint,), {name: Depends(lambda: 1) for name in names})
    assert list(cls.dependencies) == names


# Nested, cached, inherited


def test_a_value_is_shared_in_a_handshake_and_not_beyond() -> None:
    calls: list[str] = []

    def base() -> int:
        calls.append("base")
        return len(calls)

    def left(base: Annotated[int, Depends(base)]) -> int:
        return base

    async def right(base: Annotated[int, Depends(base)]) -> int:
        return base

    def own(base: Annotated[int, Depends(base, use_cache=False)]) -> int:
        return base

    class Room(Endpoint):
        a: Annotated[int, Depends(left)]
        b: Annotated[int, Depends(right)]
        c: Annotated[int, Depends(own)]

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push([self.a, self.b, self.c])

    assert shown(Room) == [1, 1, 2]
    assert shown(Room) == [3, 3, 4]


def test_inherited_and_mixed_in() -> None:
    class Mixin:
        a: Annotated[str, Depends(lambda: "a")]

    class Base(Endpoint):
        b: Annotated[str, Depends(lambda: "b")]
        c: Annotated[str, Depends(lambda: "c")]

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push([getattr(self, name) for name in sorted(self.dependencies)])

    class Room(Mixin, Base):
        c: Annotated[str, Depends(lambda: "other")]

    assert shown(Base) == ["b", "c"]
    assert shown(Room) == ["a", "b", "other"]


def test_parameters_come_first_then_dependencies_then_authenticate() -> None:
    order: list[str] = []

    class Room(Endpoint):
        a: Annotated[None, Depends(lambda: order.append("a"))]
        q: FromQuery[int]
        b: Annotated[None, Depends(lambda: order.append("b"))]

        async def authenticate(self, websocket: WebSocket) -> None:
            order.append("authenticate")
            assert self.user is None

        async def on_connect(self, websocket: WebSocket) -> None:
            order.append("connect")
            await websocket.accept()

    app = application(Room)
    assert refused(app, "/ws?q=x").status_code == 422
    assert refused(app, "/ws?q=1", headers={"Origin": "https://evil.example"}).status_code == 403
    assert order == []
    TestClient(app).websocket_connect("/ws?q=1").__enter__().__exit__(None, None, None)
    assert order == ["a", "b", "authenticate", "connect"]


variable = contextvars.ContextVar("variable", default="unset")


def test_an_async_dependency_runs_in_the_task_and_context_of_the_hooks() -> None:
    seen: list[Any] = []

    async def setting() -> AsyncIterator[None]:
        token, task = variable.set("set"), asyncio.current_task()
        yield
        seen.append((variable.get(), asyncio.current_task() is task))
        variable.reset(token)

    class Room(Endpoint):
        context: Annotated[None, Depends(setting)]

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            seen.append(variable.get())

    TestClient(application(Room)).websocket_connect("/ws").__enter__().__exit__(None, None, None)
    assert seen == ["set", ("set", True)]


# Overrides


def with_overrides(app: Any, overrides: dict[Any, Any]) -> Any:
    app.dependency_overrides = overrides
    return app


def real() -> str:
    return "real"


def around(inner: Annotated[str, Depends(real)]) -> str:
    return f"around {inner}"


class Overridden(Shows):
    value: Annotated[str, Depends(around)]


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_overrides(kind: type[Starlette]) -> None:
    def other(q: int) -> str:
        return f"other {q}"

    def wrapping(
        inner: Annotated[str, Depends(around)], real: Annotated[str, Depends(real)]
    ) -> str:
        return f"{inner}, {real}"

    app = application(Overridden, kind=kind)
    assert first(app) == "around real"
    assert first(with_overrides(app, {real: other}), "/ws?q=1") == "around other 1"
    assert first(with_overrides(app, {around: lambda: "none"})) == "none"
    # An override may depend on what it replaces.
    assert first(with_overrides(app, {around: wrapping})) == "around real, real"
    assert first(with_overrides(app, {})) == "around real"


def test_overrides_of_a_mounted_application_count_first() -> None:
    inner = application(Overridden)
    outer = with_overrides(FastAPI(), {real: lambda: "outer"})
    outer.mount("/inner", inner)
    assert first(outer, "/inner/ws") == "around outer"
    with_overrides(inner, {real: lambda: "inner"})
    assert first(outer, "/inner/ws") == "around inner"
    with_overrides(inner, {around: lambda: "mine"})
    assert first(outer, "/inner/ws") == "mine"


# Who it is


@pytest.fixture
def verifying() -> Callable[..., Starlette]:
    def make(endpoint: type[Endpoint]) -> Starlette:
        app = application(endpoint)
        app.state.verifier = Verifier(secret=SECRET)
        return app

    return make


def token(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint(SECRET, user='ann', ttl_seconds=60, **claims)}"}


async def row(identity: Annotated[Identity, Depends(identify)]) -> dict[str, str]:
    return {"name": identity.user}


class ByIdentity(Endpoint[Identity]):
    user: Annotated[Identity, Depends(identify)]
    channels = ("private",)

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push([self.user.user, self.identity is self.user, bool(self.credential)])


class ByRow(Endpoint[dict[str, str]]):
    user: Annotated[dict[str, str], Depends(row)]
    channels = ("private",)

    async def on_accept(self, websocket: WebSocket) -> None:
        assert self.identity is not None
        await self.push([self.user["name"], self.identity.user == "ann", bool(self.credential)])


@pytest.mark.parametrize("endpoint", [ByIdentity, ByRow])
def test_a_dependency_identifies_and_the_token_counts(
    endpoint: type[Endpoint], verifying: Callable[..., Starlette]
) -> None:
    app = verifying(endpoint)
    with TestClient(app).websocket_connect("/ws", headers=token()) as session:
        assert session.receive_json() == ["ann", True, True]
    assert refused(app).status_code == 401
    assert refused(app, headers=token(channels=["other"])).status_code == 403
    del app.state.verifier
    assert refused(app, headers=token()).status_code == 503


def test_an_identity_of_a_dependencys_own() -> None:
    async def bob() -> Identity:
        return Identity(user="bob", channels=frozenset({"public"}))

    class Room(Endpoint[Identity]):
        user: Annotated[Identity, Depends(bob)]
        channel_name: FromQuery[str]
        channels = ("{channel_name}",)

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push(self.identity is self.user)

    assert shown(Room, "/ws?channel_name=public") is True
    assert refused(application(Room), "/ws?channel_name=other").status_code == 403


def test_authenticate_may_say_who_it_is_after_all() -> None:
    class Room(Endpoint[str]):
        user: Annotated[str, Depends(lambda: "dependency")]
        override: FromQuery[str | None] = None

        async def authenticate(self, websocket: WebSocket) -> Any:
            return self.override and f"{self.user} {self.override}"

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push(json.dumps(self.user))

    assert shown(Room) == "dependency"
    assert shown(Room, "/ws?override=x") == "dependency x"


def test_identify_outside_of_an_endpoint() -> None:
    with pytest.raises(RuntimeError, match=r"identify\(\) is for dependencies of endpoint classes"):
        asyncio.run(identify(HTTPConnection({"type": "http"})))


# Security


@pytest.mark.parametrize(
    ("scheme", "options", "expected"),
    [
        (OAuth2PasswordBearer("token"), {"headers": {"Authorization": "Bearer x"}}, "x"),
        (HTTPBearer(), {"headers": {"Authorization": "Bearer x"}}, "x"),
        (HTTPBasic(), {"headers": {"Authorization": "Basic YTpi"}}, "a"),
        (APIKeyHeader(name="X-Key"), {"headers": {"X-Key": "x"}}, "x"),
        (APIKeyCookie(name="key"), {"headers": {"Cookie": "key=x"}}, "x"),
        (APIKeyQuery(name="key"), {"url": "/ws?key=x"}, "x"),
    ],
)
@pytest.mark.parametrize("depends", [Depends, fastapi.Depends, fastapi.Security])
def test_fastapis_security(depends: Any, scheme: Any, options: Any, expected: str) -> None:
    def text(found: Annotated[Any, depends(scheme)]) -> str:
        if isinstance(found, HTTPAuthorizationCredentials):
            return found.credentials
        return str(getattr(found, "username", found))

    class Room(Shows):
        value: Annotated[str, depends(text)]

    assert shown(Room, **options) == expected
    denied = refused(application(Room, kind=FastAPI))
    assert (denied.status_code, denied.json()) == (401, {"detail": "Not authenticated"})
    assert "www-authenticate" in denied.headers


def test_scopes() -> None:
    calls: list[str] = []

    def session() -> object:
        calls.append("session")
        return object()

    def user(scopes: SecurityScopes, session: Annotated[Any, Depends(session)]) -> str:
        calls.append("user")
        return f"{scopes.scope_str}"

    def active(user: Annotated[str, fastapi.Security(user, scopes=["me"])]) -> str:
        return user

    class Room(Endpoint):
        a: Annotated[str, fastapi.Security(active, scopes=["items"])]
        b: Annotated[str, fastapi.Security(user, scopes=["items", "me"])]
        c: Annotated[str, fastapi.Depends(user)]

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push([self.a, self.b, self.c])

    assert shown(Room) == ["items me", "items me", ""]
    # Once for each set of scopes; what doesn't look at scopes, once.
    assert sorted(calls) == ["session", "user", "user"]


# Refusals and faults


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(402, "pay"), 402),
        (fastapi.HTTPException(409, "taken"), 409),
        (InvalidToken("no"), 401),
        (BrokerUnavailable("down"), 503),
    ],
)
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_a_dependency_refuses(error: Exception, status: int, kind: type[Starlette]) -> None:
    def fails() -> None:
        raise error

    class Room(Endpoint):
        a: Annotated[None, Depends(fails)]

    assert refused(application(Room, kind=kind)).status_code == status


def test_a_dependency_refuses_with_a_close() -> None:
    async def fails() -> None:
        raise WebSocketException(4001, "no")

    class Room(Endpoint):
        a: Annotated[None, Depends(fails)]

    with pytest.raises(WebSocketDisconnect) as closed:
        TestClient(application(Room)).websocket_connect("/ws").__enter__()
    assert closed.value.code == 4001


def test_a_value_that_can_not_be_used_is_refused_by_name() -> None:
    def inner(x_page: FromHeader[int]) -> int:
        return x_page

    class Room(Endpoint):
        a: Annotated[int, Depends(inner)]
        reject_as = "close"

    client = TestClient(application(Room))
    with (
        client.websocket_connect("/ws", headers={"X-Page": "x"}) as session,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        session.receive_text()
    assert closed.value.code == 4422
    assert closed.value.reason == "header 'x-page' must be an integer"


def test_a_fault_of_a_dependency_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    class Room(Endpoint):
        a: Annotated[None, Depends(fails)]

    with pytest.raises(ZeroDivisionError):
        TestClient(application(Room)).websocket_connect("/ws").__enter__()


# What is opened is closed


class Log(list[Any]):
    """What dependencies have done, in order."""

    def opening(self, name: str) -> Callable[[], AsyncIterator[str]]:
        async def opened() -> AsyncIterator[str]:
            self.append(f"open {name}")
            try:
                yield name
            except BaseException as error:
                self.append(type(error).__name__)
                raise
            finally:
                self.append(f"close {name}")

        return opened

    def opening_in_a_thread(self, name: str) -> Callable[[], Iterator[str]]:
        def opened() -> Iterator[str]:
            self.append(f"open {name}")
            try:
                yield name
            except BaseException as error:
                self.append(type(error).__name__)
                raise
            finally:
                self.append(f"close {name}")

        return opened


@pytest.fixture
def log() -> Log:
    return Log()


def opens(log: Log, **namespace: Any) -> type[Endpoint]:
    class Room(Endpoint):
        encoding = "text"
        a: Annotated[str, Depends(log.opening("a"))]
        b: Annotated[str, Depends(log.opening_in_a_thread("b"))]

        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            log.append(data)
            if data == "fail":
                raise ZeroDivisionError
            if data == "refuse":
                raise WebSocketException(4001)

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            log.append(f"disconnect {close_code}")

    return type("Room", (Room,), namespace)


def test_closed_after_on_disconnect_in_reverse_order(log: Log) -> None:
    with TestClient(application(opens(log))).websocket_connect("/ws") as session:
        session.send_text("hi")
    assert log == ["open a", "open b", "hi", "disconnect 1000", "close b", "close a"]


@pytest.mark.parametrize(
    ("word", "error", "code"),
    [("fail", "ZeroDivisionError", 1011), ("refuse", "WebSocketException", 4001)],
)
def test_the_error_of_a_connection_is_raised_in_them(
    log: Log, word: str, error: str, code: int, edge: Edge
) -> None:
    with live_server(application(opens(log)), **edge) as server:
        with connect(f"{server.ws}/ws") as client:
            client.send(word)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        wait_until(lambda: log[-1] == "close a")
    ends = [f"disconnect {code}", error, "close b", error, "close a"]
    assert log == ["open a", "open b", word, *ends]


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_closed_when_the_handshake_is_refused(log: Log, kind: type[Starlette], edge: Edge) -> None:
    def refuses(b: str = Depends(log.opening_in_a_thread("b"))) -> None:
        raise HTTPException(402)

    class Room(Endpoint):
        a: Annotated[str, Depends(log.opening("a"))]
        c: Annotated[None, Depends(refuses)]

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            log.append("never")

    with live_server(application(Room, kind=kind), **edge) as server:
        with pytest.raises(InvalidStatus) as denied:
            connect(f"{server.ws}/ws").__enter__()
        assert denied.value.response.status_code == 402
    ends = ["HTTPException", "close b", "HTTPException", "close a"]
    assert log == ["open a", "open b", *ends]


def test_what_they_make_of_an_error_says_how_a_handshake_is_refused() -> None:
    async def converting() -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            raise HTTPException(404, "no such room") from None

    class Room(Endpoint):
        a: Annotated[None, Depends(converting)]

        async def authenticate(self, websocket: WebSocket) -> None:
            raise KeyError

    assert refused(application(Room)).status_code == 404


def test_an_error_that_they_swallow_is_still_one() -> None:
    async def swallowing() -> AsyncIterator[None]:
        with suppress(HTTPException):
            yield

    class Room(Endpoint):
        a: Annotated[None, Depends(swallowing)]

        async def authenticate(self, websocket: WebSocket) -> None:
            raise HTTPException(403)

    assert refused(application(Room)).status_code == 403


def test_one_that_fails_to_close_is_a_fault_and_the_others_are_closed(log: Log) -> None:
    async def fails() -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    app = application(opens(log, __annotations__={"c": Annotated[None, Depends(fails)]}))
    with pytest.raises(ZeroDivisionError):
        TestClient(app).websocket_connect("/ws").__enter__().__exit__(None, None, None)
    assert log[-4:] == ["ZeroDivisionError", "close b", "ZeroDivisionError", "close a"]


def test_one_that_closes_too_slowly_is_cancelled(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow() -> AsyncIterator[None]:
        yield
        await asyncio.sleep(3600)

    room = opens(
        log, disconnect_timeout=0.05, __annotations__={"c": Annotated[None, Depends(slow)]}
    )
    TestClient(application(room)).websocket_connect("/ws").__enter__().__exit__(None, None, None)
    assert log[-3:] == ["disconnect 1000", "close b", "close a"]
    assert "Room: closing slow() took more than 0.05 s and was cancelled" in caplog.text


@pytest.mark.parametrize("blocking", [False, True])
def test_the_handshake_ends_in_time(log: Log, blocking: bool, edge: Edge) -> None:
    release = threading.Event()

    async def hangs() -> None:
        await asyncio.sleep(3600)

    def blocks() -> None:
        release.wait(20)

    class Room(Endpoint):
        a: Annotated[str, Depends(log.opening("a"))]
        b: Annotated[None, Depends(blocks if blocking else hangs)]

    app = application(Room)
    app.state.hub = Hub(limits=Limits(handshake_timeout=0.2))
    with live_server(app, **edge) as server:
        with pytest.raises(InvalidStatus) as denied:
            connect(f"{server.ws}/ws").__enter__()
        release.set()
    assert denied.value.response.status_code == 408
    assert log == ["open a", "InvalidHandshake", "close a"]


def test_closed_when_the_server_stops(log: Log, edge: Edge) -> None:
    with (
        live_server(application(opens(log)), **edge) as server,
        connect(f"{server.ws}/ws") as client,
    ):
        client.send("hi")
        wait_until(lambda: "hi" in log)
        server.stop()
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=5)
    assert log[-1] == "close a"
    assert "close b" in log


def test_a_handler_cut_off_is_an_error_for_them(log: Log, edge: Edge) -> None:
    started = threading.Event()

    class Room(Endpoint):
        encoding = "text"
        linger = 0
        a: Annotated[str, Depends(log.opening("a"))]

        async def on_receive(self, websocket: WebSocket, data: str) -> None:
            started.set()
            await asyncio.sleep(3600)

    with live_server(application(Room), **edge) as server:
        with connect(f"{server.ws}/ws") as client:
            client.send("hi")
            assert started.wait(5)
        wait_until(lambda: log[-1] == "close a")
    assert log == ["open a", "WebSocketDisconnect", "close a"]


# In FastAPI, under a prefix, and its start


def test_in_a_router_of_fastapi() -> None:
    def room(room_id: Annotated[int, fastapi.Path(alias="room")], q: str = "none") -> list[Any]:
        return [room_id, q]

    class Room(Shows):
        value: Annotated[list[Any], fastapi.Depends(room)]

    router = fastapi.APIRouter(routes=[WebSocketRoute("/rooms/{room}", Room)])
    app = FastAPI(lifespan=lifespan)
    app.include_router(router, prefix="/v1")
    with TestClient(app) as client, client.websocket_connect("/v1/rooms/7?q=x") as session:
        assert session.receive_json() == [7, "x"]


def test_under_fastapis_decorator_with_dependencies_of_its_router() -> None:
    order: list[str] = []
    router = fastapi.APIRouter(
        prefix="/v1", dependencies=[fastapi.Depends(lambda: order.append("router"))]
    )

    @router.websocket("/rooms/{room}")
    class Room(Shows):
        value: Annotated[str, fastapi.Depends(lambda: order.append("own") or "value")]

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    with TestClient(app) as client, client.websocket_connect("/v1/rooms/a") as session:
        assert session.receive_json() == "value"
    assert order == ["router", "own"]


def test_a_dependencys_user_is_who_others_see(log: Log) -> None:
    class Room(Endpoint[dict[str, str]]):
        user: Annotated[dict[str, str], Depends(lambda: {"name": "ann"})]
        channels = ("room",)
        presence = True

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push([client.user for client in (await self.present()).clients])

    assert shown(Room) == ["ann"]


def test_a_parameter_of_the_path_that_no_route_has() -> None:
    def room(room: FromPath[str]) -> str:
        return room

    def outer(room: Annotated[str, Depends(room)]) -> str:
        return room

    class Room(Shows):
        value: Annotated[str, Depends(outer)]

    app = Starlette(routes=[Mount("/a", routes=[WebSocketRoute("/ws", Room)])], lifespan=lifespan)
    sentence = r"Room.value: room\(room\) is FromPath, but the route '/a/ws' has no \{room\}"
    with pytest.raises(TypeError, match=sentence), TestClient(app):
        pass


def test_a_class_without_dependencies_has_none_of_this() -> None:
    class Room(Shows):
        q: FromQuery[int]

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push([name for name in vars(self) if name in ("_opened", "user")])
            assert "chatserver.endpoint" not in self.scope

    assert shown(Room, "/ws?q=1") == []


# Mistakes


def declare(annotation: Any = None, **namespace: Any) -> type[Endpoint]:
    annotations = {} if annotation is None else {"value": annotation}
    members = {"__module__": __name__, "__annotations__": annotations, **namespace}
    return type("Room", (Endpoint,), members)


@dataclass
class Unhashable:
    a: int = 0

    def __call__(self) -> None: ...


def first_of_circle(value: "Annotated[int, Depends(second_of_circle)]") -> int:
    return value


def second_of_circle(value: Annotated[int, Depends(first_of_circle)]) -> int:
    return value


def positional(value: int, /) -> None: ...


def unresolved(value: int) -> None: ...


unresolved.__annotations__["value"] = "Missing"


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Annotated[int, Depends(cast(Any, 5))], "a dependency must be callable, got 5"),
        (Annotated[int, Depends], r"Room.value: write Depends\(...\), with parentheses"),
        (Annotated[int, fastapi.Security], r"write Security\(...\), with parentheses"),
        (Annotated[int, Depends(Unhashable())], "must be hashable"),
        (Annotated[int, Depends(dict)], "Room.value: dict does not say its parameters"),
        (Annotated[int, Depends(positional)], r"positional\(value\) is positional only"),
        (
            Annotated[int, Depends(first_of_circle)],
            "depends on itself: first_of_circle → second_of_circle → first_of_circle",
        ),
        (Annotated[int, Depends(unresolved)], r"unresolved\(value\): Missing can't be resolved"),
        (
            Annotated[int, fastapi.Depends(real, max_concurrency=3)],
            "Room.value: max_concurrency has no effect here",
        ),
    ],
)
def test_mistakes(annotation: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        declare(annotation)


def test_names_that_are_taken() -> None:
    for name in ("hub", "publish", "identity", "_secret"):
        with pytest.raises(TypeError, match=f"Room.{name} can't be a dependency"):
            declare(__annotations__={name: Annotated[str, Depends(real)]})
    with pytest.raises(TypeError, match=r"Room\.q is a parameter and a dependency"):
        declare(__annotations__={"q": FromQuery[str]}, q=Depends(real))
    with pytest.raises(TypeError, match=r"Room: Annotated\[int, Depends\(nowhere\)\] can't be"):
        declare("Annotated[int, Depends(nowhere)]")


def test_what_a_thread_opens_after_the_handshake_has_ended_is_closed() -> None:
    pool: queue.Queue[str] = queue.Queue()
    pool.put("connection")
    told: list[str] = []

    def pooled() -> Iterator[str]:
        got = pool.get(timeout=30)
        try:
            yield got
        except TimeoutError:
            told.append("rolled back")
            raise
        finally:
            pool.put(got)

    class Pooled(Endpoint):
        db: Annotated[str, Depends(pooled)]

    app = Starlette(routes=[WebSocketRoute("/", Pooled)], lifespan=lifespan)
    app.state.hub = Hub(limits=Limits(handshake_timeout=0.3))
    with TestClient(app) as client:
        with (
            client.websocket_connect("/"),
            pytest.raises(WebSocketDenialResponse),
            client.websocket_connect("/"),
        ):
            pass
        wait_until(lambda: told and pool.qsize())
    assert (told, pool.qsize()) == (["rolled back"], 1)
