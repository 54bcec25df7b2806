"""A binary game loop: clients steer, the loop says where everybody is, 20 times a second.

    uvicorn examples.game_loop:app

A client connects to `/arenas/cellar` and sends a byte for each key: `L`, `R`, `U` or `D`. Each
frame that it gets has six bytes per player: its number, x and y, as integers of 16 bits.
"""

import asyncio
import struct
from itertools import count
from typing import ClassVar

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, Hub, lifespan

STEP = 1 / 20  # seconds
KEYS = {b"L": (-1, 0), b"R": (1, 0), b"U": (0, -1), b"D": (0, 1)}
numbers = count(1)


class Arena(Endpoint):
    encoding = "bytes"
    arena: FromPath[str]
    channels = ("arena:{arena}",)
    positions: ClassVar[dict[str, dict[int, tuple[int, int]]]] = {}

    async def on_accept(self, websocket: WebSocket) -> None:
        self.players = self.positions[self.channel]
        self.number = next(numbers) % 2**16
        self.players[self.number] = (0, 0)

    async def on_receive(self, websocket: WebSocket, data: bytes) -> None:
        dx, dy = KEYS.get(data, (0, 0))
        x, y = self.players[self.number]
        self.players[self.number] = (x + dx) % 1000, (y + dy) % 1000

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        self.players.pop(self.number, None)

    @classmethod
    async def while_occupied(cls, channel: str, hub: Hub) -> None:
        players = cls.positions[channel] = {}
        try:
            while True:
                frame = b"".join(struct.pack("!HHH", n, x, y) for n, (x, y) in players.items())
                await hub.publish(channel, frame, keep=False)
                await asyncio.sleep(STEP)
        finally:
            del cls.positions[channel]


app = Starlette(routes=[WebSocketRoute("/arenas/{arena}", Arena)], lifespan=lifespan)
