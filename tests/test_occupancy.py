"""The task of a channel: when it begins and ends, and what happens to the members when it fails."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from chatserver import Endpoint, FromPath, FromQuery, Hub, Limits, MemoryBroker, lifespan
from chatserver.brokers import Unsubscribe
from chatserver.endpoints import occupancy
from chatserver.errors import BrokerUnavailable
from chatserver.testing import AsyncSession, live_server, open_session
from tests.asgi import Edge, until, wait_until

client_value: ContextVar[str] = ContextVar("client_value", default="nobody's")


class World:
    """What a channel's task has and its clients use."""

    def __init__(self) -> None:
        self.names: list[str] = []


class Arena(Endpoint):
    """As in the guide, and keeps a record; a subclass per test, so that none shares it."""

    encoding = "json"
    disconnect_timeout = 1.0
    arena: FromPath[str]
    name: FromQuery[str] = "ann"
    channels: ClassVar[Any] = ("arena:{arena}",)

    worlds: ClassVar[dict[str, World]]
    events: ClassVar[list[str]]
    closes: ClassVar[list[tuple[str, int]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.worlds, cls.events, cls.closes = {}, [], []

    async def on_accept(self, websocket: WebSocket) -> None:
        world = self.worlds[self.channel]
        world.names.append(self.name)
        await self.push(world.names)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        self.closes.append((self.name, close_code))

    @classmethod
    async def while_occupied(cls, channel: str, hub: Hub) -> None:
        assert channel not in cls.worlds, "two tasks at once"
        cls.worlds[channel] = World()
        cls.events.append(f"begin {channel}")
        try:
            await cls.loop(channel, hub)
        finally:
            await cls.last(channel)
            del cls.worlds[channel]
            cls.events.append(f"end {channel}")

    @classmethod
    async def loop(cls, channel: str, hub: Hub) -> None:
        await asyncio.Event().wait()

    @classmethod
    async def last(cls, channel: str) -> None:
        """What is done at the end, before the world is gone."""


def application(cls: type[Endpoint], hub: Hub | None = None, **options: Any) -> Starlette:
    app = Starlette(routes=[WebSocketRoute("/{arena}", cls)], **options)
    app.state.hub = hub or Hub()
    return app


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    left = [str(place) for place in occupancy._occupied if not place.loop.is_closed()]
    assert left == []


@pytest.fixture
def faults(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The sentences of the errors that were logged."""
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ]


async def closed(session: AsyncSession) -> tuple[int, str]:
    while (event := await session.receive(timeout=5))["type"] != "websocket.close":
        pass
    return event["code"], event["reason"]


# From the first member to the last


@pytest.mark.anyio
async def test_it_begins_with_the_first_member_and_ends_with_the_last() -> None:
    class Game(Arena):
        pass

    app = application(Game)
    async with open_session(app, "/a") as one:
        assert await one.receive_json() == ["ann"]
        async with open_session(app, "/a?name=bob") as two, open_session(app, "/b?name=eve") as far:
            assert await two.receive_json() == ["ann", "bob"]
            assert await far.receive_json() == ["eve"]
        assert Game.events == ["begin arena:a", "begin arena:b", "end arena:b"]
    assert Game.events[3:] == ["end arena:a"]
    async with open_session(app, "/a") as again:
        assert await again.receive_json() == ["ann"]
    assert Game.events[4:] == ["begin arena:a", "end arena:a"]


@pytest.mark.anyio
async def test_it_has_ended_before_the_last_member_is_told() -> None:
    class Game(Arena):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            self.events.append("told")

        @classmethod
        async def last(cls, channel: str) -> None:
            await asyncio.sleep(0.01)

    async with open_session(application(Game), "/a"):
        pass
    assert Game.events == ["begin arena:a", "end arena:a", "told"]


@pytest.mark.anyio
async def test_many_come_at_once_and_have_one() -> None:
    class Game(Arena):
        pass

    app = application(Game)

    async def visit(name: str) -> int:
        async with open_session(app, f"/a?name={name}") as session:
            return len(await session.receive_json())

    counts = await asyncio.gather(*(visit(f"n{n}") for n in range(20)))
    assert max(counts) > 10
    assert Game.events.count("begin arena:a") == Game.events.count("end arena:a")


@pytest.mark.anyio
async def test_each_class_and_each_hub_has_its_own() -> None:
    running: list[tuple[str, Hub]] = []

    class One(Endpoint):
        channels = ("a",)

        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            running.append((cls.__name__, hub))
            try:
                await asyncio.Event().wait()
            finally:
                running.remove((cls.__name__, hub))

    class Two(One):
        pass

    hubs = [Hub(), Hub()]
    async with (
        open_session(application(One, hubs[0]), "/x"),
        open_session(application(Two, hubs[0]), "/x"),
        open_session(application(Two, hubs[0]), "/x"),
        open_session(application(Two, hubs[1]), "/x"),
    ):
        await until(lambda: running == [("One", hubs[0]), ("Two", hubs[0]), ("Two", hubs[1])])
    assert running == []


@pytest.mark.anyio
async def test_it_publishes_as_anybody_does() -> None:
    class Game(Arena):
        @classmethod
        async def loop(cls, channel: str, hub: Hub) -> None:
            for n in range(100):
                await hub.publish(channel, n, keep=False)
                await asyncio.sleep(0)

    async with open_session(application(Game), "/a") as session:
        assert await session.receive_json() == 0
        assert await session.receive_json() == ["ann"]
        assert [await session.receive_json() for _ in range(99)] == list(range(1, 100))


@pytest.mark.anyio
async def test_its_context_is_nobodys() -> None:
    class Game(Arena):
        async def on_connect(self, websocket: WebSocket) -> None:
            client_value.set(self.name)
            await super().on_connect(websocket)

        @classmethod
        async def loop(cls, channel: str, hub: Hub) -> None:
            cls.events.append(client_value.get())
            await super().loop(channel, hub)

    async with open_session(application(Game), "/a"):
        await until(lambda: Game.events == ["begin arena:a", "nobody's"])


@pytest.mark.anyio
async def test_it_may_return() -> None:
    class Game(Arena):
        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            cls.worlds[channel] = World()
            cls.events.append("once")

    app = application(Game)
    async with open_session(app, "/a") as one, open_session(app, "/a?name=bob") as two:
        assert await one.receive_json() == ["ann"]
        assert await two.receive_json() == ["ann", "bob"]
    assert Game.events == ["once"]
    async with open_session(app, "/a"):
        await until(lambda: Game.events == ["once", "once"])


# Other ways into a channel, and out of it


class Wanderer(Arena):
    """Joins and leaves what its client names."""

    channels: ClassVar[Any] = ()

    async def on_accept(self, websocket: WebSocket) -> None: ...

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        match data:
            case ["join", channel]:
                await self.join(channel)
                return channel in self.worlds
            case ["leave", channel]:
                await self.leave(channel)
                return channel in self.worlds


@pytest.mark.anyio
async def test_join_and_leave() -> None:
    class Game(Wanderer):
        @classmethod
        async def last(cls, channel: str) -> None:
            await asyncio.sleep(0.01)

    async with open_session(application(Game), "/x") as session:
        for word, expected in [("join", True), ("leave", False), ("leave", False), ("join", True)]:
            await session.send_json([word, "a"])
            assert await session.receive_json() == expected
        assert Game.events == ["begin a", "end a", "begin a"]
    assert Game.events[3:] == ["end a"]


@pytest.mark.anyio
async def test_a_member_that_the_hub_takes_out_is_none() -> None:
    class Game(Arena):
        async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
            await self.hub.leave(self.connection, self.channel)

    app = application(Game)
    async with open_session(app, "/a") as session:
        await session.send_json(None)
        await until(lambda: Game.events == ["begin arena:a", "end arena:a"])
    hub = app.state.hub
    async with open_session(app, "/a"):
        (member,) = [each for fanout in hub._fanouts.values() for each in fanout.connections]
        await hub.broker.tell(Unsubscribe("arena:a", client=member.id))
        await until(lambda: Game.events[2:] == ["begin arena:a", "end arena:a"])
        async with open_session(app, "/a?name=bob") as other:
            assert await other.receive_json() == ["bob"]


class Refusing(MemoryBroker):
    """Can't deliver the channel "b"; `asked` counts."""

    asked = 0

    async def subscribe(self, channel: str) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if channel == "b":
            raise BrokerUnavailable("not now")
        return await super().subscribe(channel)


@pytest.mark.anyio
async def test_a_client_that_is_refused_is_no_member() -> None:
    class Game(Arena):
        channels: ClassVar[Any] = ("a", "b")

    broker = Refusing()
    with pytest.raises(WebSocketDisconnect):
        async with open_session(application(Game, Hub(broker)), "/x"):
            pass
    assert (Game.events, broker.asked) == ([], 2)


@pytest.mark.anyio
async def test_where_authenticate_accepts() -> None:
    class Game(Arena):
        async def authenticate(self, websocket: WebSocket) -> None:
            await websocket.accept()
            self.events.append(await websocket.receive_text())

    async with open_session(application(Game), "/a") as session:
        await session.send_text("a token")
        assert await session.receive_json() == ["ann"]
    assert Game.events == ["a token", "begin arena:a", "end arena:a"]


# The end takes time


@pytest.mark.anyio
async def test_who_comes_meanwhile_waits_for_its_end() -> None:
    class Game(Arena):
        gate: ClassVar[asyncio.Event] = asyncio.Event()

        @classmethod
        async def last(cls, channel: str) -> None:
            cls.events.append("saving")
            await cls.gate.wait()

    app = application(Game)

    async def visit(name: str) -> list[str]:
        async with open_session(app, f"/a?name={name}") as session:
            names: list[str] = await session.receive_json()
            return names

    first = asyncio.create_task(visit("ann"))
    await until(lambda: "saving" in Game.events)
    others = [asyncio.create_task(visit(name)) for name in ("bob", "eve")]
    await until(lambda: app.state.hub.statistics().connections == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert Game.events == ["begin arena:a", "saving"]
    Game.gate.set()
    assert await first == ["ann"]
    assert [await other for other in others] == [["bob"], ["bob", "eve"]]
    assert Game.events == ["begin arena:a", "saving", "end arena:a"] * 2


@pytest.mark.anyio
async def test_an_end_that_takes_too_long_is_cut(faults: Callable[[], list[str]]) -> None:
    class Game(Arena):
        disconnect_timeout = 0.05

        @classmethod
        async def last(cls, channel: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cls.events.append("cut")
                cls.worlds.clear()

    async with open_session(application(Game), "/a"):
        pass
    assert Game.events == ["begin arena:a", "cut"]
    sentence = "Game.while_occupied('arena:a') took more than 0.05 s to end and was cancelled again"
    assert faults() == [sentence]


@pytest.mark.anyio
async def test_a_handshake_does_not_wait_for_ever() -> None:
    class Game(Arena):
        gate: ClassVar[asyncio.Event] = asyncio.Event()

        @classmethod
        async def last(cls, channel: str) -> None:
            await cls.gate.wait()

    app = application(Game, Hub(limits=Limits(handshake_timeout=0.05)))

    async def visit() -> None:
        async with open_session(app, "/a"):
            pass

    first = asyncio.create_task(visit())
    await until(lambda: app.state.hub.statistics().connections == 0 and Game.events)
    async with open_session(app, "/a?name=bob") as session:
        assert (await closed(session))[0] == 4408
    Game.gate.set()
    await first
    assert sorted(Game.closes) == [("ann", 1000), ("bob", 4408)]
    assert Game.events == ["begin arena:a", "end arena:a"]


# It fails


class Fragile(Arena):
    """Raises what `error` is, after the first message."""

    error: ClassVar[Exception] = ZeroDivisionError("boom")
    said: ClassVar[dict[str, asyncio.Event]] = {}

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        self.said[self.channel].set()

    @classmethod
    async def loop(cls, channel: str, hub: Hub) -> None:
        cls.said[channel] = asyncio.Event()
        await cls.said[channel].wait()
        raise cls.error


def test_a_fault_is_one_traceback_and_closes_the_members(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    class Game(Fragile):
        pass

    with (
        live_server(application(Game), **edge) as server,
        connect(f"{server.ws}/a") as one,
        connect(f"{server.ws}/a?name=bob") as two,
        connect(f"{server.ws}/b?name=eve") as far,
    ):
        one.recv(timeout=5)
        two.recv(timeout=5)
        far.recv(timeout=5)
        two.send("1")
        for client in (one, two):
            with pytest.raises(ConnectionClosed) as end:
                client.recv(timeout=5)
            assert end.value.rcvd is not None
            assert (end.value.rcvd.code, end.value.rcvd.reason) == (1011, "internal error")
        wait_until(lambda: len(Game.closes) == 2)
        assert sorted(Game.closes) == [("ann", 1011), ("bob", 1011)]
        # The next one begins anew.
        with connect(f"{server.ws}/a?name=cat") as again:
            assert again.recv(timeout=5) == '["cat"]'
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in tracebacks] == [
        "Game.while_occupied('arena:a') failed"
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "end", "errors"),
    [
        (WebSocketException(4000, "game over"), (4000, "game over"), []),
        (
            BrokerUnavailable("no route to 10.0.0.1"),
            (1013, "the server is not available right now, try again later"),
            ["BrokerUnavailable: no route to 10.0.0.1"],
        ),
        (
            ExceptionGroup("tasks", [ZeroDivisionError()]),
            (1011, "internal error"),
            ["Game.while_occupied('arena:a') failed"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_closes_a_connection_closes_all(
    error: Exception,
    end: tuple[int, str],
    errors: list[str],
    faults: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from chatserver.endpoints import lifecycle
    from chatserver.endpoints.outcome import OutageLog

    monkeypatch.setattr(lifecycle, "outages", OutageLog())

    class Game(Fragile):
        pass

    Game.error = error
    app = application(Game)
    async with open_session(app, "/a") as one, open_session(app, "/a?name=bob") as two:
        await one.send_json(None)
        assert await closed(one) == await closed(two) == end
    assert sorted(Game.closes) == [("ann", end[0]), ("bob", end[0])]
    assert faults() == errors


@pytest.mark.anyio
async def test_a_fault_at_once(faults: Callable[[], list[str]]) -> None:
    class Game(Arena):
        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            raise ZeroDivisionError

        async def on_accept(self, websocket: WebSocket) -> None:
            self.events.append("came to nothing")

    app = application(Game)
    for n in (1, 2):
        async with open_session(app, "/a") as session:
            assert await closed(session) == (1011, "internal error")
        assert Game.closes == [("ann", 1011)] * n
        assert faults() == ["Game.while_occupied('arena:a') failed"] * n
    assert Game.events == []


@pytest.mark.anyio
async def test_a_fault_at_the_end(faults: Callable[[], list[str]]) -> None:
    class Game(Arena):
        @classmethod
        async def last(cls, channel: str) -> None:
            cls.worlds.clear()
            raise ZeroDivisionError

    async with open_session(application(Game), "/a"):
        pass
    assert Game.closes == [("ann", 1000)]
    assert faults() == ["Game.while_occupied('arena:a') failed"]


# The server stops


class Stopping(MemoryBroker):
    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    async def stop(self) -> None:
        self.events.append("broker stopped")


class Saving(Arena):
    """Takes longer than the server lets its connections."""

    seconds = 0.05

    @classmethod
    async def last(cls, channel: str) -> None:
        cls.events.append("saving")
        await asyncio.sleep(cls.seconds)


@pytest.mark.parametrize("seconds", [0.05, 1.5])
def test_it_ends_before_the_broker_stops(edge: Edge, seconds: float) -> None:
    class Game(Saving):
        disconnect_timeout = 5.0

    Game.seconds = seconds
    app = application(Game, Hub(Stopping(Game.events)), lifespan=lifespan)
    with live_server(app, timeout_graceful_shutdown=1, **edge) as server:
        client = connect(f"{server.ws}/a").__enter__()
        assert client.recv(timeout=5) == '["ann"]'
    assert Game.events == ["begin arena:a", "saving", "end arena:a", "broker stopped"]
    assert Game.closes == [("ann", 1012)]


def test_without_a_lifespan_it_ends_with_the_server(edge: Edge) -> None:
    class Game(Saving):
        pass

    with live_server(application(Game), **edge) as server:
        client = connect(f"{server.ws}/a").__enter__()
        assert client.recv(timeout=5) == '["ann"]'
    assert Game.events == ["begin arena:a", "saving", "end arena:a"]


def test_the_last_to_leave_is_waited_for_where_a_member_stays(edge: Edge) -> None:
    """A handler that outlives the grace keeps its membership; the task is ended nevertheless."""

    class Game(Saving):
        linger = 60.0

        async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
            self.events.append("busy")
            while threading.main_thread().is_alive():
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    if self.hub.broker.events[-1] == "broker stopped":  # type: ignore[union-attr]
                        raise

    app = application(Game, Hub(Stopping(Game.events)), lifespan=lifespan)
    with live_server(app, timeout_graceful_shutdown=1, **edge) as server:
        client = connect(f"{server.ws}/a").__enter__()
        assert client.recv(timeout=5) == '["ann"]'
        client.send("1")
        wait_until(lambda: "busy" in Game.events)
    assert Game.events[1:] == ["busy", "saving", "end arena:a", "broker stopped"]


# In Starlette's test client


def test_in_a_test_client() -> None:
    class Game(Saving):
        pass

    app = application(Game)
    with TestClient(app).websocket_connect("/a") as session:
        assert session.receive_json() == ["ann"]
    assert Game.events == ["begin arena:a", "saving", "end arena:a"]
    with TestClient(app) as client:
        with client.websocket_connect("/a") as one, client.websocket_connect("/a") as two:
            assert one.receive_json() == ["ann"]
            assert two.receive_json() == ["ann", "ann"]
        assert Game.events[3:] == ["begin arena:a", "saving", "end arena:a"]


def test_a_loop_that_was_closed_with_members_is_forgotten() -> None:
    class Game(Arena):
        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            cls.worlds[channel] = World()

    app = application(Game)
    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        session = open_session(app, "/a")
        await session.__aenter__()
        return session

    kept = loop.run_until_complete(begin())
    pending = asyncio.all_tasks(loop)
    loop.close()
    assert len(occupancy._occupied) == 1
    with TestClient(app).websocket_connect("/a"):
        assert [place.loop for place in occupancy._occupied] != [loop]
    assert len(occupancy._occupied) == 0
    for task in pending:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    del kept


# Who has none


@pytest.mark.anyio
async def test_a_class_without_one_has_no_part_in_it() -> None:
    class Plain(Endpoint):
        channels = ("a",)

        async def on_accept(self, websocket: WebSocket) -> None:
            (member,) = self.connection.members.values()
            assert member.on_left is None
            assert not occupancy._occupied

    assert not Plain._has_channel_task
    async with open_session(application(Plain), "/x"):
        pass


def test_a_task_whose_own_helper_was_cancelled_fails_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Helped(Endpoint):
        encoding = "text"
        channels = ("helped",)

        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            await asyncio.sleep(0)
            helper = asyncio.ensure_future(asyncio.sleep(60))
            helper.cancel()
            await helper

    app = Starlette(routes=[WebSocketRoute("/", Helped)], lifespan=lifespan)
    with TestClient(app) as client, client.websocket_connect("/") as session:
        assert session.receive()["code"] == 1011
    assert "what it awaited was cancelled" in caplog.text
