"""The broker's contract: one suite, run over every broker."""

import asyncio
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from msgspec import Raw

from chatserver.brokers import (
    Broker,
    Control,
    Disconnect,
    Health,
    MemoryBroker,
    Unsubscribe,
)
from chatserver.hub import Hub
from chatserver.publication import (
    ClientInfo,
    Delivery,
    History,
    Joined,
    Left,
    Position,
    Publication,
)
from chatserver.rules import rules_by_name
from tests.unreliable import Unreliable

pytestmark = pytest.mark.anyio

SIZE, TTL = 5, 60.0


class Clock:
    """Seconds that go on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Delivered(list[Publication]):
    """Everything that was delivered, and by channel the offsets in the order of delivery."""

    def offsets(self, channel: str) -> list[int]:
        return [publication.offset for publication in self if publication.channel == channel]


def memory(clock: Clock, size: int = SIZE) -> Broker:
    return MemoryBroker(history_size=size, history_ttl=TTL, clock=clock)


def far_away(clock: Clock, size: int = SIZE) -> Broker:
    """The same behind something like a network, which delays calls and reorders answers."""
    return Unreliable(memory(clock, size))


#: Makes a broker that keeps a number of publications per channel.
Make = Callable[..., Broker]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=[memory, far_away])
async def broker(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Broker]:
    made: Broker = request.param(clock)
    yield made
    made.deliver = lambda _: None  # nothing that comes late reaches the next test


@pytest.fixture
def delivered(broker: Broker) -> Delivered:
    delivered = Delivered()
    broker.deliver = lambda delivery: delivered.append(_publication(delivery))
    return delivered


@pytest.fixture
def channel() -> str:
    return f"test:{secrets.token_hex(4)}"


def _publication(delivery: Delivery) -> Publication:
    assert isinstance(delivery, Publication)
    return delivery


async def fill(broker: Broker, channel: str, count: int) -> Position:
    for number in range(count):
        position = await broker.publish(channel, f"{number + 1}")
    return position


def data(publications: tuple[Publication, ...]) -> list[Any]:
    return [publication.data for publication in publications]


# The stream


async def test_offsets_count_up_by_one_in_one_epoch(broker: Broker, channel: str) -> None:
    await broker.subscribe(channel)
    positions = [await broker.publish(channel, "x") for _ in range(20)]
    assert [position.offset for position in positions] == list(range(1, 21))
    assert len({position.epoch for position in positions}) == 1
    assert positions[0].epoch


async def test_channels_have_streams_of_their_own(broker: Broker, channel: str) -> None:
    first = await fill(broker, channel, 3)
    other = await fill(broker, channel + ":other", 1)
    assert (first.offset, other.offset) == (3, 1)
    assert first.epoch != other.epoch


@pytest.mark.parametrize("payload", ["", "é😀", b"", b"\x00\xff", Raw(b'{"a":1}')])
async def test_a_publication_arrives_as_it_was_published(
    broker: Broker, delivered: Delivered, channel: str, payload: str | bytes | Raw
) -> None:
    info = ClientInfo("client", "user")
    await broker.subscribe(channel)
    position = await broker.publish(channel, payload, info=info)
    (got,) = delivered
    assert (got.channel, got.offset, got.epoch) == (channel, position.offset, position.epoch)
    assert got.info == info
    assert type(got.data) is type(payload)
    assert plain(got.data) == plain(payload)
    (kept,) = (await broker.history(channel)).publications
    assert plain(kept.data) == plain(payload)
    assert kept.info == info


async def test_delivery_is_in_the_order_of_offsets(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await asyncio.gather(*(broker.publish(channel, str(number)) for number in range(50)))
    assert delivered.offsets(channel) == list(range(1, 51))


async def test_publishers_in_many_threads_and_loops_leave_no_gap(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    channels = [f"{channel}:{number}" for number in range(3)]
    for name in channels:
        await broker.subscribe(name)
    answers: dict[str, list[Position]] = defaultdict(list)
    in_order: list[bool] = []

    async def publish(worker: int) -> None:
        last = dict.fromkeys(channels, 0)
        for number in range(300):
            name = channels[number % 3]
            position = await broker.publish(name, f"{worker}:{number}")
            answers[name].append(position)
            in_order.append(position.offset > last[name])
            last[name] = position.offset

    await asyncio.to_thread(in_threads, publish, 6)
    assert all(in_order)
    for name in channels:
        assert delivered.offsets(name) == list(range(1, 601))
        assert sorted(position.offset for position in answers[name]) == list(range(1, 601))
        assert len({position.epoch for position in answers[name]}) == 1


async def test_what_one_publisher_says_stays_in_its_order(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)

    async def publish(worker: int) -> None:
        for number in range(200):
            await broker.publish(channel, f"{worker}:{number}")

    await asyncio.to_thread(in_threads, publish, 4)
    for worker in range(4):
        said = [str(each.data) for each in delivered if str(each.data).startswith(f"{worker}:")]
        assert said == [f"{worker}:{number}" for number in range(200)]


# Publishing again with the same id


async def test_the_same_id_is_answered_alike_and_delivers_nothing(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    first = await broker.publish(channel, "a", id="1")
    await broker.publish(channel, "b", id="2")
    assert await broker.publish(channel, "not looked at", id="1") == first
    assert data(tuple(delivered)) == ["a", "b"]
    assert (await broker.history(channel)).position.offset == 2


async def test_an_id_holds_in_its_channel_only(broker: Broker, channel: str) -> None:
    await broker.subscribe(channel)
    await broker.publish(channel, "a", id="1")
    other = await broker.publish(channel + ":other", "a", id="1")
    assert other.offset == 1
    assert (await broker.publish(channel, "b", id="")).offset == 2
    assert (await broker.publish(channel, "b", id="")).offset == 2


async def test_of_many_with_the_same_id_at_once_one_is_published(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    answers: list[Position] = []

    async def publish(worker: int) -> None:
        for number in range(100):
            answers.append(await broker.publish(channel, str(worker), id=str(number)))

    await asyncio.to_thread(in_threads, publish, 4)
    assert delivered.offsets(channel) == list(range(1, 101))
    assert len(answers) == 400
    assert len(set(answers)) == 100


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


# History


@pytest.fixture
async def top(broker: Broker, channel: str) -> Position:
    """The position after three publications, "1", "2" and "3"."""
    await broker.subscribe(channel)
    return await fill(broker, channel, 3)


@pytest.mark.parametrize(
    ("since", "limit", "reverse", "expected"),
    [
        (None, None, False, "123"),
        (None, None, True, "321"),
        (None, 2, False, "12"),
        (None, 2, True, "32"),
        (None, 3, False, "123"),
        (None, 4, False, "123"),
        (None, 0, False, ""),
        (None, -1, False, ""),
        (None, -1, True, ""),
        (0, None, False, "123"),
        (1, None, False, "23"),
        (1, 1, False, "2"),
        (3, None, False, ""),
        (9, None, False, ""),
        (-5, None, False, "123"),
        (3, None, True, "21"),
        (3, 1, True, "2"),
        (1, None, True, ""),
        (0, None, True, ""),
        (9, None, True, "321"),
        (1, 0, False, ""),
    ],
)
async def test_history(
    broker: Broker,
    channel: str,
    top: Position,
    since: int | None,
    limit: int | None,
    reverse: bool,
    expected: str,
) -> None:
    position = None if since is None else Position(since, top.epoch)
    history = await broker.history(channel, since=position, limit=limit, reverse=reverse)
    assert "".join(data(history.publications)) == expected
    assert history.position == top


@pytest.mark.parametrize("reverse", [False, True])
async def test_nothing_follows_from_a_position_in_another_epoch(
    broker: Broker, channel: str, top: Position, reverse: bool
) -> None:
    for epoch in ("other", ""):
        history = await broker.history(channel, since=Position(2, epoch), reverse=reverse)
        assert history.publications == ()
        assert history.position == top


async def test_history_of_a_channel_without_publications(broker: Broker, channel: str) -> None:
    await broker.subscribe(channel)
    history = await broker.history(channel)
    assert (history.publications, history.position.offset) == ((), 0)
    first = await broker.publish(channel, "a")
    assert first == Position(1, history.position.epoch)


async def test_what_was_read_does_not_change(broker: Broker, channel: str, top: Position) -> None:
    history = await broker.history(channel)
    await fill(broker, channel, SIZE)
    assert data(history.publications) == ["1", "2", "3"]


async def test_history_is_bounded_by_number(broker: Broker, channel: str) -> None:
    await fill(broker, channel, SIZE + 3)
    history = await broker.history(channel)
    assert [each.offset for each in history.publications] == list(range(4, SIZE + 4))
    assert history.position.offset == SIZE + 3


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


async def test_to_subscribe_twice_or_unsubscribe_unknown_is_harmless(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.unsubscribe(channel)
    await broker.subscribe(channel)
    await broker.subscribe(channel)
    await broker.publish(channel, "a")
    assert delivered.offsets(channel) == [1]
    await broker.unsubscribe(channel)
    await broker.unsubscribe(channel)


# Presence


async def test_presence(broker: Broker, channel: str) -> None:
    alice, bob = ClientInfo("1", "alice"), ClientInfo("2", "bob")
    assert await broker.present(channel) == {}
    await broker.enter(channel, alice)
    await broker.enter(channel, bob)
    await broker.enter(channel + ":other", alice)
    assert await broker.present(channel) == {"1": alice, "2": bob}
    await broker.leave(channel, "1")
    assert await broker.present(channel) == {"2": bob}
    assert await broker.present(channel + ":other") == {"1": alice}


async def test_to_enter_again_replaces_and_to_leave_unknown_is_ignored(
    broker: Broker, channel: str
) -> None:
    await broker.enter(channel, ClientInfo("1", "alice"))
    await broker.enter(channel, ClientInfo("1", "alicia"))
    await broker.leave(channel, "2")
    await broker.leave(channel + ":other", "1")
    assert await broker.present(channel) == {"1": ClientInfo("1", "alicia")}
    await broker.leave(channel, "1")
    await broker.leave(channel, "1")
    assert await broker.present(channel) == {}


async def test_each_call_of_present_returns_a_dict_of_its_own(broker: Broker, channel: str) -> None:
    await broker.enter(channel, ClientInfo("1"))
    (await broker.present(channel)).clear()
    assert await broker.present(channel) == {"1": ClientInfo("1")}


# The memory broker's own


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


def plain(payload: str | bytes | Raw) -> str | bytes:
    return bytes(payload) if isinstance(payload, Raw) else payload


def in_threads(work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `work(number)` in a number of threads at once, each with an event loop of its own."""
    start = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        start.wait()
        try:
            asyncio.run(work(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


# A life, control, health


async def test_a_life(broker: Broker, channel: str) -> None:
    await broker.start()
    assert (await broker.publish(channel, "x")).offset == 1
    assert broker.health.state == "up"
    assert broker.health.why == ""
    await broker.stop()


async def test_to_subscribe_answers_with_the_top_of_the_stream(
    broker: Broker, channel: str
) -> None:
    nothing = await broker.subscribe(channel)
    assert nothing.offset == 0
    top = await fill(broker, channel, 3)
    assert top.epoch == nothing.epoch
    await broker.subscribe(channel + ":other")
    assert await broker.subscribe(channel) == top


@pytest.mark.parametrize("control", [Disconnect(user="ann"), Unsubscribe("a", client="c")])
async def test_a_control_message_reaches_this_process_too(broker: Broker, control: Control) -> None:
    told: list[Control] = []
    broker.control = told.append
    await broker.tell(control)
    assert told == [control]


def test_a_broker_belongs_to_the_hub_that_it_was_attached_to() -> None:
    broker = MemoryBroker()
    Hub(broker)
    with pytest.raises(ValueError, match="this MemoryBroker belongs to another Hub"):
        Hub(broker)


def test_a_memory_broker_is_up_since_it_was_made() -> None:
    before = time.time()
    health = MemoryBroker().health
    assert health == Health("up", health.since)
    assert before <= health.since <= time.time()


# Last wills


async def test_a_last_will_is_published_once_when_an_entry_lapses(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await broker.enter(channel, ClientInfo("two"))
    for client in ("one", "two", "nobody", "one"):
        await broker.lapse(channel, client)
    assert data(tuple(delivered)) == ["one is gone"]
    assert await broker.present(channel) == {}


async def test_a_last_will_comes_once_however_many_notice(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await asyncio.gather(*(broker.lapse(channel, "one") for _ in range(5)))
    assert data(tuple(delivered)) == ["one is gone"]


async def test_a_client_that_leaves_has_no_last_will(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await broker.leave(channel, "one")
    await broker.lapse(channel, "one")
    assert delivered == []


# Rules


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


async def test_joins_and_leaves_are_told_where_the_rules_say_so(channel: str) -> None:
    told: list[Delivery] = []
    broker = MemoryBroker()
    broker.rules = rules_by_name({channel: {"join_leave": True}}, broker.rules)
    broker.deliver = told.append
    info = ClientInfo("one", "ann")
    for name in (channel, "elsewhere"):
        await broker.enter(name, info)
        await broker.enter(name, info)  # the same again is no news
        await broker.leave(name, "one")
        await broker.leave(name, "one")
    assert told == [Joined(channel, info), Left(channel, info)]


# Bounds in bytes


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
