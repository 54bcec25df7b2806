"""Recovery for plain JSON endpoints: nothing is missing or comes twice, or the client is told."""

import asyncio
import json
from collections.abc import Sequence
from random import Random
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from msgspec import Raw
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatserver import (
    Depends,
    Endpoint,
    FromPath,
    FromQuery,
    Hub,
    Limits,
    MemoryBroker,
    Message,
    Publication,
    lifespan,
    on_message,
)
from chatserver.endpoints import recovery
from chatserver.errors import InvalidHandshake
from chatserver.hub import Subscribed
from chatserver.publication import ClientInfo, Joined, Position
from chatserver.testing import AsyncSession, open_session
from tests.asgi import until
from tests.unreliable import Unreliable

pytestmark = pytest.mark.anyio

START = {"offset": 0, "epoch": "e"}


class Room(Endpoint):
    encoding = "json"
    channels: ClassVar[Sequence[str]] = ("room",)
    recover = True

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        match data:
            case ["join", channel]:
                await self.join(channel)
            case ["leave", channel]:
                await self.leave(channel)
            case ["others", text]:
                await self.publish(text, to_others=True)
        return ["done"]


class Both(Room):
    channels = ("room", "news")


class Remembering(Room):
    history = 3


class Greeting(Remembering):
    def welcome(self, recent: Sequence[Publication]) -> dict[str, Any]:
        return {"said": [each.value for each in recent]}


class Silent(Remembering):
    def welcome(self, recent: Sequence[Publication]) -> None:
        return None


def application(**options: Any) -> Starlette:
    classes = (Room, Both, Remembering, Greeting, Silent)
    routes = [WebSocketRoute(f"/{cls.__name__.lower()}", cls) for cls in classes]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.hub = Hub(**options)
    return app


def address(path: str, positions: dict[str, Any]) -> str:
    return f"{path}?since={quote(json.dumps(positions))}"


class Client:
    """A client as the guide has it: it keeps its positions, and removes no duplicates.

    Attributes:
        since: Where it stands, by channel.
        got: What it was sent of all channels, in order.
        missed: How often it was told that something is missing.
    """

    def __init__(self) -> None:
        self.since: dict[str, Any] = {}
        self.got: list[Any] = []
        self.missed = 0

    def take(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if "since" in message:
            self.since[message["channel"]] = message["since"]
            self.missed += message.get("recovered") is False
            return
        if "offset" in message:
            self.since[message["channel"]]["offset"] = message["offset"]
        self.got.append(message["data"])

    async def read(self, session: AsyncSession, count: int) -> None:
        while len(self.got) < count:
            self.take(await session.receive_json())


async def received(session: AsyncSession, count: int) -> list[Any]:
    return [await session.receive_json() for _ in range(count)]


# What is read of a query


def connection(query: str) -> HTTPConnection:
    return HTTPConnection({"type": "websocket", "query_string": query.encode(), "headers": []})


def test_positions() -> None:
    query = str(
        QueryParams({"since": '{"a":{"offset":3,"epoch":"e"},"b:\\n":{"offset":0,"epoch":""}}'})
    )
    found = recovery.positions(connection(query), 2)
    assert found == {"a": Position(3, "e"), "b:\n": Position(0, "")}
    assert recovery.positions(connection(""), 2) == {}
    assert recovery.positions(connection("since={}"), 2) == {}


BAD = [
    "",
    "7",
    "e:7",
    "null",
    "[]",
    '"a"',
    "{",
    '{"a"}',
    '{"a":7}',
    '{"a":null}',
    '{"a":{}}',
    '{"a":{"offset":1}}',
    '{"a":{"epoch":"e"}}',
    '{"a":{"offset":"1","epoch":"e"}}',
    '{"a":{"offset":1.5,"epoch":"e"}}',
    '{"a":{"offset":-1,"epoch":"e"}}',
    '{"a":{"offset":true,"epoch":"e"}}',
    '{"a":{"offset":1e400,"epoch":"e"}}',
    '{"a":{"offset":9007199254740993,"epoch":"e"}}',
    '{"a":{"offset":' + "9" * 5000 + ',"epoch":"e"}}',
    '{"a":{"offset":1,"epoch":7}}',
    '{"a":{"offset":1,"epoch":"\\u0000"}}',
    '{"a":{"offset":1,"epoch":"é"}}',
    '{"a":{"offset":1,"epoch":"' + "e" * 65 + '"}}',
    '{"a":{"offset":1,"epoch":"e","more":' + "[" * 5000 + "}}",
    '{"a":{"offset":1,"epoch":"e"},"b":{"offset":1,"epoch":"e"},"c":{"offset":1,"epoch":"e"}}',
    '{"\\ud800":{"offset":1,"epoch":"e"}}',
    "\ufffd",
]


@pytest.mark.parametrize("value", BAD)
def test_bad_positions_are_refused_with_a_sentence(value: str) -> None:
    with pytest.raises(InvalidHandshake, match=r"^query parameter 'since' must ") as refused:
        recovery.positions(connection(f"since={quote(value)}"), 2)
    assert len(refused.value.reason) < 123
    assert refused.value.status == 422


def test_one_parameter_has_all_positions() -> None:
    with pytest.raises(InvalidHandshake, match="'since' must not be repeated"):
        recovery.positions(connection("since={}&since={}"), 2)


def test_as_many_as_there_are_without_a_limit() -> None:
    many = {f"c{n}": START for n in range(500)}
    assert len(recovery.positions(connection(f"since={quote(json.dumps(many))}"), 0)) == 500


@pytest.mark.parametrize("path", ["/room", "/both"])
@pytest.mark.parametrize("query", ["since=7", "since={}&since={}", "since=%00", "since"])
def test_a_bad_position_is_a_422(path: str, query: str) -> None:
    client = TestClient(application())
    with pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect(f"{path}?{query}").__enter__()
    assert denied.value.status_code == 422
    assert denied.value.text.startswith("query parameter 'since' must ")


# What is written


def publication(data: Any, offset: int = 7) -> Publication:
    return Publication("a", data, offset, "e")


def text(frame: Any) -> str:
    told = frame.message["text"]
    assert isinstance(told, str)
    return told


@pytest.mark.parametrize(
    ("delivery", "expected"),
    [
        (publication("hi"), '{"channel":"a","offset":7,"data":"hi"}'),
        (publication(Raw(b'{"n":1}')), '{"channel":"a","offset":7,"data":{"n":1}}'),
        (publication(Raw(b"null")), '{"channel":"a","offset":7,"data":null}'),
        (publication(b"\x00\xff"), '{"channel":"a","offset":7,"bytes":"AP8="}'),
        (publication(b""), '{"channel":"a","offset":7,"bytes":""}'),
        (publication("typing", 0), '{"channel":"a","data":"typing"}'),
    ],
)
def test_an_envelope(delivery: Publication, expected: str) -> None:
    frame = recovery.enveloped(delivery)
    assert frame is not None
    assert text(frame) == expected


def test_joins_have_no_envelope() -> None:
    assert recovery.enveloped(Joined("a", ClientInfo("c"))) is None


def test_a_loss() -> None:
    (frame,) = recovery.lost("a", Position(9, "new"))
    told = '{"channel":"a","since":{"offset":9,"epoch":"new"},"recovered":false}'
    assert text(frame) == told


def test_a_client_stands_before_what_it_is_still_to_get() -> None:
    """So it may be cut off between any two frames."""
    missed = (publication("x", 8), publication("y", 9))
    top = Position(9, "e")
    for since, subscribed in (
        (Position(7, "e"), Subscribed(True, missed, top)),
        (Position(3, "e"), Subscribed(False, missed, top)),
        (None, Subscribed(False, missed, top)),
    ):
        frames = recovery.begin("a", since, list, subscribed)
        told = json.loads(text(frames[0]))
        assert told["since"] == {"offset": 7, "epoch": "e"}
        assert told.get("recovered") == (None if since is None else subscribed.recovered)
        assert [json.loads(text(each))["offset"] for each in frames[1:]] == [8, 9]


# Conversations


async def test_the_first_time_a_client_learns_where_it_stands() -> None:
    app = application()
    async with open_session(app, "/room") as session:
        client = Client()
        await app.state.hub.publish("room", {"n": 1})
        told = await received(session, 2)
        epoch = (await app.state.hub.history("room")).position.epoch
        assert told == [
            {"channel": "room", "since": {"offset": 0, "epoch": epoch}},
            {"channel": "room", "offset": 1, "data": {"n": 1}},
        ]
        for each in told:
            client.take(each)
        await app.state.hub.publish("room", "typing", keep=False)
        await client.read(session, 2)
        assert client.since == {"room": {"offset": 1, "epoch": epoch}}
        await session.send_json("hi")
        assert await session.receive_json() == ["done"]  # an answer has no envelope


async def test_who_comes_back_gets_what_it_missed() -> None:
    app = application()
    hub: Hub = app.state.hub
    client = Client()
    async with open_session(app, "/room") as session:
        await hub.publish("room", 0)
        await client.read(session, 1)
    for n in (1, 2):
        await hub.publish("room", n)
    await hub.publish("room", "typing", keep=False)
    async with open_session(app, address("/room", client.since)) as session:
        await hub.publish("room", 3)
        assert (await session.receive_json())["recovered"] is True
        await client.read(session, 4)
    assert client.got == [0, 1, 2, 3]
    async with open_session(app, address("/room", client.since)) as session:
        assert (await session.receive_json())["recovered"] is True  # of nothing
        await session.assert_no_message(timeout=0.01)


async def test_each_channel_has_its_position() -> None:
    app = application()
    hub: Hub = app.state.hub
    client = Client()
    async with open_session(app, "/both") as session:
        await hub.publish("room", "r1")
        await hub.publish("news", "n1")
        await client.read(session, 2)
    await hub.publish("news", "n2")
    del client.since["room"]
    async with open_session(app, address("/both", client.since)) as session:
        told = {each["channel"]: each for each in await received(session, 2)}
        assert "recovered" not in told["room"]
        assert told["news"]["recovered"] is True
        assert (await session.receive_json())["data"] == "n2"


async def test_a_channel_that_is_joined_later_recovers_once() -> None:
    app = application()
    hub: Hub = app.state.hub
    client = Client()
    async with open_session(app, "/room") as session:
        await session.send_json(["join", "side"])
        await hub.publish("room", 0)
        await client.read(session, 1)
        await until(lambda: hub.statistics().channels == 2)
        await hub.publish("side", "s1")
        await client.read(session, 2)
    await hub.publish("side", "s2")
    async with open_session(app, address("/room", client.since)) as session:
        assert (await session.receive_json())["channel"] == "room"
        await session.send_json(["join", "side"])
        assert await received(session, 3) == [
            {"channel": "side", "since": client.since["side"], "recovered": True},
            {"channel": "side", "offset": 2, "data": "s2"},
            ["done"],
        ]
        for step in ("leave", "join"):
            await session.send_json([step, "side"])
        assert await session.receive_json() == ["done"]
        again = await session.receive_json()  # it knows itself where it stood when it left
        assert again == {"channel": "side", "since": {**client.since["side"], "offset": 2}}


@pytest.mark.parametrize("position", [{"offset": 1, "epoch": "x"}, {"offset": 99}, {"offset": 1}])
async def test_what_cannot_be_recovered_is_told(position: dict[str, Any]) -> None:
    """Of another stream; of its future; and of what is not kept any more."""
    app = application(broker=MemoryBroker(history_size=2))
    hub: Hub = app.state.hub
    for n in range(5):
        top = await hub.publish("room", n)
    since = {"room": {"epoch": top.epoch, **position}}
    async with open_session(app, address("/room", since)) as session:
        expected = {"channel": "room", "since": {"offset": 5, "epoch": top.epoch}}
        assert await session.receive_json() == {**expected, "recovered": False}
        await hub.publish("room", 5)
        assert await session.receive_json() == {"channel": "room", "offset": 6, "data": 5}


async def test_no_more_is_recovered_than_fits_into_half_of_the_buffer() -> None:
    app = application(limits=Limits(max_buffer=10_000))
    for n in range(5):
        top = await app.state.hub.publish("room", f"{n}" * 2_000)
    for offset, recovered in ((2, False), (3, True)):
        since = {"room": {"epoch": top.epoch, "offset": offset}}
        async with open_session(app, address("/room", since)) as session:
            assert (await session.receive_json())["recovered"] is recovered
            for n in (4, 5) if recovered else ():
                assert (await session.receive_json())["offset"] == n
            await session.assert_no_message(timeout=0.01)


async def test_a_restarted_broker_recovers_nothing() -> None:
    client = Client()
    for n in range(2):
        app = application()
        async with open_session(app, address("/room", client.since)) as session:
            await app.state.hub.publish("room", n)
            await client.read(session, n + 1)
    assert (client.got, client.missed) == ([0, 1], 1)


# With history


async def test_history_first_and_then_what_was_missed() -> None:
    app = application()
    hub: Hub = app.state.hub
    for n in range(5):
        await hub.publish("room", n)
    client = Client()
    async with open_session(app, "/remembering") as session:
        await hub.publish("room", 5)
        await client.read(session, 4)
    assert client.got == [2, 3, 4, 5]
    for n in range(6, 15):
        await hub.publish("room", n)
    async with open_session(app, address("/remembering", client.since)) as session:
        await client.read(session, 13)
        await session.assert_no_message(timeout=0.01)
    assert (client.got, client.missed) == ([*range(2, 15)], 0)
    async with open_session(app, address("/remembering", client.since)) as session:
        assert (await session.receive_json())["recovered"] is True  # of nothing
        await session.assert_no_message(timeout=0.01)


@pytest.mark.parametrize("position", [{"offset": 1, "epoch": "x"}, {"offset": 99}, {"offset": 1}])
async def test_who_cannot_recover_gets_the_history(position: dict[str, Any]) -> None:
    app = application(broker=MemoryBroker(history_size=6))
    hub: Hub = app.state.hub
    for n in range(1, 11):
        top = await hub.publish("room", n)
    client = Client()
    since = {"room": {"epoch": top.epoch, **position}}
    async with open_session(app, address("/remembering", since)) as session:
        await hub.publish("room", 11)
        await client.read(session, 4)
    assert (client.got, client.missed) == ([8, 9, 10, 11], 1)


async def test_a_welcome_is_in_an_envelope_that_tells_the_position() -> None:
    app = application()
    hub: Hub = app.state.hub
    for n in range(5):
        top = await hub.publish("room", n)
    async with open_session(app, "/greeting") as session:
        assert await received(session, 2) == [
            {"channel": "room", "since": {"offset": 2, "epoch": top.epoch}},
            {"channel": "room", "offset": 5, "data": {"said": [2, 3, 4]}},
        ]
    since = {"room": {"offset": 3, "epoch": top.epoch}}
    async with open_session(app, address("/greeting", since)) as session:
        assert [each.get("data") for each in await received(session, 3)] == [None, 3, 4]
    async with open_session(app, "/silent") as session:
        told = await session.receive_json()
        assert told == {"channel": "room", "since": {"offset": 5, "epoch": top.epoch}}
        await session.assert_no_message(timeout=0.01)


# What is lost while connected


async def test_a_loss_is_told_and_the_client_goes_on() -> None:
    broker = Unreliable(MemoryBroker(history_size=2))
    app = application(broker=broker)
    hub: Hub = app.state.hub
    client = Client()
    async with open_session(app, "/room") as session:
        await hub.publish("room", 0)
        broker.fate = lambda delivery: 0
        for n in range(1, 6):
            await hub.publish("room", n)
        broker.fate = lambda delivery: 1
        await hub.publish("room", 6)
        await client.read(session, 3)
        assert (client.got, client.missed) == ([0, 5, 6], 1)
        broker.deliver(Publication("room", "new", 1, "another"))
        await client.read(session, 4)
        assert (client.got[-1], client.missed) == ("new", 2)
        assert client.since == {"room": {"offset": 1, "epoch": "another"}}
    assert hub.counts.lost == 2


async def test_what_was_published_before_a_loss_comes_before_its_news() -> None:
    app = application()
    hub: Hub = app.state.hub
    async with open_session(app, "/room") as session:
        epoch = (await session.receive_json())["since"]["epoch"]
        for offset, stream in ((1, epoch), (2, epoch), (7, "new"), (8, "new")):
            hub.deliver(Publication("room", "x", offset, stream))  # all in one turn
        told = await received(session, 5)
        assert [each.get("offset") for each in told] == [1, 2, None, 7, 8]
        assert told[2]["since"] == {"offset": 6, "epoch": "new"}


async def test_a_loss_before_the_accept_begins_the_answer_anew() -> None:
    accept = asyncio.Event()
    joined = asyncio.Event()

    class Late(Room):
        def last_will(self) -> None:
            return None

        async def on_connect(self, websocket: WebSocket) -> None:
            self._lifecycle._send_event = slowly(self._lifecycle._send_event)
            await websocket.accept()

    def slowly(send: Any) -> Any:
        async def later(event: Any) -> None:
            if event["type"] == "websocket.accept":
                joined.set()
                await accept.wait()
            await send(event)

        return later

    app = Starlette(routes=[WebSocketRoute("/late", Late)])
    hub = app.state.hub = Hub()
    first = await hub.publish("room", 1)
    since = {"room": {"offset": 0, "epoch": first.epoch}}

    async def talk() -> list[Any]:
        async with open_session(app, address("/late", since)) as session:
            return await received(session, 2)

    talking = asyncio.ensure_future(talk())
    await joined.wait()
    hub.deliver(Publication("room", "lost", 9, "another"))
    accept.set()
    assert await talking == [
        {"channel": "room", "since": {"offset": 8, "epoch": "another"}, "recovered": False},
        {"channel": "room", "offset": 9, "data": "lost"},
    ]


@pytest.mark.parametrize("seed", range(10))
async def test_clients_that_come_and_go_miss_nothing_and_get_nothing_twice(seed: int) -> None:
    """On a broker whose answers overtake each other, and with deliveries lost and repeated."""
    broker = Unreliable(MemoryBroker(history_size=1000), seed)
    app = application(broker=broker)
    random = Random(seed)
    chances = Random(seed)
    broker.fate = lambda delivery: chances.choice((0, 1, 1, 1, 1, 2))
    last = 250

    async def publish() -> None:
        for n in range(1, last + 1):
            await app.state.hub.publish("room", n)
            await asyncio.sleep(0)
        broker.fate = lambda delivery: 1
        await app.state.hub.publish("room", last + 1)  # so that the gap before it is seen

    async def follow(path: str) -> None:
        client = Client()
        while not client.got or client.got[-1] <= last:
            async with open_session(app, address(path, client.since)) as session:
                for _ in range(random.randint(0, 40)):
                    if client.got and client.got[-1] > last:
                        break
                    client.take(await session.receive_json(timeout=5))
                for _ in range(random.randint(0, 9)):
                    await asyncio.sleep(0)
        assert client.got == list(range(client.got[0], last + 2))
        assert client.missed == 0

    await asyncio.gather(publish(), *(follow(path) for path in ("/room", "/remembering") * 5))
    assert app.state.hub.counts.lost == 0


# At no cost


async def test_all_clients_share_the_frame_of_a_publication() -> None:
    app = application()
    hub: Hub = app.state.hub
    async with (
        open_session(app, "/room") as one,
        open_session(app, "/both") as two,
        open_session(app, "/remembering") as three,
    ):
        await hub.publish("room", 1)
        for session in (one, two, three):
            while "data" not in await session.receive_json():
                pass
        (fanout,) = hub._fanouts.values()
        assert len(fanout.channels["room"].feeds) == 1


async def test_the_publisher_is_spared_while_it_is_connected() -> None:
    app = application()
    client = Client()
    async with open_session(app, "/room") as session:
        await session.send_json(["others", "mine"])
        client.take(await session.receive_json())
        assert await session.receive_json() == ["done"]
        await session.assert_no_message(timeout=0.01)
    async with open_session(app, address("/room", client.since)) as session:
        await client.read(session, 1)  # it is another client now
        assert client.got == ["mine"]


# Declarations


def test_mistakes_in_a_class() -> None:
    with pytest.raises(TypeError, match=r"^Text\.recover needs Text\.encoding = 'json', .*'text'$"):
        type("Text", (Endpoint,), {"encoding": "text", "recover": True})
    with pytest.raises(TypeError, match=r"^Any\.recover needs Any\.encoding = 'json', .*None$"):
        type("Any", (Endpoint,), {"recover": True})
    with pytest.raises(TypeError, match=r"^Wrong\.recover must be True or False, got 5"):
        type("Wrong", (Endpoint,), {"encoding": "json", "recover": 5})
    with pytest.raises(TypeError, match=r"^Near\.recove: did you mean 'recover'"):
        type("Near", (Endpoint,), {"encoding": "json", "recove": True})
    with pytest.raises(
        TypeError, match=r"^Taken\.since can't be the query parameter 'since', which Taken\.recover"
    ):

        class Taken(Endpoint):
            encoding = "json"
            recover = True
            since: FromQuery[int] = 0

    async def inner(since: int = 0) -> int:
        return since

    async def outer(page: Annotated[int, Depends(inner)]) -> int:
        return page

    with pytest.raises(TypeError, match=r"^Asking\.rows\.page\.since can't be the query parameter"):

        class Asking(Endpoint):
            encoding = "json"
            recover = True
            rows: Annotated[int, Depends(outer)]

    class Free(Endpoint):
        encoding = "json"
        since: FromQuery[int] = 0

    with pytest.raises(TypeError, match=r"^Derived\.since"):
        type("Derived", (Free,), {"recover": True})


# FastAPI, and a `TestClient`


class Say(Message):
    text: str


class Ok(Message):
    pass


def in_fastapi() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.websocket("/rooms/{room}")
    class Typed(Endpoint):
        room: FromPath[str]
        channels = ("room:{room}",)
        recover = True
        reject_as = "close"

        @on_message
        async def say(self, websocket: WebSocket, message: Say) -> Ok:
            await self.publish(message)
            return Ok()

    return app


def test_in_fastapi() -> None:
    client = Client()
    with TestClient(in_fastapi()) as http:
        with http.websocket_connect("/rooms/a") as session:
            client.take(session.receive_json())
            session.send_json({"type": "say", "text": "one"})
            client.take(session.receive_json())
            assert session.receive_json() == {"type": "ok"}
        with http.websocket_connect("/rooms/a") as session:
            session.receive_json()
            session.send_json({"type": "say", "text": "two"})
            assert session.receive_json()["offset"] == 2
        with http.websocket_connect(address("/rooms/a", client.since)) as session:
            assert session.receive_json()["recovered"] is True
            client.take(session.receive_json())
        assert [each["text"] for each in client.got] == ["one", "two"]
        with (
            http.websocket_connect("/rooms/a?since=7") as session,
            pytest.raises(WebSocketDisconnect) as closed,
        ):
            session.receive_json()
        assert closed.value.code == 4422
        assert closed.value.reason.startswith("query parameter 'since' must ")


async def test_positions_are_as_many_as_channels_may_be() -> None:
    app = application(limits=Limits(max_channels=1))
    with pytest.raises(WebSocketDenialResponse) as denied:
        TestClient(app).websocket_connect(address("/room", {"a": START, "b": START})).__enter__()
    assert denied.value.text == "query parameter 'since' must not have more than 1 channels"
