"""The hub: its members and what they get, over event loops, threads and failures."""

import asyncio
import gc
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, cast

import pytest
from msgspec import Raw, structs
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint
from chatserver.brokers import MemoryBroker
from chatserver.connection import Connection, QueuedConnection
from chatserver.errors import BrokerUnavailable, TooManyChannels
from chatserver.hub import Hub, Statistics, Subscribed
from chatserver.hub.fanout import INBOX_SIZE
from chatserver.limits import Limits
from chatserver.publication import (
    PLAIN,
    ClientInfo,
    Delivery,
    Encoder,
    Frame,
    History,
    Payload,
    Position,
    Publication,
)
from chatserver.testing import live_server
from tests.asgi import PATIENCE, Edge, MemoryServer, accepted, raw_client, until, wait_until

pytestmark = pytest.mark.anyio

#: A position in no stream that there is: what was missed since is asked for, and not there.
ANYWHERE = Position(0, "elsewhere")


async def client(
    hub: Hub, *channels: str, encoder: Encoder = PLAIN["text"]
) -> tuple[MemoryServer, QueuedConnection]:
    """A registered connection, in these channels."""
    server, connection = await accepted(hub.limits)
    hub.register(connection)
    for channel in channels:
        await hub.subscribe(connection, channel, encoder=encoder)
    return server, connection


async def gone(hub: Hub, *connections: Connection) -> None:
    for connection in connections:
        connection.close()
        await hub.unregister(connection)
        await connection.finish()


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.start(coroutine).result(PATIENCE)

    def call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return self.run(call())

    def close(self) -> None:
        """Stop and close it, whatever still runs on it."""

        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


@contextmanager
def loops(count: int) -> Iterator[list[Loop]]:
    made = [Loop() for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


@contextmanager
def often_switching() -> Iterator[None]:
    """Let threads take turns more often than they would, to find more of what can happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class GatedBroker(MemoryBroker):
    """A broker as slow or as broken as a network's: each step waits, or raises, when told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.calls: list[str] = []

    def close_gate(self, step: str) -> None:
        self.gates[step] = asyncio.Event()

    def open_gate(self, step: str) -> None:
        self.gates[step].set()

    async def step(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.errors:
            raise self.errors[name]

    async def subscribe(self, channel: str) -> Position:
        await self.step("subscribe")
        return await super().subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        await self.step("unsubscribe")
        await super().unsubscribe(channel)

    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        await self.step("enter")
        await super().enter(channel, info, last_will=last_will)

    async def leave(self, channel: str, client: str) -> None:
        await self.step("leave")
        await super().leave(channel, client)

    async def history(self, channel: str, **options: Any) -> History:
        await self.step("history")
        return await super().history(channel, **options)

    def is_clean(self) -> bool:
        """Whether it has no connections and channels left."""
        return not self._subscribed and not self._presence


# Publishing


async def test_a_publication_reaches_every_subscriber_of_its_channel() -> None:
    hub = Hub()
    clients = [await client(hub, "a") for _ in range(3)]
    other, elsewhere = await client(hub, "b")
    position = await hub.publish("a", "hi")
    assert position.offset == 1
    await until(lambda: all(server.texts == ["hi"] for server, _ in clients))
    assert other.sent == []
    await gone(hub, elsewhere, *(connection for _, connection in clients))


async def test_a_channel_without_subscribers_can_be_published_to() -> None:
    hub = Hub()
    assert (await hub.publish("nobody", {"a": 1})).offset == 1
    (kept,) = (await hub.history("nobody")).publications
    assert kept.data == Raw(b'{"a":1}')


async def test_publications_arrive_in_order_with_what_is_sent_directly() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    for number in range(100):
        await hub.publish("a", f"published {number}")
        await connection.push(Frame(f"pushed {number}"))
    expected = [f"{how} {number}" for number in range(100) for how in ("published", "pushed")]
    await until(lambda: len(server.sent) == 200)
    assert server.texts == expected
    await gone(hub, connection)


async def test_publishers_at_once_are_heard_by_all_in_one_order() -> None:
    hub = Hub()
    clients = [await client(hub, "a") for _ in range(5)]
    await asyncio.gather(*(hub.publish("a", str(number)) for number in range(500)))
    await until(lambda: all(len(server.sent) == 500 for server, _ in clients))
    assert len({tuple(server.texts) for server, _ in clients}) == 1
    await gone(hub, *(connection for _, connection in clients))


def test_a_broker_is_no_url() -> None:
    with pytest.raises(TypeError, match=r"a Broker, as broker_from_url\(url\) makes one; got str"):
        Hub(cast(Any, "memory:"))


@pytest.mark.parametrize("channel", [None, 1, b"a", ["a"]])
async def test_a_channel_is_named_by_a_string(channel: Any) -> None:
    hub = Hub()
    _server, connection = await client(hub)
    with pytest.raises(TypeError, match="must be a str"):
        await hub.publish(channel, "hi")
    with pytest.raises(TypeError, match="must be a str"):
        await hub.subscribe(connection, channel)
    assert hub.statistics().published == 0
    await gone(hub, connection)


@pytest.mark.parametrize(
    ("channel", "why"), [("", "must not be empty"), ("a\udc80", "must not have lone surrogates")]
)
async def test_a_channel_has_a_name(channel: str, why: str) -> None:
    hub = Hub()
    _server, connection = await client(hub)
    with pytest.raises(ValueError, match=why):
        await hub.publish(channel, "hi")
    with pytest.raises(ValueError, match=why):
        await hub.subscribe(connection, channel)
    await gone(hub, connection)


@pytest.mark.parametrize(
    ("id", "why"),
    [
        ("", "an id must not be empty"),
        ("a\udc80", "an id must not have lone surrogates"),
        (17, "an id must be a str, got int"),
        (b"a", "an id must be a str, got bytes"),
    ],
)
async def test_an_id_that_names_nothing_is_refused_before_anything_is_stored(
    id: Any, why: str
) -> None:
    hub = Hub()
    with pytest.raises((TypeError, ValueError), match=why):
        await hub.publish("a", "hi", id=id)
    assert (await hub.history("a")).publications == ()
    assert hub.statistics().published == 0


@pytest.mark.parametrize(
    ("data", "error"),
    [(object(), TypeError), ("\ud800", ValueError), ({"a": "\ud800"}, ValueError)],
)
async def test_what_cannot_be_sent_is_not_published(data: Any, error: type[Exception]) -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    with pytest.raises(error):
        await hub.publish("a", data)
    await hub.publish("a", "fine")
    await until(lambda: server.texts == ["fine"])
    assert hub.statistics().published == 1
    await gone(hub, connection)


async def test_what_the_broker_does_not_have_is_not_acknowledged() -> None:
    class Down(MemoryBroker):
        async def publish(
            self,
            channel: str,
            data: Payload,
            *,
            id: str | None = None,
            info: ClientInfo | None = None,
            keep: bool = True,
            skip: str = "",
        ) -> Position:
            raise BrokerUnavailable("down")

    hub = Hub(Down())
    with pytest.raises(BrokerUnavailable):
        await hub.publish("a", "hi")
    assert hub.statistics().published == 0


async def test_a_publication_is_encoded_once_per_wire_format() -> None:
    calls: dict[str, int] = {}

    def counting(name: str) -> Encoder:
        def encode(delivery: Delivery) -> Frame:
            calls[name] = calls.get(name, 0) + 1
            return Frame(f"{name}:{delivery!r}")

        return encode

    hub = Hub()
    encoders = [counting("one"), counting("two")]
    clients = [await client(hub, "a", encoder=encoders[number % 2]) for number in range(200)]
    await hub.publish("a", "hi")
    await until(lambda: all(len(server.sent) == 1 for server, _ in clients))
    assert calls == {"one": 1, "two": 1}
    first, third = clients[0][0].sent[0], clients[2][0].sent[0]
    assert first is third  # framed once too
    await gone(hub, *(connection for _, connection in clients))
    await hub.publish("a", "nobody is there")
    assert calls == {"one": 1, "two": 1}


async def test_the_same_id_is_delivered_once() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    first = await hub.publish("a", "hi", id="1")
    assert await hub.publish("a", "hi", id="1") == first
    await hub.publish("a", "done")
    await until(lambda: server.texts == ["hi", "done"])
    await gone(hub, connection)


# Over event loops and threads


async def test_a_publication_reaches_the_subscribers_on_every_loop() -> None:
    hub = Hub()
    here, connection = await client(hub, "a")
    with loops(3) as others:
        clients = [each.run(client(hub, "a")) for each in others]
        await hub.publish("a", "from here")
        await until(lambda: all(server.texts == ["from here"] for server, _ in clients))
        await asyncio.to_thread(others[0].run, hub.publish("a", "from there"))
        await until(lambda: all(len(server.texts) == 2 for server in [here, *dict(clients)]))
        assert hub.statistics().subscriptions == 4
        for each, (_, theirs) in zip(others, clients, strict=True):
            each.run(gone(hub, theirs))
    await gone(hub, connection)
    assert hub._fanouts == {}


async def test_all_loops_hear_all_publishers_in_one_order() -> None:
    hub = Hub()
    here, connection = await client(hub, "a")
    rounds = 300

    async def publish(name: str) -> None:
        for number in range(rounds):
            await hub.publish("a", f"{name}{number}")

    with often_switching(), loops(3) as others:
        clients = [each.run(client(hub, "a")) for each in others]
        started = [each.start(publish(f"loop{n}:")) for n, each in enumerate(others)]
        await asyncio.gather(publish("here:"), *map(asyncio.wrap_future, started))
        servers = [here, *(server for server, _ in clients)]
        await until(lambda: all(len(server.sent) == rounds * 4 for server in servers))
        assert len({tuple(server.texts) for server in servers}) == 1
        for each, (_, theirs) in zip(others, clients, strict=True):
            each.run(gone(hub, theirs))
    await gone(hub, connection)


async def test_publish_from_thread() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    position = await asyncio.to_thread(hub.publish_from_thread, "a", "hi", id="1")
    again = await asyncio.to_thread(hub.publish_from_thread, "a", "hi", id="1")
    assert position == again == Position(1, position.epoch)
    await until(lambda: server.texts == ["hi"])
    with pytest.raises(TypeError):
        await asyncio.to_thread(hub.publish_from_thread, "a", object())
    await gone(hub, connection)


async def test_publish_from_thread_refuses_to_block_a_loop() -> None:
    with pytest.raises(RuntimeError, match=r"await hub\.publish"):
        Hub().publish_from_thread("a", "hi")


def test_publish_from_a_thread_without_any_subscriber() -> None:
    assert Hub().publish_from_thread("a", "hi").offset == 1


async def test_a_loop_closed_with_members_that_are_behind_delays_no_publisher() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    with loops(1) as (other,):
        other.run(client(hub, "a"))
    for number in range(INBOX_SIZE * 2):
        await asyncio.wait_for(hub.publish("a", str(number)), PATIENCE)
    await until(lambda: len(server.sent) == INBOX_SIZE * 2)
    await gone(hub, connection)
    # Nobody unregistered them; they are forgotten with the next that comes.
    _, connection = await client(hub, "a")
    assert hub.statistics().connections == 1
    assert hub.statistics().subscriptions == 1
    await gone(hub, connection)
    assert hub._routes == {}


async def test_a_publisher_is_held_back_by_a_busy_loop_and_goes_on_with_it() -> None:
    hub = Hub()
    busy = threading.Event()
    with loops(1) as (other,):
        server, theirs = other.run(client(hub, "a"))
        other.loop.call_soon_threadsafe(busy.wait)
        publishing = asyncio.ensure_future(publish_many(hub, "a", INBOX_SIZE + 50))
        (fanout,) = hub._routes["a"]
        await until(lambda: len(fanout._inbox) > INBOX_SIZE)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len(fanout._inbox) == INBOX_SIZE + 1
        assert not publishing.done()
        busy.set()
        await asyncio.wait_for(publishing, PATIENCE)
        await until(lambda: len(server.sent) == INBOX_SIZE + 50)
        other.run(gone(hub, theirs))


async def test_publishing_is_not_starved_by_a_thread_that_publishes_without_end() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    ended = threading.Event()

    def publish() -> None:
        async def publish_on() -> None:
            while not ended.is_set():
                await hub.publish("a", "noise")

        asyncio.run(publish_on())

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in range(50):
                await hub.publish("a", "signal")
    finally:
        ended.set()
        await asyncio.to_thread(thread.join)
    await until(lambda: server.texts.count("signal") == 50)
    await gone(hub, connection)


# Slow, dead and hostile clients


async def test_a_slow_client_changes_nothing_for_others() -> None:
    hub = Hub(limits=Limits(max_buffer=10_000))
    slow, stuck = await client(hub, "a")
    clients = [await client(hub, "a") for _ in range(3)]
    slow.block()
    for number in range(100):
        await hub.publish("a", f"{number:01000}")
    await until(lambda: all(len(server.sent) == 100 for server, _ in clients))
    assert (stuck.slow, stuck.close_code) == (True, 1013)
    assert all(connection.close_code is None for _, connection in clients)
    slow.unblock()
    await until(lambda: slow.closes)
    assert len(slow.sent) < 20
    await gone(hub, stuck)
    assert hub.statistics().slow_consumers == 1
    await hub.unregister(stuck)
    assert hub.statistics().slow_consumers == 1
    await gone(hub, *(connection for _, connection in clients))


async def test_a_dead_client_changes_nothing_for_others() -> None:
    hub = Hub()
    dead, lost = await client(hub, "a")
    server, connection = await client(hub, "a")
    dead.failure = OSError("broken pipe")
    for number in range(3):
        await hub.publish("a", str(number))
    await until(lambda: server.texts == ["0", "1", "2"])
    await until(lambda: lost.close_code == 1006)
    await gone(hub, lost, connection)


async def test_publishing_in_a_tight_loop_makes_no_healthy_client_slow() -> None:
    hub = Hub()
    clients = [await client(hub, "a") for _ in range(5)]
    for number in range(5000):
        await hub.publish("a", f"{number:01024}")
    await until(lambda: all(len(server.sent) == 5000 for server, _ in clients))
    assert not any(connection.slow for _, connection in clients)
    await gone(hub, *(connection for _, connection in clients))


class Burst(Endpoint):
    """Publishes to all members as fast as it can, when a client sends a message."""

    channels = ("burst",)
    # More than `max_buffer`, and less than that and what the sockets take in: so a reader that
    # gets no turn on a busy machine is not closed for it.
    count: ClassVar[int] = 2500

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        for number in range(self.count):
            await self.publish(f"{number:01024}")


def test_publishing_in_a_tight_loop_makes_no_healthy_client_of_a_real_server_slow(
    edge: Edge,
) -> None:
    app = Starlette(routes=[WebSocketRoute("/", Burst)])
    size = 4 + 1024  # the frame's header and its payload
    with live_server(app, **edge) as server, ExitStack() as stack:
        clients = [stack.enter_context(raw_client(server, 1 << 20)) for _ in range(3)]
        readers = ThreadPoolExecutor(len(clients))
        stack.enter_context(readers)
        answers = [readers.submit(read, each, size * Burst.count) for each in clients]
        wait_until(lambda: app.state.hub.statistics().subscriptions == len(clients))
        clients[0].sendall(b"\x81\x82" + bytes(4) + b"go")
        for answer in answers:
            frames = answer.result(20)
            said = [int(frames[at + 4 : at + size]) for at in range(0, len(frames), size)]
            assert said == list(range(Burst.count))
        assert app.state.hub.statistics().slow_consumers == 0


def read(client: socket.socket, count: int) -> bytearray:
    """So many bytes of what the server sends, or what came until it ended."""
    received = bytearray()
    while len(received) < count and (data := client.recv(1 << 20)):
        received += data
    return received


@pytest.mark.parametrize(("max_buffer", "count"), [(4096, 100), (1024 * 1024, 4000)])
async def test_publishing_at_once_makes_no_healthy_client_slow(max_buffer: int, count: int) -> None:
    hub = Hub(limits=Limits(max_buffer=max_buffer))
    server, connection = await client(hub, "a")
    await asyncio.gather(*(hub.publish("a", f"{number:01024}") for number in range(count)))
    await until(lambda: len(server.sent) == count or connection.slow)
    assert not connection.slow
    await gone(hub, connection)


# Subscribing


async def test_to_subscribe_answers_with_the_position_and_no_history() -> None:
    hub = Hub()
    before = await publish_many(hub, "a", 3)
    server, connection = await client(hub)
    assert await hub.subscribe(connection, "a") == Subscribed(False, (), before)
    assert list(connection.members) == ["a"]
    await hub.publish("a", "later")
    await until(lambda: server.texts == ["later"])
    await gone(hub, connection)


async def test_recovery_answers_with_exactly_what_was_missed() -> None:
    hub = Hub()
    _server, connection = await client(hub)
    position = await publish_many(hub, "a", 5)
    since = Position(2, position.epoch)
    subscribed = await hub.subscribe(connection, "a", since=since)
    assert subscribed.recovered
    assert [each.data for each in subscribed.publications] == ["2", "3", "4"]
    assert subscribed.position == position
    await gone(hub, connection)


async def test_nothing_missed_is_recovered_too() -> None:
    hub = Hub()
    _, connection = await client(hub)
    position = await publish_many(hub, "a", 5)
    subscribed = await hub.subscribe(connection, "a", since=position)
    assert subscribed == Subscribed(True, (), position)
    await gone(hub, connection)


@pytest.mark.parametrize(
    ("offset", "epoch"), [(1, None), (6, None), (-1, None), (4, "other"), (0, "")]
)
async def test_what_cannot_be_recovered_is_said(offset: int, epoch: str | None) -> None:
    hub = Hub(MemoryBroker(history_size=2))
    _, connection = await client(hub)
    position = await publish_many(hub, "a", 5)
    since = Position(offset, position.epoch if epoch is None else epoch)
    subscribed = await hub.subscribe(connection, "a", since=since)
    assert subscribed == Subscribed(False, (), position)
    await gone(hub, connection)


async def test_what_is_published_while_subscribing_is_part_of_the_answer() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    server, connection = await client(hub)
    since = await publish_many(hub, "a", 2)
    broker.close_gate("history")
    subscribing = asyncio.ensure_future(hub.subscribe(connection, "a", since=since))
    await until(lambda: broker.calls[-1:] == ["history"])
    await publish_many(hub, "a", 2)
    broker.open_gate("history")
    subscribed = await subscribing
    assert [each.offset for each in subscribed.publications] == [3, 4]
    assert subscribed.recovered
    await hub.publish("a", "after")
    await until(lambda: server.texts)
    assert server.texts == ["after"]
    await gone(hub, connection)


async def test_the_answer_is_written_before_all_that_is_live() -> None:
    hub = Hub()
    server, connection = await client(hub)
    since = await publish_many(hub, "a", 2)
    await publish_many(hub, "a", 2)

    def answer(subscribed: Subscribed) -> list[Frame]:
        frames = [Frame("missed"), *(Frame(str(each.data)) for each in subscribed.publications)]
        return [*frames, Frame("that is all")]

    subscribing = hub.subscribe(connection, "a", since=since, answer=answer)
    await asyncio.gather(subscribing, *(hub.publish("a", f"live {n}") for n in range(3)))
    await until(lambda: len(server.texts) == 7)
    missed = ["missed", "0", "1", "that is all"]
    assert server.texts == [*missed, "live 0", "live 1", "live 2"]
    await gone(hub, connection)


async def opening(hub: Hub) -> tuple[MemoryServer, QueuedConnection]:
    """A registered connection that is not accepted yet."""
    server = MemoryServer()
    connection = QueuedConnection(server.receive, server.send, hub.limits)
    connection.start()
    hub.register(connection)
    return server, connection


async def test_what_is_published_before_the_accept_is_written_behind_it() -> None:
    hub = Hub()
    server, connection = await opening(hub)
    await hub.subscribe(connection, "a")
    await hub.subscribe(connection, "b")
    await hub.publish("a", "1")
    await hub.publish("a", "2")
    await hub.publish("b", "3")
    await asyncio.sleep(0)
    assert server.sent == []
    await connection.send({"type": "websocket.accept"})
    await hub.publish("a", "4")  # before anything else comes to its turn
    hub.opened(connection)
    await hub.publish("a", "5")
    await until(lambda: len(server.texts) == 5)
    assert server.sent[0]["type"] == "websocket.accept"
    assert [each for each in server.texts if each != "3"] == ["1", "2", "4", "5"]
    await gone(hub, connection)


async def test_a_subscription_that_outlasts_the_accept_goes_live_by_itself() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    server, connection = await opening(hub)
    broker.close_gate("subscribe")
    subscribing = asyncio.ensure_future(hub.subscribe(connection, "a"))
    await until(lambda: broker.calls == ["subscribe"])
    await connection.send({"type": "websocket.accept"})
    hub.opened(connection)
    broker.open_gate("subscribe")
    await subscribing
    await hub.publish("a", "hi")
    await until(lambda: server.texts == ["hi"])
    await gone(hub, connection)


async def test_what_a_slow_accept_cannot_hold_closes_the_connection() -> None:
    hub = Hub(limits=Limits(max_buffer=4096))
    server, connection = await opening(hub)
    await hub.subscribe(connection, "a")
    for _ in range(10):
        await hub.publish("a", "x" * 1000)
    await connection.send({"type": "websocket.accept"})
    hub.opened(connection)
    await until(lambda: server.closes)
    assert server.closes[0][0] == 1013
    assert server.texts == []
    await gone(hub, connection)


async def test_a_connection_is_in_so_many_channels_at_most() -> None:
    hub = Hub(limits=Limits(max_channels=3))
    _, connection = await client(hub, *"abc")
    with pytest.raises(TooManyChannels, match="3 channels"):
        await hub.subscribe(connection, "d")
    await hub.leave(connection, "a")
    await hub.subscribe(connection, "d")
    await gone(hub, connection)


async def test_a_connection_in_many_channels_leaves_them_between_others() -> None:
    hub = Hub(limits=Limits(max_channels=10_000))
    _, connection = await client(hub, *(f"{number}" for number in range(1000)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    await hub.unregister(connection)
    counting.cancel()
    assert turns >= 10
    assert (hub._routes, hub._fanouts, connection.members) == ({}, {}, {})
    await gone(hub, connection)


async def test_a_broker_belongs_to_one_hub() -> None:
    broker = MemoryBroker()
    hub = Hub(broker)
    with pytest.raises(ValueError, match="belongs to another Hub"):
        Hub(broker)
    server, connection = await client(hub, "a")
    await hub.publish("a", "still here")
    await until(lambda: server.texts == ["still here"])
    await gone(hub, connection)


async def test_what_was_held_of_a_stream_that_was_lost_is_no_part_of_the_new_one() -> None:
    class Restarted(GatedBroker):
        """Loses its streams between a subscription and the reading of its history."""

        async def history(self, channel: str, **options: Any) -> History:
            if self.errors.pop("restart", None):
                self._streams.clear()
                self._ageing.clear()
                await super().subscribe(channel)
                await self.publish(channel, "new")
            return await super().history(channel, **options)

    broker = Restarted()
    hub = Hub(broker)
    server, connection = await client(hub)
    since = await publish_many(hub, "a", 5)
    broker.close_gate("enter")
    subscribing = asyncio.ensure_future(
        hub.subscribe(connection, "a", since=since, info=ClientInfo(connection.id))
    )
    await until(lambda: broker.calls[-1:] == ["enter"])
    await hub.publish("a", "old")
    broker.errors["restart"] = Exception()
    broker.open_gate("enter")
    subscribed = await subscribing
    assert not subscribed.recovered
    assert (subscribed.position.offset, subscribed.position.epoch != since.epoch) == (1, True)
    await hub.publish("a", "newer")
    await until(lambda: server.texts == ["newer"])
    await gone(hub, connection)


async def test_recovery_while_threads_publish_has_no_gap_and_no_duplicate() -> None:
    hub = Hub(MemoryBroker(history_size=100_000))
    ended = threading.Event()
    since = first = await hub.publish("a", "first")

    async def publish() -> None:
        while not ended.is_set():
            top = await hub.publish("a", "x")
            while top.offset - since.offset > 50_000 and not ended.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)  # history isn't for ever: a slow machine's reader

    def encode(delivery: Delivery) -> Frame:
        assert isinstance(delivery, Publication)
        return Frame(str(delivery.offset))

    with often_switching():
        thread = threading.Thread(target=lambda: asyncio.run(publish()))
        thread.start()
        try:
            for number in range(100):
                server, connection = await client(hub)
                subscribed = await hub.subscribe(connection, "a", since=since, encoder=encode)
                answered = [each.offset for each in subscribed.publications]
                if number % 2:
                    await some(server, 20)
                else:
                    await asyncio.sleep(0)
                await hub.leave(connection, "a")
                connection.close()
                await connection.finish()
                await hub.unregister(connection)
                seen = answered + [int(offset) for offset in server.texts]
                assert subscribed.recovered
                assert seen == list(range(since.offset + 1, since.offset + 1 + len(seen)))
                assert subscribed.position.offset == since.offset + len(answered)
                since = Position(since.offset + len(seen), first.epoch)
        finally:
            ended.set()
            await asyncio.to_thread(thread.join)
    assert since.offset > 100


async def test_to_subscribe_twice_is_an_error_and_changes_nothing() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    with pytest.raises(ValueError, match="in channel 'a' already"):
        await hub.subscribe(connection, "a")
    await hub.publish("a", "once")
    await until(lambda: server.texts)
    assert server.texts == ["once"]
    await gone(hub, connection)


async def test_to_subscribe_twice_at_once_is_an_error_for_the_second() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    server, connection = await client(hub)
    broker.close_gate("history")
    first = asyncio.ensure_future(hub.subscribe(connection, "a", since=ANYWHERE))
    await until(lambda: "history" in broker.calls)
    with pytest.raises(ValueError, match="already"):
        await hub.subscribe(connection, "a")
    broker.open_gate("history")
    await first
    await hub.publish("a", "hi")
    await until(lambda: server.texts == ["hi"])
    await gone(hub, connection)


async def test_to_unsubscribe_twice_or_from_elsewhere_is_harmless() -> None:
    hub = Hub()
    server, connection = await client(hub, "a")
    await hub.leave(connection, "b")
    await hub.leave(connection, "a")
    await hub.leave(connection, "a")
    await hub.publish("a", "nobody hears")
    await hub.subscribe(connection, "a")
    await hub.publish("a", "hi")
    await until(lambda: server.texts)
    assert server.texts == ["hi"]
    await gone(hub, connection)


async def test_only_a_registered_connection_can_subscribe() -> None:
    hub = Hub()
    _, connection = await client(hub, "a")
    await gone(hub, connection)
    with pytest.raises(ValueError, match="not registered"):
        await hub.subscribe(connection, "a")
    assert hub.statistics().subscriptions == 0
    assert hub._fanouts == {}


async def test_presence() -> None:
    hub = Hub()
    _, one = await client(hub)
    _, two = await client(hub, "a")
    info = ClientInfo(one.id, "alice")
    await hub.subscribe(one, "a", info=info)
    before = time.time()
    (entry,) = (await hub.present("a")).values()
    assert structs.replace(entry, since=0.0) == info
    assert before - 60 < entry.since <= time.time()
    await gone(hub, one, two)
    assert await hub.present("a") == {}


# At the broker: once for the first, once for the last


async def test_the_broker_is_told_of_the_first_and_of_the_last_subscriber() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    connections = [(await client(hub, "a"))[1] for _ in range(3)]
    assert broker.calls.count("subscribe") == 1
    for connection in connections:
        assert broker.calls.count("unsubscribe") == 0
        await hub.leave(connection, "a")
    assert broker.calls.count("unsubscribe") == 1
    assert broker.is_clean()
    await gone(hub, *connections)


async def test_a_subscriber_that_comes_while_the_first_one_subscribes_waits_with_it() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    clients = [await client(hub) for _ in range(3)]
    broker.close_gate("subscribe")
    subscribing = [asyncio.ensure_future(hub.subscribe(each, "a")) for _, each in clients]
    await until(lambda: broker.calls == ["subscribe"])
    for _ in range(5):
        await asyncio.sleep(0)
    assert broker.calls == ["subscribe"]
    broker.open_gate("subscribe")
    await asyncio.gather(*subscribing)
    assert broker.calls.count("subscribe") == 1
    await gone(hub, *(connection for _, connection in clients))
    assert broker.is_clean()


async def test_when_the_first_gives_up_the_next_one_subscribes() -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, one = await client(hub)
    server, two = await client(hub)
    broker.close_gate("subscribe")
    first = asyncio.ensure_future(hub.subscribe(one, "a"))
    second = asyncio.ensure_future(hub.subscribe(two, "a"))
    await until(lambda: broker.calls == ["subscribe"])
    first.cancel()
    broker.open_gate("subscribe")
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert broker._subscribed == {"a"}
    await hub.publish("a", "hi")
    await until(lambda: server.texts == ["hi"])
    await gone(hub, one, two)
    assert broker.is_clean()


async def test_a_subscriber_that_comes_while_the_last_one_leaves_stays_subscribed() -> None:
    broker = GatedBroker(history_size=0)
    hub = Hub(broker)
    _, one = await client(hub, "a")
    server, two = await client(hub)
    broker.close_gate("unsubscribe")
    leaving = asyncio.ensure_future(hub.leave(one, "a"))
    await until(lambda: broker.calls[-1:] == ["unsubscribe"])
    joining = asyncio.ensure_future(hub.subscribe(two, "a"))
    for _ in range(5):
        await asyncio.sleep(0)
    broker.open_gate("unsubscribe")
    subscribed = await joining
    await leaving
    assert broker._subscribed == {"a"}
    position = await hub.publish("a", "hi")
    assert position == Position(subscribed.position.offset + 1, subscribed.position.epoch)
    await until(lambda: server.texts == ["hi"])
    await gone(hub, one, two)


async def test_coming_and_going_on_many_loops_loses_nothing() -> None:
    broker = MemoryBroker(history_size=0)  # forgets a channel as soon as nobody follows it
    hub = Hub(broker)

    async def come_and_go() -> list[str]:
        wrong: list[str] = []
        _server, connection = await client(hub)
        for _ in range(100):
            subscribed = await hub.subscribe(connection, "a")
            position = await hub.publish("a", "x")
            if position.epoch != subscribed.position.epoch:
                wrong.append(f"{subscribed.position} but {position}")
            await hub.leave(connection, "a")
        await gone(hub, connection)
        return wrong

    with often_switching(), loops(4) as others:
        started = [asyncio.wrap_future(each.start(come_and_go())) for each in others]
        assert await asyncio.gather(*started) == [[]] * 4
    assert broker._subscribed == set()
    assert broker.channels == 0
    assert (hub._routes, hub._fanouts) == ({}, {})


# Whatever was registered is unregistered, also on cancellation and failure


@pytest.mark.parametrize("step", ["subscribe", "enter", "history"])
async def test_a_failed_subscription_leaves_nothing_behind(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    server, connection = await client(hub)
    broker.errors[step] = BrokerUnavailable("down")
    with pytest.raises(BrokerUnavailable):
        await hub.subscribe(connection, "a", info=ClientInfo(connection.id), since=ANYWHERE)
    assert broker.is_clean()
    assert connection.members == {}
    assert hub.statistics().subscriptions == 0
    assert hub._routes == {}
    # And it can be tried again.
    del broker.errors[step]
    await hub.subscribe(connection, "a", info=ClientInfo(connection.id))
    await hub.publish("a", "hi")
    await until(lambda: server.texts == ["hi"])
    await gone(hub, connection)
    assert broker.is_clean()


@pytest.mark.parametrize("step", ["subscribe", "enter", "history"])
async def test_a_cancelled_subscription_leaves_nothing_behind(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, connection = await client(hub)
    broker.close_gate(step)
    subscribing = asyncio.ensure_future(
        hub.subscribe(connection, "a", info=ClientInfo(connection.id), since=ANYWHERE)
    )
    await until(lambda: broker.calls[-1:] == [step])
    subscribing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await subscribing
    assert broker.is_clean()
    assert "unsubscribe" in broker.calls  # it may have got as far as the broker
    assert connection.members == {}
    assert hub._routes == {}
    await gone(hub, connection)


@pytest.mark.parametrize("step", ["leave", "unsubscribe"])
async def test_a_second_cancellation_leaves_nothing_behind_either(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, connection = await client(hub)
    broker.close_gate("history")
    broker.close_gate(step)
    subscribing = asyncio.ensure_future(
        hub.subscribe(connection, "a", info=ClientInfo(connection.id), since=ANYWHERE)
    )
    await until(lambda: broker.calls[-1:] == ["history"])
    subscribing.cancel()
    await until(lambda: broker.calls[-1:] == [step])
    subscribing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await subscribing
    broker.open_gate(step)
    await until(broker.is_clean)
    await gone(hub, connection)


@pytest.mark.parametrize("step", ["leave", "unsubscribe"])
async def test_a_cancelled_unsubscription_is_carried_out(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, connection = await client(hub)
    await hub.subscribe(connection, "a", info=ClientInfo(connection.id))
    broker.close_gate(step)
    leaving = asyncio.ensure_future(hub.unregister(connection))
    await until(lambda: broker.calls[-1:] == [step])
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert hub.statistics().connections == 0
    broker.open_gate(step)
    await until(broker.is_clean)
    await gone(hub, connection)


@pytest.mark.parametrize("step", ["leave", "unsubscribe"])
async def test_a_broker_that_is_down_does_not_keep_a_connection_registered(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, connection = await client(hub)
    for channel in "abc":
        await hub.subscribe(connection, channel, info=ClientInfo(connection.id))
    broker.errors[step] = BrokerUnavailable("down")
    with pytest.raises(BrokerUnavailable):
        await hub.unregister(connection)
    assert broker.calls.count(step) == 3
    assert hub.statistics().connections == 0
    assert (hub._routes, hub._fanouts, connection.members) == ({}, {}, {})
    await gone(hub, connection)


@pytest.mark.parametrize("step", ["subscribe", "enter", "history"])
async def test_to_unsubscribe_while_subscribing_leaves_nothing_behind(step: str) -> None:
    broker = GatedBroker()
    hub = Hub(broker)
    _, connection = await client(hub)
    broker.close_gate(step)
    subscribing = asyncio.ensure_future(
        hub.subscribe(connection, "a", info=ClientInfo(connection.id), since=ANYWHERE)
    )
    await until(lambda: broker.calls[-1:] == [step])
    leaving = asyncio.ensure_future(hub.unregister(connection))
    for _ in range(5):
        await asyncio.sleep(0)
    broker.open_gate(step)
    with pytest.raises(RuntimeError, match="left channel 'a' while"):
        await subscribing
    await leaving
    assert broker.is_clean()
    assert (hub._routes, hub._fanouts, connection.members) == ({}, {}, {})
    await gone(hub, connection)


async def test_to_unregister_unknown_or_twice_is_harmless() -> None:
    hub = Hub()
    _, connection = await accepted()
    await hub.unregister(connection)
    hub.register(connection)
    await hub.subscribe(connection, "a")
    await asyncio.gather(hub.unregister(connection), hub.unregister(connection))
    assert hub.statistics().connections == 0
    assert hub._fanouts == {}
    await gone(hub, connection)


async def test_an_error_that_comes_after_the_cancellation_is_nobodys_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(MemoryBroker):
        leaving = asyncio.Event()

        async def leave(self, channel: str, client: str) -> None:
            await self.leaving.wait()
            raise BrokerUnavailable("the engine is gone")

    broker = Late()
    hub = Hub(broker)
    _, connection = await accepted()
    hub.register(connection)
    await hub.subscribe(connection, "a", info=ClientInfo(connection.id))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hub.unregister(connection), 0.01)
    broker.leaving.set()
    await until(lambda: not hub._tasks)
    gc.collect()
    assert caplog.messages == []
    await connection.finish()


async def test_nothing_is_left_after_many_cancelled_at_any_moment() -> None:
    class Slow(MemoryBroker):
        """Takes a turn of the loop for every step."""

        async def subscribe(self, channel: str) -> Position:
            await asyncio.sleep(0)
            position = await super().subscribe(channel)
            await asyncio.sleep(0)
            return position

        async def unsubscribe(self, channel: str) -> None:
            await asyncio.sleep(0)
            await super().unsubscribe(channel)
            await asyncio.sleep(0)

        async def enter(
            self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
        ) -> None:
            await asyncio.sleep(0)
            await super().enter(channel, info, last_will=last_will)
            await asyncio.sleep(0)

    broker = Slow()
    hub = Hub(broker)
    before = asyncio.all_tasks()

    async def visit(number: int) -> None:
        _, connection = await accepted()
        hub.register(connection)
        info = ClientInfo(connection.id)
        try:
            await hub.subscribe(connection, f"{number % 3}", info=info)
            await hub.publish(f"{number % 3}", "hi")
            await hub.leave(connection, f"{number % 3}")
        finally:
            await hub.unregister(connection)
            await connection.finish()

    visits = [asyncio.ensure_future(visit(number)) for number in range(200)]
    for number, each in enumerate(visits):
        if number % 8 == 0:
            await asyncio.sleep(0)
        if number % 3:
            each.cancel()
    await asyncio.gather(*visits, return_exceptions=True)
    await until(lambda: asyncio.all_tasks() <= before)
    assert not broker._subscribed
    assert not broker._presence
    assert (hub._routes, hub._fanouts) == ({}, {})


# Statistics


async def test_statistics() -> None:
    hub = Hub()
    names = ("connections", "channels", "subscriptions", "published", "delivered")
    nothing = dict.fromkeys(names, 0)
    assert hub.statistics() == Statistics(**nothing)
    _, one = await client(hub, "a", "b")
    _, two = await client(hub, "a")
    _, idle = await client(hub)
    await hub.publish("a", "hi")
    await hub.publish("b", "hi")
    await hub.publish("nobody", "hi")
    await asyncio.sleep(0)
    expected = Statistics(connections=3, channels=2, subscriptions=3, published=3, delivered=3)
    assert hub.statistics() == expected
    await gone(hub, one, two, idle)
    assert hub.statistics() == Statistics(**{**nothing, "published": 3, "delivered": 3})


async def test_statistics_can_be_asked_for_in_any_thread() -> None:
    hub = Hub()
    ended = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        while not ended.is_set():
            try:
                assert hub.statistics().subscriptions >= 0
            except Exception as error:
                failures.append(error)
                return

    with often_switching():
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for number in range(100):
                _, connection = await client(hub, *(f"{number}:{n}" for n in range(10)))
                await gone(hub, connection)
        finally:
            ended.set()
            await asyncio.to_thread(thread.join)
    assert failures == []


async def some(server: MemoryServer, count: int) -> None:
    await until(lambda: len(server.sent) > count)


async def publish_many(hub: Hub, channel: str, count: int) -> Position:
    for number in range(count):
        position = await hub.publish(channel, str(number))
    return position


async def test_a_client_that_comes_back_at_once_is_present() -> None:
    """Though the broker is still being told that it left, which it was cancelled at."""
    hub = Hub()
    _, connection = await accepted()
    hub.register(connection)
    me = ClientInfo(connection.id)
    await hub.subscribe(connection, "a", info=me)
    leaving = asyncio.ensure_future(hub.leave(connection, "a"))
    await asyncio.sleep(0)
    leaving.cancel()
    await hub.subscribe(connection, "a", info=me)
    await until(lambda: not hub._tasks)
    assert list(await hub.present("a")) == [connection.id]
    await gone(hub, connection)
    assert await hub.present("a") == {}
