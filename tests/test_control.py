"""Control from anywhere: users and clients are disconnected, or made to leave a channel."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from chatserver import Endpoint, FromPath, Hub, MemoryBroker, lifespan
from chatserver.brokers import Broker, Control
from chatserver.brokers.urls import broker_from_url
from chatserver.connection import QueuedConnection
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Delivery, Frame, Joined, Left, Position
from chatserver.testing import LiveServer, live_server, open_session
from tests.asgi import Edge, MemoryServer, accepted, until, wait_until
from tests.engines import Valkey

pytest_plugins = ["tests.engines"]
pytestmark = pytest.mark.anyio

#: Seconds within which all must be done.
SOON = 1.0


class Tab(Endpoint[str]):
    encoding = "json"
    name: FromPath[str]
    channels = ("room", "side")
    presence = True

    async def authenticate(self, websocket: WebSocket) -> str:
        return self.name

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(self.connection.id)

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        return data

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        self.scope["app"].state.ended.append((self.name, close_code))


async def control(request: Request) -> JSONResponse:
    """Calls what the body says, from wherever the route runs."""
    what, options = await request.json()
    await getattr(request.app.state.hub, what)(**options)
    return JSONResponse("done")


def application(broker: Broker | None = None) -> Starlette:
    app = Starlette(
        routes=[WebSocketRoute("/{name}", Tab), Route("/control", control, methods=["POST"])],
        lifespan=lifespan,
    )
    app.state.hub = Hub(broker)
    app.state.ended = []
    return app


class Linked(MemoryBroker):
    """A broker of one process of several: control messages reach all."""

    def __init__(self, others: "list[Linked]") -> None:
        super().__init__()
        self.others = others
        others.append(self)

    async def tell(self, control: Control) -> None:
        for each in self.others:
            each.control(control)


@contextmanager
def tabs(server: LiveServer, *names: str) -> Iterator[list[ClientConnection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(f"{server.ws}/{name}")) for name in names]


def ids(clients: list[ClientConnection]) -> list[str]:
    """Their identifiers, which each gets first; afterwards it has its channels, too."""
    return [json.loads(each.recv(timeout=5)) for each in clients]


def tell(server: LiveServer, what: str, **options: Any) -> None:
    """Call a method of the hub in an HTTP route."""
    httpx2.post(f"{server.http}/control", json=[what, options]).raise_for_status()


def present(hub: Hub, channel: str) -> list[str]:
    return sorted(each.user for each in asyncio.run(hub.present(channel)).values())


def closed(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as end:
        client.recv(timeout=SOON)
    assert end.value.rcvd is not None
    return end.value.rcvd.code, end.value.rcvd.reason


def is_heard(client: ClientConnection) -> None:
    """It is connected, and was sent nothing before this."""
    client.send('"still here"')
    assert client.recv(timeout=5) == '"still here"'


# On real servers


def test_all_tabs_of_a_user_are_closed_and_nobody_elses(edge: Edge) -> None:
    app = application()
    with live_server(app, **edge) as server, tabs(server, "ann", "ann", "bob", "ann") as clients:
        ids(clients)
        ann, bob = [*clients[:2], clients[3]], clients[2]
        began = time.monotonic()
        tell(server, "disconnect", user="ann")
        assert [closed(each) for each in ann] == [(1008, "disconnected by the application")] * 3
        wait_until(lambda: app.state.ended == [("ann", 1008)] * 3)
        assert time.monotonic() - began < SOON
        assert present(app.state.hub, "room") == ["bob"]
        is_heard(bob)
        assert app.state.hub.statistics().connections == 1


def test_from_a_thread() -> None:
    app = application()
    with live_server(app) as server, tabs(server, "ann", "bob") as (ann, bob):
        ids([ann, bob])
        asyncio.run(app.state.hub.unsubscribe(user="bob", channel="room"))
        asyncio.run(app.state.hub.disconnect(user="ann"))
        assert closed(ann)[0] == 1008
        wait_until(lambda: present(app.state.hub, "room") == [])
        is_heard(bob)


def test_one_client_is_closed_with_a_code_and_a_reason(edge: Edge) -> None:
    app = application()
    with live_server(app, **edge) as server, tabs(server, "ann", "ann") as clients:
        one, _ = ids(clients)
        app.state.hub.publish_from_thread("room", "before")
        tell(server, "disconnect", client=one, code=4000, reason="é" * 100)
        assert clients[0].recv(timeout=5) == '"before"'  # what was sent before comes first
        assert closed(clients[0]) == (4000, "é" * 61)
        assert clients[1].recv(timeout=5) == '"before"'
        is_heard(clients[1])


def test_who_was_unsubscribed_gets_no_more_and_stays_connected(edge: Edge) -> None:
    app = application()
    hub: Hub = app.state.hub
    with live_server(app, **edge) as server, tabs(server, "ann", "bob", "ann") as clients:
        ids(clients)
        began = time.monotonic()
        tell(server, "unsubscribe", user="ann", channel="room")
        wait_until(lambda: present(hub, "room") == ["bob"])
        assert time.monotonic() - began < SOON
        for channel in ("room", "side"):
            hub.publish_from_thread(channel, channel)
        for name, client in zip(("ann", "bob", "ann"), clients, strict=True):
            heard = ["side"] if name == "ann" else ["room", "side"]
            assert [json.loads(client.recv(timeout=5)) for _ in heard] == heard
            is_heard(client)
        assert present(hub, "side") == ["ann", "ann", "bob"]
        assert app.state.ended == []


def test_who_is_just_connecting_is_reached_as_well(edge: Edge) -> None:
    """Its handshake waits for the broker; what it was told is done right after."""

    class Slow(MemoryBroker):
        async def subscribe(self, channel: str) -> Position:
            position = await super().subscribe(channel)
            if channel == "room":
                await hub.unsubscribe(user="ann", channel="room")
                await hub.disconnect(user="bob")
                await asyncio.sleep(0.01)
            return position

    app = application(Slow())
    hub: Hub = app.state.hub
    with live_server(app, **edge) as server:
        with tabs(server, "ann") as (ann,):
            ids([ann])
            wait_until(lambda: hub.statistics().subscriptions == 1)
            assert present(hub, "room") == []
            is_heard(ann)
        with tabs(server, "bob") as (bob,):
            assert closed(bob) == (1008, "disconnected by the application")
        wait_until(lambda: app.state.ended == [("ann", 1000), ("bob", 1008)])
        assert hub.statistics().connections == 0
    assert (hub._closing, hub._leaving) == ({}, set())


def test_every_server_carries_it_out(valkey: Valkey) -> None:
    apps = [application(broker_from_url(valkey.url)) for _ in range(2)]
    with (
        live_server(apps[0]) as one,
        live_server(apps[1]) as two,
        tabs(one, "ann", "bob") as here,
        tabs(two, "ann", "bob") as there,
    ):
        ids([*here, *there])
        began = time.monotonic()
        tell(one, "unsubscribe", user="bob", channel="side")
        tell(one, "disconnect", user="ann", code=4000, reason="elsewhere")
        assert closed(here[0]) == closed(there[0]) == (4000, "elsewhere")
        wait_until(lambda: all(app.state.hub.statistics().subscriptions == 1 for app in apps))
        assert time.monotonic() - began < SOON
        for each in (here[1], there[1]):
            is_heard(each)


# In memory


async def test_every_process_carries_it_out() -> None:
    others: list[Linked] = []
    apps = [application(Linked(others)) for _ in range(2)]
    async with (
        open_session(apps[0], "/ann") as one,
        open_session(apps[1], "/ann") as two,
        open_session(apps[1], "/bob") as three,
    ):
        for each in (one, two, three):
            await each.receive_json()
        await apps[0].state.hub.unsubscribe(user="ann", channel="room")
        await until(lambda: apps[1].state.hub.statistics().subscriptions == 3)
        await apps[0].state.hub.disconnect(user="ann", code=1012, reason="come back")
        for each in (one, two):
            told = await each.receive()
            assert (told["code"], told["reason"]) == (1012, "come back")
        await three.assert_no_message(timeout=0.01)


async def test_others_see_that_a_client_left_once() -> None:
    hub = Hub(rules={"room": {"join_leave": True}})
    seen: list[Delivery] = []

    def see(delivery: Delivery) -> Frame | None:
        seen.append(delivery)
        return None

    _, watcher = await accepted()
    hub.register(watcher)
    await hub.subscribe(watcher, "room", encoder=see)
    _, connection = await accepted()
    hub.register(connection, "ann")
    info = ClientInfo(connection.id, "ann")
    left: list[str] = []
    await hub.subscribe(connection, "room", info=info, last_will="gone", on_left=left.append)
    for _ in range(2):
        await hub.unsubscribe(user="ann", channel="room")
    await hub.unsubscribe(client=connection.id, channel="elsewhere")
    await until(lambda: len(seen) == 2)
    assert [type(each) for each in seen] == [Joined, Left]
    assert (left, await hub.present("room")) == (["room"], {})
    for each in (connection, watcher):
        each.close()
        await hub.unregister(each)
        await each.finish()
    assert len(seen) == 2


async def test_a_channels_task_ends_with_the_last_one_that_was_unsubscribed() -> None:
    running: list[str] = []

    class Game(Tab):
        @classmethod
        async def while_occupied(cls, channel: str, hub: Hub) -> None:
            running.append(channel)
            try:
                await asyncio.Event().wait()
            finally:
                running.remove(channel)

    app = application()
    app.router.routes.insert(0, WebSocketRoute("/games/{name}", Game))
    async with open_session(app, "/games/ann") as session:
        await session.receive_json()
        assert running == ["room", "side"]
        await app.state.hub.unsubscribe(user="ann", channel="room")
        await until(lambda: running == ["side"])
    assert running == []


async def test_a_loss_of_the_connection_in_the_handshake_leaves_nothing_behind() -> None:
    """It was told to close, and is gone before it was accepted."""
    hub = Hub()
    server = MemoryServer()
    connection = QueuedConnection(server.receive, server.send, hub.limits)
    hub.register(connection, "ann")
    await hub.disconnect(user="ann")
    await until(lambda: hub._closing)
    await hub.unregister(connection)
    assert hub._closing == {}
    await connection.finish()


@pytest.mark.parametrize("who", [{}, {"user": ""}, {"user": "ann", "client": "c"}])
async def test_exactly_one_is_meant(who: dict[str, Any]) -> None:
    hub = Hub()
    with pytest.raises(ValueError, match="expected either a user or a client, got user="):
        await hub.disconnect(**who)
    with pytest.raises(ValueError, match="expected either a user or a client, got user="):
        await hub.unsubscribe(channel="room", **who)


async def test_what_can_not_be_meant() -> None:
    hub = Hub()
    number: Any = 7
    with pytest.raises(TypeError, match="the name of a user or client must be a str, got int"):
        await hub.disconnect(user=number)
    with pytest.raises(ValueError, match="a channel's name must not be empty"):
        await hub.unsubscribe(channel="", user="ann")
    with pytest.raises(ValueError, match="must not have lone surrogates"):
        await hub.disconnect(user="\ud800")
    with pytest.raises(TypeError, match="the reason must be a str, got int"):
        await hub.disconnect(user="ann", reason=number)
    codes: list[Any] = [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, "1008", None, 1008.5]
    for code in codes:
        with pytest.raises(ValueError, match="can't be sent as a close code; 1008 and"):
            await hub.disconnect(user="ann", code=code)


async def test_a_broker_that_could_not_tell_all_says_so() -> None:
    class Down(MemoryBroker):
        async def tell(self, control: Control) -> None:
            raise BrokerUnavailable("down")

    hub = Hub(Down())
    with pytest.raises(BrokerUnavailable):
        await hub.disconnect(user="ann")
    with pytest.raises(BrokerUnavailable):
        await hub.unsubscribe(user="ann", channel="room")
