"""Typed messages: their names on the wire, their handlers, and what can't be read."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, Message, on_message
from chatserver.endpoints.messages import parse, parse_json
from chatserver.errors import InvalidMessage


class Say(Message):
    text: str


class Ping(Message):
    n: int


class Pong(Message):
    n: int


class SayHTTPHello(Message):
    pass


class Wave(BaseModel):
    hand: Literal["left", "right"] = "right"


class Shout(BaseModel):
    type: Literal["loud"] = "loud"
    text: str


class Whisper(BaseModel):
    type: Literal["quiet"]


class Room(Endpoint):
    room: FromPath[str]
    channels = ("room:{room}",)

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        await self.publish(message)

    @on_message
    async def ping(self, websocket: WebSocket, message: Ping) -> Pong:
        return Pong(n=message.n)

    @on_message
    async def hello(self, websocket: WebSocket, message: SayHTTPHello) -> None:
        pass

    @on_message
    async def wave(self, websocket: WebSocket, message: Wave) -> Wave:
        return message

    @on_message
    async def whisper(self, websocket: WebSocket, message: Whisper) -> None: ...

    @on_message
    async def shout(self, websocket: WebSocket, message: Shout) -> None:
        raise AssertionError(message.text)


app = Starlette(routes=[WebSocketRoute("/{room}", Room)])


def test_the_type_on_the_wire() -> None:
    assert sorted(Room.handlers) == ["loud", "ping", "quiet", "say", "say_http_hello", "wave"]
    assert Room.encoding == "json"


def test_conversation() -> None:
    client = TestClient(app)
    with client.websocket_connect("/a") as one, client.websocket_connect("/a") as two:
        one.send_text('{"type": "say", "text": "hi"}')
        assert one.receive_json() == {"type": "say", "text": "hi"}
        assert two.receive_json() == {"type": "say", "text": "hi"}
        two.send_bytes(b'{"n": 3, "type": "ping"}')
        assert two.receive_json() == {"type": "pong", "n": 3}
        two.send_json({"type": "wave"})
        assert two.receive_json() == {"hand": "right"}


INVALID = [
    ("", "not a valid message: Input data was truncated"),
    ("{", "not a valid message: Input data was truncated"),
    ("[]", "not a valid message: Expected `object`, got `array`"),
    ("1", "not a valid message: Expected `object`, got `int`"),
    ("{}", "not a valid message: Object missing required field `type`"),
    ('{"type": 1}', "not a valid message: Expected `str`, got `int` - at `$.type`"),
    (
        '{"type": "sing"}',
        "unknown message type 'sing'; "
        "expected one of 'loud', 'ping', 'quiet', 'say', 'say_http_hello', 'wave'",
    ),
    ('{"type": "say"}', "not a valid message: Object missing required field `text`"),
    ('{"type": "say", "text": 1}', "not a valid message: Expected `str`, got `int` - at `$.text`"),
    ('{"type": "ping", "n": "1"}', "not a valid message: Expected `int`, got `str` - at `$.n`"),
    (
        '{"type": "wave", "hand": "both"}',
        "not a valid message: Input should be 'left' or 'right' - at `$.hand`",
    ),
    ('{"type": "say", "text": "\\ud800"}', None),
    ('{"type": "say", "text": NaN}', None),
    (f'{{"type": "say", "x": {"[" * 100_000}{"]" * 100_000}, "text": ""}}', "nested too deeply"),
]


@pytest.mark.parametrize(("data", "reason"), INVALID, ids=lambda value: str(value)[:30])
def test_invalid(data: str, reason: str | None) -> None:
    for form in (data, data.encode()):
        with pytest.raises(InvalidMessage) as error:
            parse(Room.handlers, form)
        assert error.value.code == 1007
        assert reason is None or reason in error.value.reason


def test_bad_utf8() -> None:
    for data in (b'{"type": "say", "text": "\xff"}', b'{"type": "\xff"}', b"\xff"):
        with pytest.raises(InvalidMessage):
            parse(Room.handlers, data)
        with pytest.raises(InvalidMessage):
            parse_json(data)


def test_an_invalid_message_is_answered_and_the_connection_lives() -> None:
    with TestClient(app).websocket_connect("/a") as session:
        session.send_text("{")
        answer = session.receive_json()
        assert answer["type"] == "error"
        assert answer["reason"].startswith("not a valid message: ")
        session.send_json({"type": "ping", "n": 1})
        assert session.receive_json() == {"type": "pong", "n": 1}


def test_on_invalid_can_be_overridden() -> None:
    class Strict(Room):
        async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
            await websocket.close(4000, "no nonsense")

    client = TestClient(Starlette(routes=[WebSocketRoute("/{room}", Strict)]))
    with client.websocket_connect("/a") as session:
        session.send_text("{")
        event = session.receive()
        assert (event["type"], event["code"]) == ("websocket.close", 4000)


def test_a_handler_is_overridden_by_its_name_or_its_type() -> None:
    class Quiet(Room):
        async def ping(self, websocket: WebSocket, message: Ping) -> Pong:
            return Pong(n=-message.n)

    class Other(Room):
        @on_message
        async def ping(self, websocket: WebSocket, message: Pong) -> Any:  # type: ignore[override]
            return None

    assert Quiet.handlers["ping"].name == "ping"
    assert "ping" not in Other.handlers
    assert Other.handlers["pong"].name == "ping"
    client = TestClient(Starlette(routes=[WebSocketRoute("/{room}", Quiet)]))
    with client.websocket_connect("/a") as session:
        session.send_json({"type": "ping", "n": 2})
        assert session.receive_json() == {"type": "pong", "n": -2}


def test_two_handlers_for_one_type() -> None:
    message = "Twice: 'one' and 'two' both handle messages of type 'say'"
    with pytest.raises(TypeError, match=message):

        class Twice(Endpoint):
            @on_message
            async def one(self, websocket: WebSocket, message: Say) -> None: ...

            @on_message
            async def two(self, websocket: WebSocket, message: Say) -> None: ...


def _without_annotation() -> None:
    class Bare(Endpoint):
        @on_message
        async def say(self, websocket, message): ...  # type: ignore[no-untyped-def]


def _without_message() -> None:
    class Bare(Endpoint):
        @on_message  # type: ignore[type-var]
        async def say(self, websocket: WebSocket) -> None: ...


def _with_a_builtin() -> None:
    class Bare(Endpoint):
        @on_message
        async def say(self, websocket: WebSocket, message: dict[str, str]) -> None: ...


@pytest.mark.parametrize(
    "declare", [_without_annotation, _without_message, _with_a_builtin], ids=lambda f: f.__name__
)
def test_a_handler_without_a_message_class(declare: Callable[[], None]) -> None:
    with pytest.raises(TypeError, match=r"Bare\.say must"):
        declare()
