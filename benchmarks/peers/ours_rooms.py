"""Our classes in many rooms: each client in one of them, or in fifty at once."""

from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, lifespan

ROOMS = 50
SHARE = 20  # clients that speak in the same one of the fifty rooms


class Room(Endpoint):
    encoding = "text"
    channels = ("room:{room}",)

    room: FromPath[str]
    client_id: FromPath[int]

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.publish(f"Client #{self.client_id} says: {data}")


class Fifty(Endpoint):
    encoding = "text"
    channels = tuple(f"room:{number}" for number in range(ROOMS))

    client_id: FromPath[int]

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        room = self.client_id // SHARE % ROOMS
        await self.publish(f"Client #{self.client_id} says: {data}", channel=f"room:{room}")


app = Starlette(
    routes=[
        WebSocketRoute("/rooms/{room}/{client_id}", Room),
        WebSocketRoute("/fifty/{client_id}", Fifty),
    ],
    lifespan=lifespan,
)
