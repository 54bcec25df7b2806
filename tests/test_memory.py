"""What is the memory broker's own: its clock, and the bounds of its memory."""

import time

import pytest

from chatserver.brokers import Broker, Health, MemoryBroker
from chatserver.publication import History, Position
from chatserver.rules import rules_by_name
from tests.test_brokers import Delivered, data, fill

pytestmark = pytest.mark.anyio

SIZE, TTL = 5, 60.0


class Clock:
    """Seconds that go on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    return MemoryBroker(history_size=SIZE, history_ttl=TTL, clock=clock)


@pytest.fixture
def delivered(broker: Broker) -> Delivered:
    return Delivered(broker)


@pytest.fixture
def channel() -> str:
    return "test"


@pytest.fixture
async def top(broker: Broker, channel: str) -> Position:
    """The position after three publications, "1", "2" and "3"."""
    await broker.subscribe(channel)
    return await fill(broker, channel, 3)


async def test_an_id_is_known_for_five_minutes_at_least(
    broker: Broker, clock: Clock, delivered: Delivered, channel: str
) -> None:
    first = await broker.publish(channel, "a", id="1")
    clock.now += 299.9
    assert await broker.publish(channel, "a", id="1") == first
    assert len(delivered) == 1
    # Having asked again does not make it last longer.
    clock.now += 0.2
    assert await broker.publish(channel, "a", id="1") != first
    assert len(delivered) == 2


async def test_history_is_bounded_by_age(broker: Broker, clock: Clock, channel: str) -> None:
    await broker.subscribe(channel)
    await broker.publish(channel, "old")
    clock.now += TTL / 2
    await broker.publish(channel, "young")
    clock.now += TTL / 2 - 1
    assert data((await broker.history(channel)).publications) == ["old", "young"]
    clock.now += 2
    assert data((await broker.history(channel)).publications) == ["young"]
    clock.now += TTL / 2
    assert (await broker.history(channel)).publications == ()


async def test_a_followed_channel_keeps_its_epoch_while_its_history_ages_out(
    broker: Broker, clock: Clock, channel: str
) -> None:
    await broker.subscribe(channel)
    before = await fill(broker, channel, 3)
    clock.now += TTL * 100
    history = await broker.history(channel)
    assert (history.publications, history.position) == ((), before)
    assert await broker.publish(channel, "4") == Position(4, before.epoch)


async def test_a_channel_with_history_outlives_its_subscribers(
    broker: Broker, clock: Clock, channel: str, top: Position
) -> None:
    await broker.unsubscribe(channel)
    clock.now += TTL - 1
    history = await broker.history(channel, since=Position(1, top.epoch))
    assert data(history.publications) == ["2", "3"]
    assert await broker.publish(channel, "4") == Position(4, top.epoch)


async def test_a_forgotten_channel_comes_back_with_another_epoch(
    broker: Broker, clock: Clock, channel: str, top: Position
) -> None:
    await broker.unsubscribe(channel)
    clock.now += TTL + 1
    history = await broker.history(channel, since=top)
    assert history.publications == ()
    assert history.position.epoch != top.epoch
    again = await broker.publish(channel, "a")
    assert again.offset == 1
    assert again.epoch != top.epoch


@pytest.mark.parametrize("follow", [False, True])
async def test_memory_does_not_grow_with_the_channels_that_were(follow: bool) -> None:
    clock = Clock()
    broker = MemoryBroker(history_size=2, history_ttl=TTL, clock=clock)
    most = 0
    for number in range(100_000):
        name = f"channel:{number}"
        if follow:
            await broker.subscribe(name)
        await broker.publish(name, "x", id=name)
        if follow:
            await broker.unsubscribe(name)
        clock.now += 0.1
        if number % 1000 == 0:
            most = max(most, broker.channels, len(broker._ids) // 5)
    assert most <= TTL * 10 + 1
    clock.now += 1000
    assert broker.channels == 0
    leftover = (broker._streams, broker._ageing, broker._ids, broker._subscribed, broker._presence)
    assert not any(leftover)


@pytest.mark.parametrize(("size", "ttl"), [(0, TTL), (SIZE, 0.0)])
async def test_a_memory_broker_without_history_remembers_followed_channels_only(
    size: int, ttl: float, channel: str
) -> None:
    broker = MemoryBroker(history_size=size, history_ttl=ttl, clock=Clock())
    await broker.publish(channel, "nobody follows")
    assert broker.channels == 0
    await broker.subscribe(channel)
    positions = [await broker.publish(channel, "x") for _ in range(3)]
    assert [position.offset for position in positions] == [1, 2, 3]
    assert await broker.history(channel, since=positions[0]) == History((), positions[2])
    await broker.unsubscribe(channel)
    assert broker.channels == 0


async def test_a_question_does_not_make_a_memory_broker_remember(channel: str) -> None:
    broker = MemoryBroker()
    await broker.history(channel)
    await broker.present(channel)
    await broker.leave(channel, "1")
    assert broker.channels == 0
    assert broker._presence == {}


async def test_a_broker_without_a_hub_delivers_to_nobody(channel: str) -> None:
    assert (await MemoryBroker().publish(channel, "x")).offset == 1


def test_a_memory_broker_is_up_since_it_was_made() -> None:
    before = time.time()
    health = MemoryBroker().health
    assert health == Health("up", health.since)
    assert before <= health.since <= time.time()


async def test_rules_are_a_channels_own(clock: Clock) -> None:
    broker = MemoryBroker(history_size=4, history_ttl=TTL, clock=clock)
    broker.rules = rules_by_name({"short": {"history_size": 2}}, broker.rules)
    for channel in ("short", "long"):
        await fill(broker, channel, 10)
    assert len((await broker.history("short")).publications) == 2
    assert len((await broker.history("long")).publications) == 4


async def test_each_history_lasts_as_long_as_its_channels_rules_say(clock: Clock) -> None:
    broker = MemoryBroker(history_ttl=10, clock=clock)
    broker.rules = rules_by_name({"100": {"history_ttl": 100}}, broker.rules)
    for channel in ("100", "10"):
        await broker.publish(channel, "x")
    clock.now += 11
    assert (await broker.history("10")).publications == ()
    assert len((await broker.history("100")).publications) == 1
    clock.now += 90
    assert (await broker.history("100")).publications == ()
    assert (broker.channels, broker.memory) == (0, 0)


async def test_histories_take_so_many_bytes_and_the_oldest_channels_go_first(clock: Clock) -> None:
    broker = MemoryBroker(history_memory=20_000, clock=clock)
    for number in range(10):
        await broker.publish(f"{number}", "x" * 4000)
        assert broker.memory <= 20_000
    kept = [n for n in range(10) if (await broker.history(f"{n}")).publications]
    assert kept == [6, 7, 8, 9]
    await broker.publish("6", "again")  # so now "7" is the one longest without
    await broker.publish("new", "x" * 4000)
    kept = [n for n in range(10) if (await broker.history(f"{n}")).publications]
    assert kept == [6, 8, 9]


async def test_of_a_single_channel_the_oldest_publications_go_first(clock: Clock) -> None:
    broker = MemoryBroker(history_memory=20_000, clock=clock)
    await broker.subscribe("a")
    for _ in range(50):
        position = await broker.publish("a", "x" * 4000)
        assert broker.memory <= 20_000
    found = await broker.history("a")
    assert found.position == position
    assert found.publications[-1].offset == 50
    # Even one that is larger than all that may be kept is delivered, and keeps its epoch.
    position = await broker.publish("a", "x" * 100_000)
    assert (position.offset, position.epoch) == (51, found.position.epoch)
    assert (await broker.history("a")).publications == ()
    assert broker.memory == 0


async def test_remembered_ids_count_too_and_take_half_at_most(clock: Clock) -> None:
    broker = MemoryBroker(history_memory=100_000, history_size=0, clock=clock)
    for number in range(2000):
        await broker.publish("a", "x", id=f"{number:0100}")
        assert broker.memory <= 50_000
    newest = f"{1999:0100}"
    assert await broker.publish("a", "x", id=newest) == await broker.publish("a", "x", id=newest)


async def test_what_is_remembered_levels_off(clock: Clock) -> None:
    """Under a steady load with ids it grows for five minutes, and no longer."""
    broker = MemoryBroker(history_size=10, history_ttl=TTL, clock=clock)
    await broker.subscribe("a")
    memory = []
    for minute in range(15):
        for second in range(60):
            clock.now += 1
            await broker.publish(f"{second % 7}", "x" * 100, id=f"{minute:02}:{second:02}")
        memory.append(broker.memory)
    assert memory[4] > memory[0]
    assert max(memory[6:]) == memory[5]
