"""Rooms with typed messages: history, typing, private words, and who comes and goes.

    uvicorn examples.typed_room:app

and in two more terminals, as two people:

    python -m websockets "ws://127.0.0.1:8000/rooms/kitchen?name=ann"
    > {"type": "say", "text": "coffee?"}
    < {"type":"said","author":"ann","text":"coffee?"}
    > {"type": "say", "text": "the good one", "to": "bob"}
    > {"type": "who"}
    < {"type":"here","names":["ann","bob"]}

Whoever has two tabs open comes once and goes once. A message that doesn't fit its type is answered
with an error, and the connection stays open.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, FromQuery, Message, Publication, lifespan, on_message

Name = Annotated[str, Meta(pattern=r"^\w{1,20}$")]


class Say(Message):
    text: Annotated[str, Meta(min_length=1, max_length=500)]
    to: Name | None = None


class Typing(Message):
    author: str = ""


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


class Earlier(Message):
    said: list[Any]


class Room(Endpoint[str]):
    room: FromPath[str]
    name: FromQuery[Name]
    channels = ("room:{room}",)
    presence = True
    history = 20
    sends = (Said, Typing, Came, Went, Earlier)

    async def authenticate(self, websocket: WebSocket) -> str:
        return self.name  # any name is accepted; see examples/tokens.py

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.join(f"private:{self.room}:{self.name}")
        if await self.tabs() == 1:
            await self.publish(Came(name=self.name), keep=False)

    async def tabs(self) -> int:
        return sum(each.user == self.name for each in (await self.present()).clients)

    def welcome(self, recent: Sequence[Publication]) -> Earlier | None:
        return Earlier(said=[each.value for each in recent]) if recent else None

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        channel = f"private:{self.room}:{message.to}" if message.to else self.channel
        await self.publish(Said(author=self.name, text=message.text), channel=channel)

    @on_message
    async def typing(self, websocket: WebSocket, message: Typing) -> None:
        await self.publish(Typing(author=self.name), to_others=True, keep=False)

    @on_message
    async def who(self, websocket: WebSocket, message: Who) -> Here:
        return Here(names=[each.user for each in (await self.present()).users])

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        if not await self.tabs():
            await self.publish(self.last_will(), keep=False)

    def last_will(self) -> Went:
        return Went(name=self.name)


app = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)], lifespan=lifespan)
