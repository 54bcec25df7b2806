"""The routes to endpoints: found wherever they are mounted, and checked at the start."""

import abc
from collections.abc import Callable
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatserver import EchoEndpoint, Endpoint, FromPath, Identity, identify, lifespan
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


def test_an_abstract_class_can_not_be_served() -> None:
    class Abstract(Endpoint, abc.ABC):
        @abc.abstractmethod
        async def rules(self) -> None: ...

    message = r"the route '/a' leads to Abstract, which is abstract; it lacks 'rules'"
    with pytest.raises(TypeError, match=message):
        check_routes([WebSocketRoute("/a", Abstract)])


def test_the_parameter_may_be_in_a_mount() -> None:
    check_routes([Mount("/{item_id}", routes=[WebSocketRoute("/ws", Item)])])
    message = r"Item.item_id is FromPath, but the route '/\{other\}/ws' has no \{item_id\}"
    with pytest.raises(TypeError, match=message):
        check_routes([Mount("/{other}", routes=[WebSocketRoute("/ws", Item)])])


def test_the_routes_of_included_routers_are_found_with_their_whole_paths() -> None:
    inner = APIRouter(prefix="/inner")
    inner.add_api_websocket_route("/{item_id:int}", Item)
    inner.mount("/mounted", Starlette(routes=[WebSocketRoute("/{item_id}", Item)]))
    outer = APIRouter(prefix="/outer", routes=[WebSocketRoute("/handed-in", EchoEndpoint)])
    outer.websocket("/decorated")(EchoEndpoint)
    outer.add_api_route("/page", lambda: "no endpoint")
    outer.include_router(inner, prefix="/between")
    outer.host("{host}.example.org", Router([WebSocketRoute("/hosted", EchoEndpoint)]))
    app = FastAPI()
    app.include_router(outer, prefix="/{team}")
    mounted = Starlette(routes=[Mount("/api/{v:int}", app)])
    found = [(each.path, sorted(each.convertors)) for each in endpoint_routes(mounted.routes)]
    assert found == [
        ("/api/{v}/{team}/handed-in", ["team", "v"]),
        ("/api/{v}/{team}/outer/decorated", ["team", "v"]),
        ("/api/{v}/{team}/outer/between/inner/{item_id}", ["item_id", "team", "v"]),
        ("/api/{v}/{team}/outer/between/mounted/{item_id}", ["item_id", "team", "v"]),
        ("/api/{v}/{team}/hosted", ["host", "team", "v"]),
    ]


def test_an_included_route_without_the_parameter_is_an_error_at_the_start() -> None:
    router = APIRouter(prefix="/items")
    router.add_api_websocket_route("/{other}", Item)
    app = FastAPI(lifespan=lifespan)
    app.include_router(router, prefix="/v1")
    message = r"Item.item_id is FromPath, but the route '/v1/items/\{other\}' has no \{item_id\}"
    with pytest.raises(TypeError, match=message), TestClient(app):
        pass


def test_the_parameter_may_be_in_the_prefix_of_a_router() -> None:
    router = APIRouter()
    router.add_api_websocket_route("/ws", Item)
    app = FastAPI()
    app.include_router(router, prefix="/{item_id}")
    check_routes(app.routes)


async def user_name(identity: Annotated[Identity, Depends(identify)]) -> str:
    return identity.user


class Secret(Endpoint):
    user: Annotated[str, Depends(user_name)]


NEEDS_USER = [Depends(user_name)]


def of_application(cls: type[Endpoint]) -> FastAPI:
    app = FastAPI(dependencies=NEEDS_USER, lifespan=lifespan)
    app.websocket("/secret")(cls)
    return app


def of_route(cls: type[Endpoint]) -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.websocket("/secret", dependencies=[Depends(identify)])(cls)
    return app


def of_router(cls: type[Endpoint]) -> FastAPI:
    router, outer = APIRouter(dependencies=NEEDS_USER), APIRouter()
    router.websocket("/secret")(cls)
    outer.include_router(router)
    app = FastAPI(lifespan=lifespan)
    app.include_router(outer)
    return app


def of_inclusion(cls: type[Endpoint]) -> FastAPI:
    router = APIRouter()
    router.websocket("/secret")(cls)
    app = FastAPI(lifespan=lifespan)
    app.include_router(router, dependencies=NEEDS_USER)
    return app


@pytest.mark.parametrize("make", [of_application, of_route, of_router, of_inclusion])
def test_who_is_identified_before_there_is_an_endpoint_is_an_error_at_the_start(
    make: Callable[[type[Endpoint]], FastAPI],
) -> None:
    message = (
        r"a dependency of the route '/secret' calls identify\(\), which needs Secret: "
        r"make it an attribute of that class"
    )
    with pytest.raises(TypeError, match=message), TestClient(make(Secret)):
        pass


def test_who_is_identified_by_an_attribute_of_the_class_is_fine() -> None:
    app = FastAPI(dependencies=[Depends(lambda: None)])
    app.websocket("/secret")(Secret)
    check_routes(app.routes)
