"""What we take from the insides of others, each by its name, so that a breaking upgrade shows."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

from chatserver import EchoEndpoint, Endpoint
from chatserver.endpoints import internals
from chatserver.server import uvicorn_, websockets_

# Starlette


async def nothing() -> Message:
    return {"type": "websocket.connect"}


async def drop(message: Message) -> None:
    pass


def test_an_application_leaves_its_exception_handlers_in_the_scope() -> None:
    seen: list[bool] = []

    async def look(websocket: WebSocket) -> None:
        seen.append(internals.has_handlers(websocket.scope))
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", look)])
    with pytest.raises(WebSocketDisconnect), TestClient(app).websocket_connect("/"):
        pass
    assert seen == [True]
    assert not internals.has_handlers({"type": "websocket"})


def test_answer_by_handlers() -> None:
    async def refuse(websocket: WebSocket) -> None:
        error = HTTPException(418, "no coffee", headers={"x-pot": "tea"})
        await internals.answer_by_handlers(websocket, error, websocket._send)

    app = Starlette(routes=[WebSocketRoute("/", refuse)])
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        TestClient(app).websocket_connect("/"),
    ):
        pass
    assert (refusal.value.status_code, refusal.value.text) == (418, "no coffee")
    assert refusal.value.headers["x-pot"] == "tea"


def test_outer_applications() -> None:
    seen: list[tuple[Starlette, ...] | None] = []

    async def look(websocket: WebSocket) -> None:
        seen.append(internals.outer_applications(websocket.scope))
        await websocket.close()

    inner = Starlette(routes=[WebSocketRoute("/", look)])
    middle = Starlette(routes=[Mount("/b", inner)])
    outer = Starlette(routes=[Mount("/a", middle), WebSocketRoute("/", look)])
    for path in ("/", "/a/b/"):
        with pytest.raises(WebSocketDisconnect), TestClient(outer).websocket_connect(path):
            pass
    assert seen == [(), (middle, outer)]


def test_router_within() -> None:
    inner, middleware = Starlette(), [Middleware(GZipMiddleware)]
    assert internals.router_within(Mount("/a", inner)) is inner.router
    assert internals.router_within(Mount("/a", inner, middleware=middleware)) is inner.router
    assert internals.router_within(Host("a", inner)) is inner.router
    routes = [WebSocketRoute("/b", inner)]
    within = internals.router_within(Mount("/a", routes=routes, middleware=middleware))
    assert within is not None
    assert within.routes == routes
    assert internals.router_within(Mount("/a", PlainTextResponse("x"))) is None
    assert internals.router_within(routes[0]) is None


def test_asgi_of() -> None:
    scope = {"type": "websocket", "headers": []}
    assert internals.asgi_of(WebSocket(scope, nothing, drop)) == (scope, nothing, drop)


def test_departures() -> None:
    """Once the client is gone a send raises one of them, the first time and ever after."""

    async def gone(message: Message) -> None:
        if message["type"] == "websocket.send":
            raise OSError

    async def main() -> list[bool]:
        websocket = WebSocket({"type": "websocket", "headers": []}, nothing, gone)
        await websocket.accept()
        raised = []
        for _ in range(3):
            try:
                await websocket.send_text("x")
            except internals.DEPARTURES:
                raised.append(True)
        return raised

    assert asyncio.run(main()) == [True] * 3


# FastAPI


def test_each_route() -> None:
    """A router that was included has one route here, but gives all of its own, and keeps them."""
    inner = APIRouter(prefix="/inner", routes=[Mount("/mount", Starlette())])
    inner.add_api_websocket_route("/api", EchoEndpoint)
    inner.add_api_route("/page", lambda: "page")
    outer = APIRouter(routes=[WebSocketRoute("/plain", EchoEndpoint)])
    outer.include_router(inner)
    app = FastAPI(openapi_url=None)
    app.include_router(outer, prefix="/v1")
    found = list(internals.each_route(app.routes))
    paths = [route.path for route in found if isinstance(route, WebSocketRoute | Mount)]
    assert paths == ["/v1/plain", "/v1/mount", "/v1/inner/api"]
    assert len(found) == 4
    assert all(a is b for a, b in zip(found, internals.each_route(app.routes), strict=True))


def test_called_before() -> None:
    """A route knows the dependencies of all around it, and theirs."""

    def inner() -> None: ...
    def outer(value: Annotated[None, Depends(inner)]) -> None: ...
    def last() -> None: ...

    router = APIRouter(dependencies=[Depends(outer)])
    router.websocket("/", dependencies=[Depends(last)])(EchoEndpoint)
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    (route,) = internals.each_route(app.routes)
    assert set(internals.called_before(route)) == {inner, outer, last}
    assert list(internals.called_before(WebSocketRoute("/", EchoEndpoint))) == []


@pytest.mark.parametrize("call", ["decorator", "method"])
def test_what_fastapi_calls_a_class_with(call: str) -> None:
    seen: list[object] = []

    class Look:
        __signature__ = Endpoint.__signature__

        def __new__(cls, **arguments: WebSocket) -> Any:
            seen.append(arguments)
            return arguments["websocket"].close()

    app = FastAPI()
    if call == "decorator":
        app.websocket("/")(Look)
    else:
        app.add_api_websocket_route("/", Look)
    with pytest.raises(WebSocketDisconnect), TestClient(app).websocket_connect("/"):
        pass
    (arguments,) = seen
    assert isinstance(arguments, dict)
    assert list(arguments) == ["websocket"]
    assert isinstance(arguments["websocket"], WebSocket)


# uvicorn


def test_config_and_server_state() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    config = uvicorn_.Config(app, log_config=None, root_path="/x", ws_max_size=7, lifespan="off")
    assert (config.root_path, config.ws_max_size) == ("/x", 7)
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (20.0, 20.0)
    config.load()
    assert config.asgi_version == "3.0"
    assert config.loaded_app is not None
    assert config.ws_protocol_class is not None
    state = uvicorn_.ServerState()
    assert (state.connections, state.tasks, state.default_headers) == (set(), set(), [])


@pytest.mark.parametrize("name", ["H11Protocol", "HttpToolsProtocol"])
def test_the_http_protocols_are_made_alike(name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    async def main() -> Any:
        config = uvicorn_.Config(app, log_config=None)
        config.load()
        protocol = getattr(uvicorn_, name)(config, uvicorn_.ServerState(), {})
        assert not uvicorn_.is_full(protocol)
        return protocol

    protocol = asyncio.run(main())
    for method in ("connection_made", "data_received", "eof_received", "connection_lost"):
        assert callable(getattr(protocol, method))


def test_http_tools_protocol() -> None:
    """What `requests` overrides and calls."""
    for name in (
        *("on_body", "on_headers_complete", "resume_writing", "send_400_response", "shutdown"),
        *("_should_upgrade", "_unset_keepalive_if_required", "_unsupported_upgrade_warning"),
    ):
        assert callable(getattr(uvicorn_.HttpToolsProtocol, name)), name


def test_request_response_cycle() -> None:
    source = inspect.getsource(uvicorn_.RequestResponseCycle.__init__)
    for name in ("disconnected", "response_complete"):
        assert f"self.{name} = False" in source


def test_multiprocess() -> None:
    """What `processes` overrides and calls."""
    source = inspect.getsource(uvicorn_.Multiprocess)
    for name in ("init_processes", "keep_subprocess_alive", "run"):
        assert callable(getattr(uvicorn_.Multiprocess, name)), name
    for name in ("hup", "term", "ttin", "ttou"):
        assert callable(getattr(uvicorn_.Multiprocess, f"handle_{name}")), name
    for name in ("processes: list", "processes_num =", "should_exit =", "sockets =", "config ="):
        assert f"self.{name}" in source
    assert "self.should_exit.wait" in source
    assert "self.keep_subprocess_alive()" in source


def test_process() -> None:
    """The same, of a worker."""
    for name in ("target", "start", "is_alive", "kill", "pid", "exitcode"):
        assert hasattr(uvicorn_.Process, name), name
    source = inspect.getsource(uvicorn_.Process)
    assert "self._server: Server | None = None" in source
    assert "if self._server is None:" in source
    assert "self.process = get_subprocess(config, self.target, sockets)" in source


def test_server() -> None:
    for name in ("run", "startup", "shutdown"):
        assert callable(getattr(uvicorn_.Server, name)), name
    assert "await self.shutdown(sockets=sockets)" in inspect.getsource(uvicorn_.Server)


def test_is_full() -> None:
    class Flow:
        write_paused = True

    class Protocol:
        flow = Flow()

    assert uvicorn_.is_full(Protocol())
    assert not uvicorn_.is_full(object())


def test_has_httptools() -> None:
    assert uvicorn_.HAS_HTTPTOOLS


# websockets


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        (
            "permessage-deflate",
            ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", 15),
        ),
        ("x-unknown, permessage-deflate; bad", ("", 0)),
        ("permessage-deflate; server_max_window_bits=8", ("", 0)),
    ],
)
def test_negotiate(offers: str, agreed: tuple[str, int]) -> None:
    assert websockets_.negotiate(offers) == agreed


def test_negotiate_refuses_what_is_no_list_of_extensions() -> None:
    with pytest.raises(ValueError, match=r".+"):
        websockets_.negotiate("=;,")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "host"), [({"host": "127.0.0.1"}, "127.0.0.1"), ({"uds": "/run/a"}, None)]
)
async def test_host_of_server(options: dict[str, Any], host: str | None) -> None:
    seen: list[str | None] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        seen.append(uvicorn_.host_of_server())
        yield

    lifespan_of_uvicorn = LifespanOn(
        Config(Starlette(lifespan=lifespan), log_config=None, **options)
    )
    await lifespan_of_uvicorn.startup()
    await lifespan_of_uvicorn.shutdown()
    assert seen == [host]
    assert uvicorn_.host_of_server() is None
