"""Typed messages: their names on the wire, their handlers, and what can't be read."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Raw
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocket

from chatserver import Ack, Endpoint, ErrorMessage, FromPath, Identity, Message, on_message
from chatserver.endpoints.ids import is_for_ids, unique_id
from chatserver.endpoints.messages import answers, parse, parse_json
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


class Strict(BaseModel, extra="forbid"):
    text: str


class Chat(BaseModel, extra="forbid"):
    kind: Literal["chat"] = Field("chat", alias="type")
    user_name: str = Field(alias="userName")


class Models(Endpoint):
    @on_message
    async def strict(self, websocket: WebSocket, message: Strict) -> Strict:
        return message

    @on_message
    async def chat(self, websocket: WebSocket, message: Chat) -> Chat:
        return message


models = Starlette(routes=[WebSocketRoute("/", Models)])


def test_a_model_that_forbids_other_fields_does_not_forbid_the_type() -> None:
    with TestClient(models).websocket_connect("/") as session:
        for message in ('{"type":"strict","text":"a"}', b'{"type":"strict","text":"a"}'):
            parse(Models.handlers, message)
        session.send_json({"type": "strict", "text": "a", "id": 7})
        assert session.receive_json() == {"text": "a", "id": 7}
        session.send_json({"type": "strict", "text": "a", "more": 1})
        assert session.receive_json()["reason"].endswith(
            "Extra inputs are not permitted - at `$.more`"
        )


def test_the_names_of_a_model_on_the_wire_are_its_aliases() -> None:
    """As FastAPI and the AsyncAPI document have them."""
    with TestClient(models).websocket_connect("/") as session:
        session.send_json({"type": "chat", "userName": "Ann"})
        assert session.receive_json() == {"type": "chat", "userName": "Ann"}


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


# Ids


class Order(Message):
    """Keeps "id" for itself: it is required."""

    id: str


class Invoice(Message):
    """Keeps it: it is no text or integer."""

    id: float = 0


class Noted(Message):
    """Wants to know the message's."""

    text: str = ""
    id: str | None = None


class Exact(Message, forbid_unknown_fields=True):
    n: int


class Renamed(Message):
    uid: int = msgspec.field(name="id")


class ModelExact(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["model_exact"] = "model_exact"
    n: int


class ModelOrder(BaseModel):
    id: int


class ModelNoted(BaseModel):
    id: Annotated[int, Field(ge=0)] | None = None


class ModelRenamed(BaseModel):
    uid: int = Field(alias="id")


class ModelChoices(BaseModel):
    uid: int = Field(validation_alias=AliasChoices("uid", "id"))


class Show(Message):
    """Asks for a reply of some kind."""

    kind: str


REPLIES: dict[str, Any] = {
    "none": None,
    "empty": {},
    "spaced": Raw(b' { "a" : [1] } \n'),
    "braces": {"a": "}{"},
    "error": ErrorMessage(reason="no"),
    "list": [1, {"id": 1}],
    "text": "hi",
    "bytes": b"{}",
    "own": {"id": 0},
    "null": {"id": None, "a": {"id": None}},
    "broken": Raw(b"{"),
}


class Desk(Endpoint):
    name: FromPath[str]
    channels = ("desk",)
    seen: list[Any]

    async def authenticate(self, websocket: WebSocket) -> Any:
        return Identity(self.name) if self.name != "-" else None

    async def on_accept(self, websocket: WebSocket) -> None:
        self.seen = []

    @on_message
    async def ping(self, websocket: WebSocket, message: Ping) -> Pong:
        return Pong(n=message.n)

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        await self.publish({"said": message.text}, id=self.message_id)

    @on_message
    async def show(self, websocket: WebSocket, message: Show) -> Any:
        return REPLIES[message.kind]

    @on_message
    async def order(self, websocket: WebSocket, message: Order) -> Any:
        return ["order", message.id, self.message_id]

    @on_message
    async def invoice(self, websocket: WebSocket, message: Invoice) -> None:
        await self.push(["invoice", message.id, self.message_id])

    @on_message
    async def noted(self, websocket: WebSocket, message: Noted) -> Noted:
        return message

    @on_message
    async def exact(self, websocket: WebSocket, message: Exact) -> Exact:
        return message

    @on_message
    async def model_exact(self, websocket: WebSocket, message: ModelExact) -> ModelExact:
        return message

    @on_message
    async def model_order(self, websocket: WebSocket, message: ModelOrder) -> ModelOrder:
        return message

    @on_message
    async def model_noted(self, websocket: WebSocket, message: ModelNoted) -> ModelNoted:
        return message

    @on_message
    async def wave(self, websocket: WebSocket, message: Wave) -> Any:
        if message.hand == "left":
            raise InvalidMessage("the other one")
        raise WebSocketException(4000, "not here")


desk = Starlette(routes=[WebSocketRoute("/{name}", Desk)])
UUID = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"  # of RFC 9562


def conversation(session: WebSocketTestSession, message: str) -> list[str]:
    """What comes back for a message, before what comes for the next."""
    session.send_text(message)
    session.send_text('{"type": "ping", "n": 99}')
    came: list[str] = []
    while (text := _text(session)) != '{"type":"pong","n":99}':
        came.append(text)
    return came


def _text(session: WebSocketTestSession) -> str:
    event = session.receive()
    if event["type"] == "websocket.close":
        return f"closed {event['code']}"
    text: str = event.get("text") or event["bytes"].decode()
    return text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('{"type":"ping","n":1}', ['{"type":"pong","n":1}']),
        ('{"type":"ping","n":1,"id":null}', ['{"type":"pong","n":1}']),
        ('{"type":"ping","n":1,"id":7}', ['{"type":"pong","n":1,"id":7}']),
        ('{"type":"ping","n":1,"id":"7"}', ['{"type":"pong","n":1,"id":"7"}']),
        ('{"id":-1,"type":"ping","n":1}', ['{"type":"pong","n":1,"id":-1}']),
        ('{"type":"ping","n":1,"id":"\\u00e4\\"\\n"}', ['{"type":"pong","n":1,"id":"ä\\"\\n"}']),
        (
            '{"type":"ping","n":1,"id":9223372036854775807}',
            ['{"type":"pong","n":1,"id":9223372036854775807}'],
        ),
        # What can't carry it is followed by an Ack.
        ('{"type":"show","kind":"none","id":1}', ['{"type":"ack","id":1}']),
        ('{"type":"show","kind":"none"}', []),
        ('{"type":"show","kind":"empty","id":1}', ['{"id":1}']),
        ('{"type":"show","kind":"spaced","id":1}', ['{ "a" : [1] ,"id":1}']),
        ('{"type":"show","kind":"braces","id":1}', ['{"a":"}{","id":1}']),
        ('{"type":"show","kind":"error","id":1}', ['{"type":"error","reason":"no","id":1}']),
        ('{"type":"show","kind":"error"}', ['{"type":"error","reason":"no"}']),
        ('{"type":"show","kind":"list","id":1}', ['[1,{"id":1}]', '{"type":"ack","id":1}']),
        ('{"type":"show","kind":"text","id":1}', ['"hi"', '{"type":"ack","id":1}']),
        ('{"type":"show","kind":"bytes","id":1}', ["{}", '{"type":"ack","id":1}']),
        ('{"type":"show","kind":"own","id":1}', ['{"id":0}', '{"type":"ack","id":1}']),
        ('{"type":"show","kind":"own","id":0}', ['{"id":0}']),
        ('{"type":"show","kind":"own","id":"0"}', ['{"id":0}', '{"type":"ack","id":"0"}']),
        ('{"type":"show","kind":"null","id":1}', ['{"id":1,"a":{"id":null}}']),
        ('{"type":"show","kind":"broken","id":1}', ["{", '{"type":"ack","id":1}']),
        # What declares it for something else keeps it.
        ('{"type":"order","id":"17"}', ['["order","17",null]']),
        ('{"type":"invoice","id":1.5}', ['["invoice",1.5,null]']),
        ('{"type":"model_order","id":17}', ['{"id":17}']),
        # What declares it as optional gets it.
        ('{"type":"noted","id":"a"}', ['{"type":"noted","text":"","id":"a"}']),
        ('{"type":"noted"}', ['{"type":"noted","text":"","id":null}']),
        ('{"type":"model_noted","id":3}', ['{"id":3}']),
        # What refuses unknown fields doesn't refuse this one.
        ('{"type":"exact","n":1,"id":7}', ['{"type":"exact","n":1,"id":7}']),
        ('{"id":"x","n":1,"type":"model_exact"}', ['{"type":"model_exact","n":1,"id":"x"}']),
        # Errors carry it.
        (
            '{"type":"ping","n":"1","id":7}',
            [
                '{"type":"error","reason":"not a valid message: '
                'Expected `int`, got `str` - at `$.n`","id":7}'
            ],
        ),
        (
            '{"type":"wave","hand":"left","id":7}',
            ['{"type":"error","reason":"the other one","id":7}'],
        ),
        ('{"type":"wave","hand":"left"}', ['{"type":"error","reason":"the other one"}']),
    ],
)
def test_the_answer_carries_the_id(message: str, expected: list[str]) -> None:
    with TestClient(desk).websocket_connect("/ann") as session:
        assert conversation(session, message) == expected


@pytest.mark.parametrize(
    ("message", "id", "reason"),
    [
        ('{"type":"sing","id":"a"}', "a", "unknown message type 'sing'"),
        ('{"id":5}', 5, "Object missing required field `type`"),
        ('{"type":"exact","n":1,"id":7,"x":1}', 7, "unknown field `x`"),
        ('{"type":"noted","id":7}', 7, "Expected `str | null`, got `int` - at `$.id`"),
        ('{"type":"model_noted","id":-3}', -3, "greater than or equal to 0 - at `$.id`"),
        ('{"type":"exact","n":1,"id":null}', None, "unknown field `id`"),
    ],
)
def test_an_error_carries_the_id(message: str, id: Any, reason: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        parse(Desk.handlers, message)
    assert error.value.id == id
    assert reason in error.value.reason


@pytest.mark.parametrize(
    "id",
    ['""', f'"{"x" * 65}"', "1.5", "1e2", "true", "[]", "{}", str(2**63), '"\\ud800"'],
)
def test_a_bad_id(id: str) -> None:
    with pytest.raises(InvalidMessage) as error:
        parse(Desk.handlers, f'{{"type": "ping", "n": 1, "id": {id}}}')
    assert error.value.id is None
    assert error.value.reason.startswith("not a valid message: ")


def test_a_bad_id_in_a_binary_frame() -> None:
    with pytest.raises(InvalidMessage):
        parse(Desk.handlers, b'{"type": "ping", "n": 1, "id": "\xff"}')


def test_the_longest_id() -> None:
    assert parse(Desk.handlers, f'{{"type": "ping", "n": 1, "id": "{"ä" * 64}"}}')[2] == "ä" * 64


def test_who_keeps_the_id() -> None:
    class Keeping(Endpoint):
        @on_message
        async def renamed(self, websocket: WebSocket, message: Renamed) -> None: ...

        @on_message
        async def model_renamed(self, websocket: WebSocket, message: ModelRenamed) -> None: ...

        @on_message
        async def model_choices(self, websocket: WebSocket, message: ModelChoices) -> None: ...

        @on_message
        async def say(self, websocket: WebSocket, message: Say) -> None: ...

    kept = {tag for tag, handler in Keeping.handlers.items() if handler.keeps_id}
    assert kept == {"renamed", "model_renamed", "model_choices"}


@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        (str, True),
        (int | None, True),
        (Annotated[str, Meta(max_length=3)] | int, True),
        (bool, False),
        (str | float, False),
        (Literal["a"], False),
        (Any, False),
    ],
)
def test_types_for_ids(kind: Any, fits: bool) -> None:
    assert is_for_ids(kind) is fits


def test_an_answer_is_what_is_sent() -> None:
    assert answers(None, "a") == (Ack(id="a"),)
    with pytest.raises(TypeError):
        answers(object(), "a")


def test_a_close_is_as_without_an_id() -> None:
    with TestClient(desk).websocket_connect("/ann") as session:
        session.send_text('{"type":"wave","id":7}')
        assert _text(session) == "closed 4000"


def test_on_invalid_is_told_the_id() -> None:
    class Strict(Desk):
        async def on_invalid(self, websocket: WebSocket, error: InvalidMessage) -> None:
            await self.push([error.id, self.message_id])

    client = TestClient(Starlette(routes=[WebSocketRoute("/{name}", Strict)]))
    with client.websocket_connect("/ann") as session:
        session.send_text('{"type":"ping","id":7}')
        assert session.receive_json() == [7, None]


# A publication with the id


def published(session: WebSocketTestSession, id: Any) -> list[Any]:
    """What comes of saying something twice with one id."""
    return [json.loads(text) for text in said(session, id) + said(session, id)]


def said(session: WebSocketTestSession, id: Any) -> list[str]:
    return conversation(session, json.dumps({"type": "say", "text": "hi", "id": id}))


@pytest.mark.parametrize("id", [1, "1", UUID])
def test_a_repeated_message_is_published_once(id: Any) -> None:
    ack, hi = {"type": "ack", "id": id}, {"said": "hi"}
    app = Starlette(routes=[WebSocketRoute("/{name}", Desk)])
    with TestClient(app).websocket_connect("/ann") as session:
        assert published(session, id) == [hi, ack, ack]


@pytest.mark.parametrize("name", ["ann", "-"])
def test_a_client_that_comes_back_is_recognised_by_a_unique_id(name: str) -> None:
    client = TestClient(Starlette(routes=[WebSocketRoute("/{name}", Desk)]))
    counts = []
    for _ in range(2):
        with client.websocket_connect(f"/{name}") as session:
            counts.append([len(said(session, UUID)), len(said(session, 1))])
    # The counter begins anew with each connection, and none of its messages is lost.
    assert counts == [[2, 2], [1, 2]]


@pytest.mark.parametrize("names", [("ann", "bob"), ("-", "-"), ("ann", "ann"), ("ann", "-")])
def test_clients_that_count_alike_lose_nothing(names: tuple[str, str]) -> None:
    with TestClient(Starlette(routes=[WebSocketRoute("/{name}", Desk)])) as client:
        one, two = (client.websocket_connect(f"/{name}") for name in names)
        with one, two:
            assert [len(said(one, id)) for id in (1, "1", 2)] == [2, 2, 2]
            assert [len(said(two, id)) for id in (1, "1", 2)] == [5, 2, 2]


def test_what_the_broker_is_told() -> None:
    assert unique_id(1, "ann", "c0") == '["client","c0",1]'
    assert unique_id("x" * 15, "ann", "c0") == f'["client","c0","{"x" * 15}"]'
    assert unique_id(UUID, "ann", "c0") == unique_id(UUID, "ann", "c1")
    others = [
        unique_id(UUID, "", "c0"),
        unique_id(UUID, "ann", "c0"),
        unique_id(UUID, f'ann","{UUID}', "c0"),
        unique_id(f'x","{UUID}', "ann", "c0"),
    ]
    assert len(set(others)) == len(others)


def test_outside_of_a_handler_there_is_no_id() -> None:
    assert Desk.message_id is None
    with TestClient(desk).websocket_connect("/ann") as session:
        said(session, 1)
        assert conversation(session, '{"type":"order","id":"a"}') == ['["order","a",null]']
