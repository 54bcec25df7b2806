"""Rooms with typed messages: say something, ask who is here, learn who comes and goes.

    uvicorn examples.typed_room:app

and in two more terminals, as two people:

    python -m websockets "ws://127.0.0.1:8000/rooms/kitchen?name=ann"
    > {"type": "say", "text": "coffee?"}
    < {"type":"said","author":"ann","text":"coffee?"}
    > {"type": "who"}
    < {"type":"here","names":["ann","bob"]}

A message that doesn't fit its type is answered with an error, and the connection stays open.
"""

from typing import Annotated

from msgspec import Meta
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, FromQuery, Message, lifespan, on_message
from chatserver.auth import Identity


class Say(Message):
    text: Annotated[str, Meta(min_length=1, max_length=500)]


class Who(Message):
    """Asks who is in the room; it has no fields."""


class Said(Message):
    author: str
    text: str


class Came(Message):
    name: str


class Went(Message):
    name: str


class Here(Message):
    names: list[str]


class Room(Endpoint):
    room: FromPath[str]
    name: FromQuery[Annotated[str, Meta(min_length=1, max_length=20)]]
    channels = ("room:{room}",)
    presence = True
    sends = (Said, Came, Went)

    async def authenticate(self, websocket: WebSocket) -> Identity:
        return Identity(user=self.name)  # any name is accepted; see examples/tokens.py

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.publish(Came(name=self.name))

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        await self.publish(Said(author=self.name, text=message.text))

    @on_message
    async def who(self, websocket: WebSocket, message: Who) -> Here:
        clients = await self.hub.present(f"room:{self.room}")
        return Here(names=sorted(client.user for client in clients.values()))

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await self.publish(Went(name=self.name))


app = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)], lifespan=lifespan)
