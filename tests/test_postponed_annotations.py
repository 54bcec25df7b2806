"""Parameters and handlers are found under `from __future__ import annotations`, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatserver import Endpoint, FromPath, FromQuery, Message, on_message

if TYPE_CHECKING:
    from decimal import Decimal

    from starlette.websockets import WebSocket


class Say(Message):
    text: str


class Room(Endpoint):
    room: FromPath[str]
    q: FromQuery[int | None] = None
    price: Decimal | None = None

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None: ...


def test_found_in_a_module() -> None:
    assert set(Room.parameters) == {"room", "q"}
    assert set(Room.handlers) == {"say"}


def test_found_in_a_function() -> None:
    class Shout(Message):
        text: str

    class Local(Endpoint):
        room: FromPath[str]

        @on_message
        async def shout(self, websocket: WebSocket, message: Shout) -> None: ...

    assert set(Local.parameters) == {"room"}
    assert set(Local.handlers) == {"shout"}
