"""Parameters and handlers are found under `from __future__ import annotations`, too."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

from starlette.requests import HTTPConnection

from chatserver import Depends, Endpoint, FromPath, FromQuery, Message, on_message

if TYPE_CHECKING:
    from decimal import Decimal

    from starlette.websockets import WebSocket


class Say(Message):
    text: str


async def current_user(connection: HTTPConnection, room: FromPath[str]) -> str:
    return room


class Room(Endpoint[str]):
    room: FromPath[str]
    user: Annotated[str, Depends(current_user)]
    q: FromQuery[int | None] = None
    price: Decimal | None = None

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None: ...


def test_found_in_a_module() -> None:
    assert set(Room.parameters) == {"room", "q"}
    assert set(Room.handlers) == {"say"}
    assert [name for name, _ in Room.dependencies["user"].parameters] == ["current_user(room)"]


def test_found_in_a_function() -> None:
    class Shout(Message):
        text: str

    class Page:
        def __init__(self, number: Annotated[int, Depends(length)]) -> None:
            self.number = number

    class Shape(Enum):
        ROUND = "round"

    def length(page: FromPath[Shape]) -> int:
        return len(page.value)

    class Local(Endpoint):
        room: FromPath[str]
        page: Annotated[Page, Depends()]

        @on_message
        async def shout(self, websocket: WebSocket, message: Shout) -> None: ...

    assert set(Local.parameters) == {"room"}
    assert set(Local.handlers) == {"shout"}
    assert [name for name, _ in Local.dependencies["page"].parameters] == ["length(page)"]
