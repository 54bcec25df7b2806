"""What `fastapi_sender.py` does, with our classes."""

import asyncio

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, lifespan


class Ticks(Endpoint):
    async def on_accept(self, websocket: WebSocket) -> None:
        self.task_group.start_soon(self.tick)

    async def tick(self) -> None:
        while True:
            await self.push("tick")
            await asyncio.sleep(0.2)


app = Starlette(routes=[WebSocketRoute("/ws", Ticks)], lifespan=lifespan)
