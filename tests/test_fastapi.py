"""Endpoint classes in FastAPI: under its own decorators, in routers, with its dependencies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi import Path as InPath
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Router, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import chatserver
from chatserver import Endpoint, FromPath, FromQuery, Hub, Limits, Verifier, lifespan
from chatserver.auth import mint
from chatserver.endpoints.base import RejectAs
from chatserver.testing import live_server, receive
from tests.asgi import Edge, wait_until

SECRET = "correct-horse-battery-staple-0123456789"
TIMEOUT = 5.0

Put = Callable[[FastAPI, str, type[Endpoint]], None]


class Room(Endpoint):
    encoding = "text"
    room: FromPath[str]
    name: FromQuery[str] = "ann"
    channels = ("room:{room}",)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await self.publish(f"{self.name} in {self.room}: {data}")


def by_decorator(app: FastAPI, path: str, cls: type[Endpoint]) -> None:
    assert app.websocket(path)(cls) is cls


def by_method(app: FastAPI, path: str, cls: type[Endpoint]) -> None:
    app.add_api_websocket_route(path, cls)


def by_route(app: FastAPI, path: str, cls: type[Endpoint]) -> None:
    app.router.routes.append(WebSocketRoute(path, cls))


def by_router(app: FastAPI, path: str, cls: type[Endpoint]) -> None:
    router = APIRouter()
    router.websocket(path)(cls)
    app.include_router(router)


def by_prefix(app: FastAPI, path: str, cls: type[Endpoint]) -> None:
    prefix, _, rest = path.rpartition("/")
    inner, outer = APIRouter(prefix=prefix), APIRouter()
    inner.add_api_websocket_route("/" + rest, cls)
    outer.include_router(inner)
    app.include_router(outer)


WAYS = (by_decorator, by_method, by_route, by_router, by_prefix)
PATHS = ("/v1/rooms/kitchen", "/v1/rooms/kitchen?name=bob")


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def put(request: pytest.FixtureRequest) -> Put:
    """Puts a class into an application, in each of the ways that FastAPI has."""
    way: Put = request.param
    return way


def talk(client: TestClient, *paths: str) -> None:
    first, second = paths
    with client.websocket_connect(first) as ann, client.websocket_connect(second) as bob:
        ann.send_text("hi")
        assert [ann.receive_text(), bob.receive_text()] == ["ann in kitchen: hi"] * 2
        bob.send_text("ho")
        assert [ann.receive_text(), bob.receive_text()] == ["bob in kitchen: ho"] * 2


@pytest.mark.parametrize("entered", [True, False])
def test_a_class_is_served(put: Put, entered: bool) -> None:
    app = FastAPI(lifespan=lifespan)
    put(app, "/v1/rooms/{room}", Room)
    client = TestClient(app)
    if not entered:
        talk(client, *PATHS)
        return
    with client:
        talk(client, *PATHS)
        response = client.get("/v1/rooms/kitchen")
        assert response.status_code == 426
        assert "no header 'Upgrade: websocket'" in response.json()["detail"]
        assert app.state.hub.statistics().connections == 0


def test_one_class_under_several_decorators() -> None:
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    @app.websocket("/raum/{room}")
    class Twice(Room):
        pass

    talk(TestClient(app), "/rooms/kitchen", "/raum/kitchen?name=bob")


def test_a_class_with_a_constructor_of_its_own(put: Put) -> None:
    class Counted(Endpoint):
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            super().__init__(scope, receive, send)
            self.count = 0

        async def on_receive(self, websocket: WebSocket, data: str) -> Any:
            self.count += 1
            return str(self.count)

    app = FastAPI()
    put(app, "/count", Counted)
    with TestClient(app).websocket_connect("/count") as session:
        session.send_text("x")
        session.send_text("x")
        assert [session.receive_text(), session.receive_text()] == ["1", "2"]


def test_parameters_called_as_fastapi_calls_things(put: Put) -> None:
    class Named(Endpoint):
        websocket: FromQuery[str]
        request: FromQuery[int]

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push(f"{self.websocket} {self.request}")

    app = FastAPI()
    put(app, "/", Named)
    with TestClient(app).websocket_connect("/?websocket=a&request=7") as session:
        assert session.receive_text() == "a 7"


class Number(Endpoint):
    n: FromPath[int]

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(str(self.n % 10))


def test_a_number_with_more_digits_than_python_converts_is_not_found(put: Put) -> None:
    app = FastAPI(lifespan=lifespan)
    put(app, "/numbers/{n:int}", Number)
    with TestClient(app) as client:
        assert told(client, f"/numbers/{'9' * 4301}") == (1000, "")
        assert client.get(f"/numbers/{'9' * 4301}").status_code == 404
        with client.websocket_connect(f"/numbers/{'9' * 4300}") as session:
            assert session.receive_text() == "9"


# Refusals and ends


class Strict(Endpoint):
    encoding = "text"
    q: FromQuery[int | None] = None
    then: FromQuery[str] = ""
    ended: ClassVar[list[int]] = []

    async def authenticate(self, websocket: WebSocket) -> None:
        if self.then == "teapot":
            raise HTTPException(418, "no coffee", headers={"x-pot": "tea"})

    async def on_connect(self, websocket: WebSocket) -> None:
        if self.then == "close":
            await websocket.close(4000)
        else:
            await websocket.accept()

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        if data == "fault":
            raise ZeroDivisionError
        if data == "close":
            await websocket.close(4001)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        self.ended.append(close_code)


REFUSALS = ("q=x", "then=teapot", "then=close")


def told(client: TestClient, path: str) -> tuple[object, ...]:
    """What a client is told: status, body and headers, or the code and reason of a close."""
    try:
        with client.websocket_connect(path) as session:
            event = receive(session)
            return event["code"], event["reason"]
    except WebSocketDenialResponse as refusal:
        return refusal.status_code, refusal.text, dict(refusal.headers)
    except WebSocketDisconnect as refusal:
        return refusal.code, refusal.reason


@pytest.mark.parametrize("how", ["http", "close", "policy"])
def test_a_handshake_is_refused_as_in_a_route_of_starlette(
    put: Put, how: RejectAs, caplog: pytest.LogCaptureFixture
) -> None:
    cls = type("Strict", (Strict,), {"reject_as": how, "__module__": __name__})
    app, plain = FastAPI(), FastAPI(routes=[WebSocketRoute("/x", cls)])
    put(app, "/x", cls)
    for query in REFUSALS:
        caplog.clear()
        expected = told(TestClient(plain), f"/x?{query}")
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        assert told(TestClient(app), f"/x?{query}") == expected
        assert [record.getMessage() for record in caplog.records] == lines
        assert len(lines) == 1


def test_a_refusal_keeps_its_headers(put: Put) -> None:
    app = FastAPI()
    put(app, "/x", Strict)
    status, body, headers = told(TestClient(app), "/x?then=teapot")
    assert (status, body) == (418, '{"detail":"no coffee"}')
    assert isinstance(headers, dict)
    assert headers["x-pot"] == "tea"


def test_refusals_on_a_server(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/x")(Strict)
    with live_server(app, **edge) as server:
        for query, status in zip(REFUSALS, (422, 418, 403), strict=True):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"{server.ws}/x?{query}").__enter__()
            assert refused.value.response.status_code == status
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("message", "code", "seen"), [("fault", 1011, 1011), ("close", 4001, 4001), ("", 4002, 4002)]
)
def test_the_end_has_one_code_for_both_sides(
    edge: Edge, message: str, code: int, seen: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/x")(Strict)
    Strict.ended.clear()
    with live_server(app, **edge) as server:
        with connect(f"{server.ws}/x") as client:
            if message:
                client.send(message)
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=TIMEOUT)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == code
            else:
                client.close(code)
        wait_until(lambda: Strict.ended == [seen])
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == (message == "fault")


def test_a_stopping_server_tells_the_class(edge: Edge) -> None:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/x")(Strict)
    Strict.ended.clear()
    with live_server(app, **edge) as server, connect(f"{server.ws}/x") as client:
        server.stop()
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=TIMEOUT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    wait_until(lambda: Strict.ended == [1012])


# Dependencies of a route and of its routers


def test_dependencies_of_the_route_and_its_routers() -> None:
    done: list[str] = []

    def opened(name: str) -> Callable[..., AsyncIterator[None]]:
        async def dependency(n: Annotated[int, InPath()]) -> AsyncIterator[None]:
            done.append(f"open {name} {n}")
            try:
                yield
            finally:
                done.append(f"close {name}")

        return dependency

    router = APIRouter(prefix="/numbers", dependencies=[Depends(opened("router"))])
    router.websocket("/{n}", dependencies=[Depends(opened("route"))])(Number)
    app = FastAPI(dependencies=[Depends(opened("application"))])
    app.include_router(router, dependencies=[Depends(opened("inclusion"))])
    with TestClient(app).websocket_connect("/numbers/7") as session:
        assert session.receive_text() == "7"
        assert [line.split()[0] for line in done] == ["open"] * 4
    names = ["application", "inclusion", "router", "route"]
    assert done[:4] == [f"open {name} 7" for name in names]
    assert done[4:] == [f"close {name}" for name in reversed(names)]


def only_with_key(key: Annotated[str, Query()]) -> None:
    if key != "open":
        raise HTTPException(401, "the wrong key", headers={"x-key": "no"})


def test_a_dependency_refuses_and_is_overridden() -> None:
    app = FastAPI()
    app.websocket("/numbers/{n}", dependencies=[Depends(only_with_key)])(Number)
    client = TestClient(app)
    status, body, headers = told(client, "/numbers/7?key=shut")
    assert (status, body) == (401, '{"detail":"the wrong key"}')
    assert isinstance(headers, dict)
    assert headers["x-key"] == "no"
    assert told(client, "/numbers/7")[0] == 1008  # FastAPI's own check of its parameters
    app.dependency_overrides[only_with_key] = lambda: None
    with client.websocket_connect("/numbers/7?key=shut") as session:
        assert session.receive_text() == "7"


async def accept(websocket: WebSocket) -> None:
    await websocket.accept()


async def close(websocket: WebSocket) -> None:
    await websocket.close(1008)


@pytest.mark.parametrize("early", [accept, close])
def test_a_dependency_must_not_accept_or_close(
    early: Callable[..., Any], edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/x", dependencies=[Depends(early)])(Strict)
    with (
        live_server(app, **edge) as server,
        pytest.raises((ConnectionClosed, InvalidStatus)) as ended,
        connect(f"{server.ws}/x") as client,
    ):
        client.recv(timeout=TIMEOUT)
    assert isinstance(ended.value, ConnectionClosed if early is accept else InvalidStatus)
    (fault,) = [record for record in caplog.records if record.exc_info]
    assert fault.exc_info is not None
    assert "Strict must get its connection before a dependency" in str(fault.exc_info[1])


# Applications and what is around them


class Whoami(Endpoint):
    async def authenticate(self, websocket: WebSocket) -> object:
        return await self.identify(websocket)

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(self.user.user)


class InATask:
    """A middleware that calls the next application in a task of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(self._serve(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def starlette_outside(app: FastAPI, path: str) -> Starlette:
    app.websocket(path)(Whoami)
    return Starlette(routes=[Mount("/out", app)], lifespan=lifespan)


def fastapi_outside(app: FastAPI, path: str) -> Starlette:
    app.websocket(path)(Whoami)
    outer = FastAPI(lifespan=lifespan)
    outer.mount("/out", app)
    return outer


def starlette_inside(app: FastAPI, path: str) -> Starlette:
    app.mount("/out", Starlette(routes=[WebSocketRoute(path, Whoami)]))
    app.router.lifespan_context = lifespan
    return app


def router_inside(app: FastAPI, path: str) -> Starlette:
    app.mount("/out", Router([WebSocketRoute(path, Whoami)]))
    app.router.lifespan_context = lifespan
    return app


def included_router_inside(app: FastAPI, path: str) -> Starlette:
    inner = FastAPI()
    inner.websocket(path)(Whoami)
    router = APIRouter()
    router.mount("/", inner)
    app.include_router(router, prefix="/out")
    app.router.lifespan_context = lifespan
    return app


NESTS = (
    *(starlette_outside, fastapi_outside, starlette_inside, router_inside),
    *(included_router_inside,),
)


@pytest.mark.parametrize("nest", NESTS, ids=lambda nest: nest.__name__)
def test_the_outermost_application_says_what_holds_within(
    nest: Callable[[FastAPI, str], Starlette],
) -> None:
    inner = FastAPI()
    inner.add_middleware(CORSMiddleware, allow_origins=["*"])
    app = nest(inner, "/who")
    app.state.verifier = Verifier(secret=SECRET)
    token = mint(SECRET, user="ann", ttl_seconds=60)
    for root in ("", "/proxied"):
        with TestClient(app, root_path=root) as client:
            with client.websocket_connect(f"{root}/out/who?token={token}") as session:
                assert session.receive_text() == "ann"
            assert told(client, f"{root}/out/who?token=x")[0] == 401
            assert client.get(f"{root}/out/who").status_code == 426
            assert client.get(f"{root}/out/other").status_code == 404


def test_behind_middleware(edge: Edge) -> None:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/v1/rooms/{room}")(Room)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(GZipMiddleware)
    app.add_middleware(InATask)

    @app.middleware("http")
    async def marked(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-marked"] = "yes"
        return response

    with live_server(app, **edge, root_path="/api") as server:
        url = f"{server.ws}{PATHS[0]}"
        with connect(url) as ann, connect(f"{url}?name=bob") as bob:
            bob.send("hi")
            assert ann.recv(timeout=TIMEOUT) == bob.recv(timeout=TIMEOUT) == "bob in kitchen: hi"


# Lifespans


def limited(own: Callable[[Any], Any] | None = None) -> FastAPI:
    """An application whose hub takes messages of 5 bytes at most."""
    app = FastAPI(lifespan=own)
    app.websocket("/x")(Strict)
    app.state.hub = Hub(limits=Limits(max_message_size=5))
    return app


@asynccontextmanager
async def handing_on(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with chatserver.lifespan(app) as state:
        yield {**state, "mine": 1}


@asynccontextmanager
async def forgetful(app: FastAPI) -> AsyncIterator[None]:
    async with chatserver.lifespan(app):
        yield


@asynccontextmanager
async def without_ours(app: FastAPI) -> AsyncIterator[None]:
    yield


def by_a_router() -> FastAPI:
    app = limited(without_ours)
    app.include_router(APIRouter(lifespan=lifespan))
    return app


def untold(app: FastAPI, caplog: pytest.LogCaptureFixture, edge: Edge) -> list[str]:
    """What the log says of limits that the server doesn't know, after two connections."""
    with live_server(app, **edge) as server:
        for _ in range(2):
            with connect(f"{server.ws}/x") as client:
                client.send("close")
                with pytest.raises(ConnectionClosed):
                    client.recv(timeout=TIMEOUT)
    lines = [record.getMessage() for record in caplog.records if record.name == "chatserver"]
    return [line for line in lines if "has the default limits" in line]


@pytest.mark.parametrize(
    "make", [lambda: limited(lifespan), lambda: limited(handing_on), by_a_router]
)
def test_the_server_is_told_of_the_limits(
    make: Callable[[], FastAPI], edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    assert untold(make(), caplog, edge) == []


@pytest.mark.parametrize("own", [None, forgetful, without_ours])
def test_the_log_says_once_that_the_server_does_not_know_the_limits(
    own: Callable[[Any], Any] | None, edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    lines = untold(limited(own), caplog, edge)
    assert len(lines) == (edge["ws"] != "auto")  # uvicorn's own takes its limits from nowhere
    assert all("async with chatserver.lifespan(app) as state:" in line for line in lines)


def test_default_limits_need_no_lifespan(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    app = limited()
    del app.state.hub
    assert untold(app, caplog, edge) == []


def test_lifespans_of_routers_are_merged() -> None:
    done = []

    @asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        done.append("opened")
        yield {"mine": 1}
        done.append("closed")

    app = limited(lifespan)
    app.include_router(APIRouter(lifespan=own))
    with TestClient(app) as client:
        assert client.app_state["mine"] == 1
        assert done == ["opened"]
    assert done == ["opened", "closed"]


def test_the_http_routes_of_what_a_router_mounts_have_the_hub() -> None:
    inner, router, app = FastAPI(), APIRouter(), FastAPI(lifespan=lifespan)
    router.mount("/inner", inner)
    app.include_router(router)
    with TestClient(app):
        assert inner.state.hub is app.state.hub
