"""An application with endpoints of every kind, which the try-it page is tried on."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import (
    OPEN_MODE,
    Endpoint,
    FromCookie,
    FromHeader,
    FromPath,
    FromQuery,
    ItemEndpoint,
    Message,
    docs_routes,
    lifespan,
    on_message,
)


class Place(Struct):
    city: str
    zip_code: str | None = None


class Order(Message):
    """Orders something. `count` is how many."""

    name: Annotated[str, Meta(min_length=2)]
    count: Annotated[int, Meta(ge=1)]
    size: Literal["small", "large"]
    gift: bool
    to: Place
    tags: tuple[str, ...] = ()
    note: str | None = None


class Who(Message):
    """Asks who is there."""


class Ordered(Message):
    order: dict[str, Any]


class Shop(Endpoint):
    """A shop that takes orders.

    It answers each with what it understood.
    """

    shop: FromPath[str]
    limit: FromQuery[Annotated[int, Meta(ge=1)] | None] = None
    x_trace: FromHeader[str | None] = None
    theme: FromCookie[str | None] = None
    channels = ("shop:{shop}",)

    @on_message
    async def order(self, websocket: WebSocket, message: Order) -> Ordered:
        return Ordered(order=msgspec.to_builtins(message))

    @on_message
    async def who(self, websocket: WebSocket, message: Who) -> None:
        await websocket.close(4404, "nobody is here")


class Bytes(Endpoint):
    encoding = "bytes"

    async def on_receive(self, websocket: WebSocket, data: bytes) -> Any:
        return bytes(reversed(data))


class Flood(Endpoint):
    """Sends as many texts as it is told, and then `done`."""

    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        if data.isdigit():
            for number in range(int(data)):
                await self.push(f"frame {number}")
            await self.push("done")
        else:
            await self.push(data)


class News(Endpoint):
    """Publishes what it is sent; a client that comes back gets what it missed."""

    encoding = "json"
    channels = ("news",)
    recover = True

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.publish(data)


app = Starlette(
    routes=[
        WebSocketRoute("/shops/{shop}", Shop),
        WebSocketRoute("/bytes", Bytes),
        WebSocketRoute("/flood", Flood),
        WebSocketRoute("/news", News),
        Mount("/more", Starlette(routes=[WebSocketRoute("/items/{item_id}/ws", ItemEndpoint)])),
    ],
    lifespan=lifespan,
)
app.state.verifier = OPEN_MODE
app.router.routes.extend(docs_routes(app))

empty = Starlette()
empty.router.routes.extend(docs_routes(empty))


async def below(scope: Any, receive: Any, send: Any) -> None:
    """The application as behind a proxy that serves it below `/below`."""
    await app({**scope, "root_path": "/below"}, receive, send)
