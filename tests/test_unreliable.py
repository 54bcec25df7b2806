"""What the hub promises, on a broker that behaves as one behind a network does."""

import asyncio
import contextlib
from random import Random

import pytest

from chatserver.brokers import MemoryBroker
from chatserver.connection import QueuedConnection
from chatserver.errors import BrokerUnavailable
from chatserver.hub import Hub, Subscribed
from chatserver.publication import (
    ClientInfo,
    Delivery,
    Frame,
    Position,
    Publication,
)
from tests.asgi import MemoryServer, accepted, until
from tests.unreliable import Unreliable

pytestmark = pytest.mark.anyio


def made(seed: int = 0, size: int = 1000) -> tuple[Unreliable, Hub]:
    broker = Unreliable(MemoryBroker(history_size=size), seed)
    return broker, Hub(broker)


def offset(delivery: Delivery) -> Frame:
    assert isinstance(delivery, Publication)
    return Frame(f"{delivery.offset}")


def answer(subscribed: Subscribed) -> list[Frame]:
    missed = ",".join(str(each.offset) for each in subscribed.publications)
    return [Frame(f"{subscribed.recovered}:{missed}:{subscribed.position.offset}")]


async def registered(hub: Hub) -> tuple[MemoryServer, QueuedConnection]:
    server, connection = await accepted(hub.limits)
    hub.register(connection)
    return server, connection


async def publish(hub: Hub, count: int, channel: str = "a") -> Position:
    for _ in range(count):
        position = await hub.publish(channel, "x")
    return position


async def gone(hub: Hub, *connections: QueuedConnection) -> None:
    for connection in connections:
        connection.close()
        await hub.unregister(connection)
        await connection.finish()


def check(texts: list[str], since: int | None, recent: int = 0) -> None:
    """An answer, then every publication after its position, once and in order."""
    recovered, missed, position = texts[0].split(":")
    offsets = [int(each) for each in missed.split(",") if each]
    if since is not None and recovered == "True":
        assert offsets == list(range(since + 1, int(position) + 1))
    else:
        newest = range(max(int(position) - recent, 0) + 1, int(position) + 1)
        assert offsets == list(newest if recent else ())
    live = [int(each) for each in texts[1:]]
    assert live == list(range(int(position) + 1, int(position) + 1 + len(live)))


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_doubled_however_answers_overtake_each_other(seed: int) -> None:
    """Clients come and go, with and without a position, while it is published all the time."""
    _, hub = made(seed)
    random = Random(seed)
    first = await publish(hub, 5)
    publishing = asyncio.ensure_future(publish(hub, 150))

    async def visit(number: int) -> None:
        server, connection = await registered(hub)
        for _ in range(random.randint(0, 30)):
            await asyncio.sleep(0)
        since = Position(random.randint(0, 5), first.epoch) if number % 3 else None
        recent = random.choice((0, 1, 7)) if since is None else 0
        subscribed = await hub.subscribe(
            connection, "a", encoder=offset, since=since, recent=recent, answer=answer
        )
        if since is not None:
            assert subscribed.recovered
        if number % 2:
            await publishing
            await until(lambda: server.texts and server.texts[-1].split(":")[-1] == "155")
        await until(lambda: server.texts)
        check(server.texts, None if since is None else since.offset, recent)
        await gone(hub, connection)

    await asyncio.gather(*(visit(number) for number in range(12)), publishing)
    assert hub.statistics().subscriptions == 0
    assert hub.counts.lost == 0


@pytest.mark.parametrize("seed", range(5))
async def test_what_was_dropped_on_the_way_is_read_from_history_once_for_all(seed: int) -> None:
    broker, hub = made(seed)
    clients = [await registered(hub) for _ in range(5)]
    for _, connection in clients:
        await hub.subscribe(connection, "a", encoder=offset)
    await publish(hub, 3)
    broker.fate = lambda delivery: 0
    await publish(hub, 4)
    broker.fate = lambda delivery: 1
    await publish(hub, 2)
    await until(lambda: all(len(server.texts) == 9 for server, _ in clients))
    for server, _ in clients:
        assert server.texts == [str(n) for n in range(1, 10)]
    assert broker.reads == 1
    assert hub.counts.lost == 0
    await gone(hub, *(connection for _, connection in clients))


async def test_what_is_delivered_again_is_dropped() -> None:
    broker, hub = made()
    server, connection = await registered(hub)
    await hub.subscribe(connection, "a", encoder=offset)
    broker.fate = lambda delivery: 3
    await publish(hub, 5)
    await until(lambda: len(server.texts) >= 5)
    await asyncio.sleep(0)
    assert server.texts == ["1", "2", "3", "4", "5"]
    await gone(hub, connection)


async def test_late_deliveries_are_no_part_of_an_answer_twice() -> None:
    """History knows already what the broker is still to deliver."""
    broker, hub = made()
    _, other = await registered(hub)
    await hub.subscribe(other, "a")
    first = await publish(hub, 2)
    broker.holding = True
    await publish(hub, 3)
    server, connection = await registered(hub)
    since = Position(1, first.epoch)
    await hub.subscribe(connection, "a", encoder=offset, since=since, answer=answer)
    await publish(hub, 1)
    broker.let_go()
    await publish(hub, 1)
    await until(lambda: len(server.texts) == 3)
    assert server.texts == ["True:2,3,4,5:5", "6", "7"]
    await gone(hub, connection, other)


async def test_a_gap_that_history_does_not_have_is_told(caplog: pytest.LogCaptureFixture) -> None:
    broker, hub = made(size=2)
    told: list[tuple[str, int]] = []
    plain, one = await registered(hub)
    rich, two = await registered(hub)
    await hub.subscribe(one, "a", encoder=offset)
    await hub.subscribe(
        two, "a", encoder=offset, on_lost=lambda name, at: told.append((name, at.offset))
    )
    await publish(hub, 2)
    broker.fate = lambda delivery: 0
    await publish(hub, 5)
    broker.fate = lambda delivery: 1
    await publish(hub, 1)
    await until(lambda: len(plain.texts) == 4)
    assert plain.texts == ["1", "2", "7", "8"]
    # A client that was told is written nothing more, until it subscribes anew.
    assert rich.texts == ["1", "2"]
    assert told == [("a", 6)]
    assert hub.counts.lost == 2
    assert ["lost" in each for each in caplog.messages] == [True]
    await hub.leave(two, "a")
    await hub.subscribe(two, "a", encoder=offset)
    await publish(hub, 1)
    await until(lambda: rich.texts[-1] == "9")
    await gone(hub, one, two)


async def test_a_stream_begun_anew_is_told() -> None:
    broker, hub = made()
    told: list[Position] = []
    server, connection = await registered(hub)
    await hub.subscribe(
        connection, "a", encoder=offset, on_lost=lambda _, position: told.append(position)
    )
    await publish(hub, 2)
    # An engine that was restarted, and has forgotten all.
    broker.deliver(Publication("a", "x", 1, "another epoch"))
    await until(lambda: told)
    assert told == [Position(0, "another epoch")]
    assert server.texts == ["1", "2"]
    assert hub.counts.lost == 1
    await gone(hub, connection)


async def test_a_check_finds_what_was_missed_in_silence() -> None:
    broker, hub = made()
    server, connection = await registered(hub)
    await hub.subscribe(connection, "a", encoder=offset)
    await publish(hub, 1)
    broker.fate = lambda delivery: 0
    await publish(hub, 3)
    await hub.check()
    await until(lambda: server.texts == ["1", "2", "3", "4"])
    assert hub.counts.lost == 0
    await gone(hub, connection)


async def test_a_check_while_deliveries_come_loses_nothing() -> None:
    """The broker's answer is older than what was delivered meanwhile, or newer."""
    _, hub = made()
    server, connection = await registered(hub)
    await hub.subscribe(connection, "a", encoder=offset)
    for _ in range(20):
        await asyncio.gather(hub.check(), publish(hub, 3), hub.check())
    await until(lambda: len(server.texts) >= 60)
    assert server.texts == [str(number) for number in range(1, 61)]
    assert hub.counts.lost == 0
    await gone(hub, connection)


async def test_a_check_tells_what_the_history_does_not_have_any_more() -> None:
    broker, hub = made(size=2)
    server, connection = await registered(hub)
    await hub.subscribe(connection, "a", encoder=offset)
    broker.fate = lambda delivery: 0
    await publish(hub, 5)
    broker.fate = lambda delivery: 1
    await hub.check()
    await until(lambda: server.texts == ["4", "5"])
    assert hub.counts.lost == 1
    await gone(hub, connection)


async def test_a_check_tells_that_a_stream_was_begun_anew() -> None:
    broker, hub = made()
    told: list[Position] = []
    _, connection = await registered(hub)
    await hub.subscribe(connection, "a", on_lost=lambda _, position: told.append(position))
    await publish(hub, 2)
    assert isinstance(broker.inner, MemoryBroker)
    broker.inner._streams.clear()  # as an engine that has forgotten all
    await hub.check()
    await until(lambda: told)
    assert (told[0].offset, hub.counts.lost) == (0, 1)
    await hub.check()
    assert hub.counts.lost == 1
    await gone(hub, connection)


async def test_what_can_not_be_read_now_is_read_after_the_next_check() -> None:
    broker, hub = made()
    server, connection = await registered(hub)
    await hub.subscribe(connection, "a", encoder=offset)
    broker.fate = lambda delivery: 0
    await publish(hub, 2)
    broker.fate, broker.failing, reads = (lambda delivery: 1), 1.0, broker.reads
    broker.deliver(Publication("a", "x", 3, (await broker.inner.history("a")).position.epoch))
    await until(lambda: broker.reads > reads)
    broker.failing = 0.0
    await publish(hub, 1)
    while len(server.texts) < 3:
        await hub.check()
    assert server.texts == ["1", "2", "3"]
    assert hub.counts.lost == 0
    await gone(hub, connection)


@pytest.mark.parametrize("seed", range(10))
async def test_a_broker_that_fails_leaves_nothing_behind_and_loses_nothing(seed: int) -> None:
    broker, hub = made(seed)
    random = Random(seed)
    broker.failing = 0.3

    async def persist(channel: str) -> None:
        """Try again and again, as clients do."""
        server, connection = await registered(hub)
        info = ClientInfo(connection.id) if random.random() < 0.5 else None
        while True:
            try:
                await hub.subscribe(connection, channel, encoder=offset, info=info, answer=answer)
                break
            except BrokerUnavailable:
                continue
        acknowledged = 0
        for number in range(20):
            while True:
                try:
                    position = await hub.publish(channel, "x", id=f"{connection.id}:{number}")
                    break
                except BrokerUnavailable:
                    continue
            acknowledged = position.offset
        await until(lambda: server.texts and int(server.texts[-1].split(":")[-1]) >= acknowledged)
        check(server.texts, None)
        connection.close()
        with contextlib.suppress(BrokerUnavailable):
            await hub.unregister(connection)
        await connection.finish()

    await asyncio.gather(*(persist("ab"[number % 2]) for number in range(8)))
    for channel in "ab":
        stream = await broker.inner.history(channel)
        assert stream.position.offset == 80  # an id is published once, however often it is tried
    assert (hub._routes, hub._fanouts) == ({}, {})
    assert hub.statistics().subscriptions == 0
