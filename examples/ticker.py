"""A task per connection: each client gets ticks, and may change how often they come.

    uvicorn examples.ticker:app

and in a second terminal:

    python -m websockets "ws://127.0.0.1:8000/ticks?every=0.5"
    < {"type":"tick","n":1}
    < {"type":"tick","n":2}
    > {"type": "pace", "every": 3}

The task is cancelled with its connection, so the ticks stop when the client leaves.
"""

import asyncio
from typing import Annotated

from msgspec import Meta
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromQuery, Message, on_message

Seconds = Annotated[float, Meta(ge=0.01, le=3600)]


class Pace(Message):
    every: Seconds


class Tick(Message):
    n: int


class Ticker(Endpoint):
    every: FromQuery[Seconds] = 1.0
    sends = Tick

    async def on_accept(self, websocket: WebSocket) -> None:
        self.task_group.start_soon(self.tick)

    async def tick(self) -> None:
        n = 0
        while True:
            n += 1
            await self.push(Tick(n=n))
            await asyncio.sleep(self.every)

    @on_message
    async def pace(self, websocket: WebSocket, message: Pace) -> None:
        self.every = message.every


app = Starlette(routes=[WebSocketRoute("/ticks", Ticker)])
