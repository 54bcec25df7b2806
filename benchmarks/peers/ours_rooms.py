"""Our rooms, for the growth over channels: what `fastapi_rooms.py` does, with our classes."""

from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, lifespan


class Room(Endpoint):
    encoding = "text"
    channels = ("room:{room}",)

    room: FromPath[str]
    client_id: FromPath[int]

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.publish(f"Client #{self.client_id} says: {data}")


app = Starlette(routes=[WebSocketRoute("/rooms/{room}/{client_id}", Room)], lifespan=lifespan)
