"""The routes to endpoints: found wherever they are mounted, and checked at the start."""

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatserver import EchoEndpoint, Endpoint, FromPath, lifespan
from chatserver.endpoints.routes import check_routes, endpoint_routes


class Item(Endpoint):
    item_id: FromPath[str]


async def function(websocket: WebSocket) -> None:
    """No endpoint."""


def test_routes_are_found_wherever_they_are_mounted() -> None:
    routes = [
        WebSocketRoute("/ws", EchoEndpoint),
        WebSocketRoute("/function", function),
        Route("/page", function),
        Mount("/shops/{shop:int}", Starlette(routes=[WebSocketRoute("/items/{item_id}", Item)])),
        Host("{team}.example.org", Router([Mount("/v1", routes=[WebSocketRoute("/{x}", Item)])])),
    ]
    found = [
        (each.endpoint, each.path, sorted(each.convertors)) for each in endpoint_routes(routes)
    ]
    assert found == [
        (EchoEndpoint, "/ws", []),
        (Item, "/shops/{shop}/items/{item_id}", ["item_id", "shop"]),
        (Item, "/v1/{x}", ["team", "x"]),
    ]


def test_routes_without_the_parameter_are_an_error_at_the_start() -> None:
    message = r"Item.item_id is FromPath, but the route '/items' has no \{item_id\}"
    with pytest.raises(TypeError, match=message):
        check_routes([WebSocketRoute("/items", Item)])
    with (
        pytest.raises(TypeError, match=message),
        TestClient(Starlette(routes=[WebSocketRoute("/items", Item)], lifespan=lifespan)),
    ):
        pass


def test_the_parameter_may_be_in_a_mount() -> None:
    check_routes([Mount("/{item_id}", routes=[WebSocketRoute("/ws", Item)])])
    message = r"Item.item_id is FromPath, but the route '/\{other\}/ws' has no \{item_id\}"
    with pytest.raises(TypeError, match=message):
        check_routes([Mount("/{other}", routes=[WebSocketRoute("/ws", Item)])])


@pytest.mark.parametrize("way", ["decorator", "method", "router"])
def test_a_class_under_fastapis_own_websocket_is_an_error_at_the_start(way: str) -> None:
    app = FastAPI(lifespan=lifespan)
    if way == "decorator":
        app.websocket("/live")(EchoEndpoint)
    elif way == "method":
        app.add_api_websocket_route("/live", EchoEndpoint)
    else:
        app.router.websocket("/live")(EchoEndpoint)
    words = r"EchoEndpoint is a class, .* write routes=\[WebSocketRoute\('/live', EchoEndpoint\)\]"
    with pytest.raises(TypeError, match=words), TestClient(app):
        pass
