"""A plain request for the path of a WebSocket."""

import socket

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatserver import EchoEndpoint, lifespan
from chatserver.app import create_app
from chatserver.endpoints.plain import answer_plain_requests
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests.asgi import Edge


async def hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


ECHO = WebSocketRoute("/ws/{name}", EchoEndpoint)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/ws", "/ws/7", "/items/foo/ws"])
def test_the_ready_application_asks_for_an_upgrade(method: str, path: str) -> None:
    response = TestClient(create_app(Settings())).request(method, path)
    assert response.status_code == 426
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["connection"] == "Upgrade"
    assert "a proxy has taken it away" in response.text or method == "HEAD"


def test_what_is_nowhere_stays_so() -> None:
    client = TestClient(create_app(Settings()))
    assert client.get("/nothing").status_code == 404
    assert client.get("/").status_code == 200


def test_mounted_routes_and_applications_are_followed() -> None:
    inner = Starlette(routes=[ECHO])
    routes = [
        Mount("/app", inner),
        Mount("/routes", routes=[ECHO]),
        Mount("/router", Router([ECHO])),
        Mount("/plain", PlainTextResponse("other")),
        Route("/ws/both", hello),
        ECHO,
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    with TestClient(app) as client:
        for prefix in ("", "/app", "/routes", "/router"):
            assert client.get(f"{prefix}/ws/a").status_code == 426
            assert client.get(f"{prefix}/w/a").status_code == 404
        assert client.get("/ws/both").text == "hello"
        assert client.get("/plain/ws/a").text == "other"
        with client.websocket_connect("/app/ws/a") as session:
            session.send_text("hi")
            assert session.receive_text() == "Message text was: hi"


def test_in_fastapi_as_json() -> None:
    app = FastAPI(routes=[ECHO], lifespan=lifespan)

    @app.websocket("/own")
    async def own(websocket: WebSocket) -> None:
        await websocket.accept()

    router = APIRouter(prefix="/more")
    router.add_api_websocket_route("/own", own)
    app.include_router(router)
    with TestClient(app) as client:
        for path in ("/ws/a", "/own", "/more/own"):
            response = client.get(path)
            assert response.status_code == 426
            assert "Upgrade: websocket" in response.json()["detail"]
        assert client.get("/nothing").status_code == 404


def test_what_an_included_router_mounts_is_followed() -> None:
    router = APIRouter()
    router.mount("/app", Starlette(routes=[ECHO]))
    app = FastAPI(lifespan=lifespan)
    app.include_router(router, prefix="/v1")
    with TestClient(app) as client:
        assert client.get("/v1/app/ws/a").status_code == 426
        assert client.get("/v1/app/w/a").status_code == 404


def test_a_number_that_python_does_not_convert_is_not_found() -> None:
    async def own(websocket: WebSocket) -> None:
        await websocket.accept()

    router = APIRouter(prefix="/more")
    router.add_api_websocket_route("/{n:int}", own)
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/more/7").status_code == 426
        assert client.get(f"/more/{'9' * 5000}").status_code == 404


def test_to_prepare_an_application_twice_changes_nothing() -> None:
    app = Starlette(routes=[ECHO])
    answer_plain_requests(app)
    prepared = app.router.default
    answer_plain_requests(app)
    assert app.router.default is prepared


def test_on_a_real_server_the_connection_is_of_use_afterwards(edge: Edge) -> None:
    with (
        live_server(create_app(Settings()), **edge) as server,
        socket.create_connection(("127.0.0.1", server.port), 5) as client,
    ):
        for _ in range(2):
            client.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"taken it away."):
                received = client.recv(4096)
                assert received, answer
                answer += received
            assert answer.startswith(b"HTTP/1.1 426 ")
