"""The broker's contract: one suite, run over every broker, each on a real engine.

Whatever comes from an engine comes in its own time. So a test waits until what it expects is
there, and where nothing may come it publishes something more, and waits for that.
"""

import asyncio
import secrets
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
from msgspec import Raw

from chatserver.brokers import Broker, Control, Disconnect, MemoryBroker, Unsubscribe
from chatserver.brokers.postgres import PostgresBroker
from chatserver.brokers.redis import RedisBroker
from chatserver.hub import Hub
from chatserver.publication import (
    ClientInfo,
    Delivery,
    Joined,
    Left,
    Position,
    Publication,
)
from chatserver.rules import Rules
from tests.asgi import until
from tests.unreliable import Unreliable

pytest_plugins = ["tests.engines"]
pytestmark = pytest.mark.anyio

RULES = Rules(history_size=5, history_ttl=60.0)

#: Makes a broker that is not started; options as for `RedisBroker`.
Make: TypeAlias = Callable[..., Broker]


class Delivered(list[Publication]):
    """Everything that a broker has delivered."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        broker.deliver = lambda delivery: self.append(_publication(delivery))

    def offsets(self, channel: str) -> list[int]:
        """The offsets in a channel, in the order of delivery."""
        return [publication.offset for publication in self if publication.channel == channel]

    async def reach(self, count: int) -> None:
        """Wait until so many have come."""
        await until(lambda: len(self) >= count)


def _publication(delivery: Delivery) -> Publication:
    assert isinstance(delivery, Publication)
    return delivery


def memory(url: str, rules: Rules = RULES) -> Broker:
    return MemoryBroker(history_size=rules.history_size, history_ttl=rules.history_ttl)


def far_away(url: str, rules: Rules = RULES) -> Broker:
    """The same behind something like a network, which delays calls and reorders answers."""
    return Unreliable(memory(url, rules))


def redis(url: str, rules: Rules = RULES, **options: Any) -> Broker:
    return RedisBroker(url, rules=rules, **options)


def postgres(url: str, rules: Rules = RULES, **options: Any) -> Broker:
    return PostgresBroker(url, rules=rules, **options)


#: By name: the fixture of the engine, if there is one, and what makes its broker.
KINDS: dict[str, tuple[str, Make]] = {
    "memory": ("", memory),
    "far-away": ("", far_away),
    "redis": ("valkey", redis),
    "cluster": ("cluster", redis),
    "postgres": ("postgres", postgres),
}
#: Those whose brokers, in however many processes, share an engine.
REMOTE = [
    pytest.param(name, marks=pytest.mark.live) for name, (engine, _) in KINDS.items() if engine
]
LOCAL = [name for name, (engine, _) in KINDS.items() if not engine]

on_engines = pytest.mark.parametrize("make", REMOTE, indirect=True)


@pytest.fixture(params=[*LOCAL, *REMOTE])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes brokers of one kind."""
    engine, broker = KINDS[request.param]
    url = request.getfixturevalue(engine).url if engine else ""
    return lambda **options: broker(url, **options)


@asynccontextmanager
async def started(broker: Broker) -> AsyncIterator[Broker]:
    await broker.start()
    try:
        yield broker
    finally:
        broker.deliver = lambda _: None  # nothing that comes late reaches the next test
        await broker.stop()


@pytest.fixture
async def broker(make: Make) -> AsyncIterator[Broker]:
    async with started(make()) as broker:
        yield broker


@pytest.fixture
async def another(make: Make) -> AsyncIterator[Broker]:
    """The broker of another process, at the same engine."""
    async with started(make()) as broker:
        yield broker


@pytest.fixture
def delivered(broker: Broker) -> Delivered:
    return Delivered(broker)


@pytest.fixture
def channel() -> str:
    return f"test:{secrets.token_hex(4)}"


async def fill(broker: Broker, channel: str, count: int) -> Position:
    for number in range(count):
        position = await broker.publish(channel, f"{number + 1}")
    return position


def data(publications: tuple[Publication, ...]) -> list[Any]:
    return [publication.data for publication in publications]


# The stream


async def test_what_is_published_at_once_is_delivered_whole_however_much_it_is(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    sizes = [1, 30_000, 60_000, 0, 65_536, 2, 100_000, 3]
    await broker.subscribe(channel)
    await asyncio.gather(*(broker.publish(channel, "é" * size) for size in sizes))
    await delivered.reach(len(sizes))
    assert delivered.offsets(channel) == [*range(1, len(sizes) + 1)]
    assert sorted(len(publication.data) for publication in delivered) == sorted(sizes)


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


@pytest.mark.parametrize("payload", ["", "é😀", b"", b"\x00\xff", Raw(b'{"a":1}'), "x" * 100_000])
async def test_a_publication_arrives_as_it_was_published(
    broker: Broker, delivered: Delivered, channel: str, payload: str | bytes | Raw
) -> None:
    info = ClientInfo("client", "user", {"name": "Ann"})
    await broker.subscribe(channel)
    position = await broker.publish(channel, payload, info=info, skip="other")
    await delivered.reach(1)
    (got,) = delivered
    (kept,) = (await broker.history(channel)).publications
    for each in (got, kept):
        assert (each.channel, each.offset, each.epoch) == (channel, 1, position.epoch)
        assert (each.info, each.skip) == (info, "other")
        assert type(each.data) is type(payload)
        assert plain(each.data) == plain(payload)


async def test_what_is_not_kept_is_delivered_without_an_offset(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    top = await broker.publish(channel, "kept")
    assert await broker.publish(channel, "typing", keep=False) == top
    assert await broker.publish(channel, "kept, too") == Position(2, top.epoch)
    await delivered.reach(3)
    assert data(tuple(delivered)) == ["kept", "typing", "kept, too"]
    assert delivered.offsets(channel) == [1, 0, 2]
    assert data((await broker.history(channel)).publications) == ["kept", "kept, too"]


async def test_delivery_is_in_the_order_of_offsets(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await asyncio.gather(*(broker.publish(channel, str(number)) for number in range(50)))
    await delivered.reach(50)
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
    await delivered.reach(1800)
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
    await delivered.reach(800)
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
    await broker.publish(channel, "c")
    await delivered.reach(3)
    assert data(tuple(delivered)) == ["a", "b", "c"]
    assert (await broker.history(channel)).position.offset == 3


@pytest.mark.parametrize("id", ["", " ", "a b\n{c}%\0d", "é😀", "x" * 10_000])
async def test_an_id_holds_in_its_channel_only(broker: Broker, channel: str, id: str) -> None:
    await broker.subscribe(channel)
    await broker.publish(channel, "a")
    first = await broker.publish(channel, "a", id=id)
    assert first.offset == 2
    assert await broker.publish(channel, "b", id=id) == first
    assert (await broker.publish(channel + ":other", "a", id=id)).offset == 1


async def test_of_many_with_the_same_id_at_once_one_is_published(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    answers: list[Position] = []

    async def publish(worker: int) -> None:
        for number in range(100):
            answers.append(await broker.publish(channel, str(worker), id=str(number)))

    await asyncio.to_thread(in_threads, publish, 4)
    await broker.publish(channel, "the last")
    await delivered.reach(101)
    assert delivered.offsets(channel) == list(range(1, 102))
    assert len(answers) == 400
    assert len(set(answers)) == 100


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
        (2**63, None, False, ""),
        (2**64, None, False, ""),
        (-(2**64), None, False, "123"),
        (3, None, True, "21"),
        (3, 1, True, "2"),
        (1, None, True, ""),
        (0, None, True, ""),
        (9, None, True, "321"),
        (-5, None, True, ""),
        (2**64, None, True, "321"),
        (1, 0, False, ""),
        (1, 2**64, False, "23"),
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
@pytest.mark.parametrize("epoch", ["other", "", "%", "é\n\0", "x" * 10_000])
async def test_nothing_follows_from_a_position_in_another_epoch(
    broker: Broker, channel: str, top: Position, reverse: bool, epoch: str
) -> None:
    history = await broker.history(channel, since=Position(2, epoch), reverse=reverse)
    assert history.publications == ()
    assert history.position == top


async def test_reads_at_the_same_moment_have_each_their_answer(
    broker: Broker, channel: str, top: Position
) -> None:
    reads = [(since, limit) for since in (0, 1, 2, 3) for limit in (None, 1, 2)]
    histories = await asyncio.gather(
        *(
            broker.history(channel, since=Position(since, top.epoch), limit=limit)
            for since, limit in reads
        )
    )
    for (since, limit), history in zip(reads, histories, strict=True):
        assert "".join(data(history.publications)) == "123"[since:][:limit]
        assert history.position == top


async def test_history_of_a_channel_without_publications(broker: Broker, channel: str) -> None:
    await broker.subscribe(channel)
    history = await broker.history(channel)
    assert (history.publications, history.position.offset) == ((), 0)
    first = await broker.publish(channel, "a")
    assert first == Position(1, history.position.epoch)


async def test_what_was_read_does_not_change(broker: Broker, channel: str, top: Position) -> None:
    history = await broker.history(channel)
    await fill(broker, channel, RULES.history_size)
    assert data(history.publications) == ["1", "2", "3"]


async def test_history_is_bounded_by_number(broker: Broker, channel: str) -> None:
    size = RULES.history_size
    await fill(broker, channel, size + 3)
    history = await broker.history(channel)
    assert [each.offset for each in history.publications] == list(range(4, size + 4))
    assert history.position.offset == size + 3


async def test_history_is_bounded_by_age(make: Make, channel: str) -> None:
    async with started(make(rules=Rules(history_ttl=0.5))) as broker:
        await broker.subscribe(channel)
        top = await fill(broker, channel, 3)
        assert data((await broker.history(channel)).publications) == ["1", "2", "3"]

        async with asyncio.timeout(5):
            while (await broker.history(channel)).publications:
                pass  # it is asked again at once
        assert (await broker.history(channel)).position == top
        assert await broker.publish(channel, "4") == Position(4, top.epoch)
        assert data((await broker.history(channel)).publications) == ["4"]


@pytest.mark.parametrize("rules", [Rules(history_size=0), Rules(history_ttl=0.0)])
async def test_without_history_a_followed_channel_has_offsets_all_the_same(
    make: Make, channel: str, rules: Rules
) -> None:
    async with started(make(rules=rules)) as broker:
        delivered = Delivered(broker)
        await broker.subscribe(channel)
        top = await fill(broker, channel, 3)
        await delivered.reach(3)
        assert delivered.offsets(channel) == [1, 2, 3]
        history = await broker.history(channel)
        assert (history.publications, history.position) == ((), top)


async def test_to_subscribe_twice_or_unsubscribe_unknown_is_harmless(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.unsubscribe(channel)
    await broker.subscribe(channel)
    await broker.subscribe(channel)
    await broker.publish(channel, "a")
    await broker.publish(channel, "b")
    await delivered.reach(2)
    assert delivered.offsets(channel) == [1, 2]
    await broker.unsubscribe(channel)
    await broker.unsubscribe(channel)


async def test_a_channel_outlives_its_subscribers(
    broker: Broker, channel: str, top: Position
) -> None:
    await broker.unsubscribe(channel)
    history = await broker.history(channel, since=Position(1, top.epoch))
    assert data(history.publications) == ["2", "3"]
    assert await broker.publish(channel, "4") == Position(4, top.epoch)


# Presence


async def test_presence(broker: Broker, channel: str) -> None:
    alice, bob = ClientInfo("1", "alice", [1, {"a": None}], 1.5), ClientInfo("2", "bob")
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


async def test_many_enter_and_leave_at_once(broker: Broker, channel: str) -> None:
    infos = [ClientInfo(f"{number}", "someone") for number in range(200)]
    await asyncio.gather(*(broker.enter(channel, info) for info in infos))
    assert await broker.present(channel) == {info.client: info for info in infos}
    await asyncio.gather(*(broker.leave(channel, info.client) for info in infos[1:]))
    assert await broker.present(channel) == {"0": infos[0]}


async def test_joins_and_leaves_are_told_where_the_rules_say_so(make: Make, channel: str) -> None:
    async with started(make()) as broker:
        told: list[Delivery] = []
        broker.deliver = told.append
        others = broker.rules(channel)
        broker.rules = lambda name: Rules(join_leave=True) if name == channel else others
        info = ClientInfo("one", "ann")
        for name in (channel + ":other", channel):
            await broker.subscribe(name)
            await broker.enter(name, info)
            await broker.enter(name, info)  # the same again is no news
            await broker.leave(name, "one")
            await broker.leave(name, "one")
        await until(lambda: len(told) >= 2)
        assert told == [Joined(channel, info), Left(channel, info)]


# A life, control, health


async def test_a_life(broker: Broker, channel: str) -> None:
    assert (await broker.publish(channel, "x")).offset == 1
    assert (broker.health.state, broker.health.why) == ("up", "")
    await broker.stop()
    await broker.start()
    assert (await broker.publish(channel, "x")).offset == 2
    assert (broker.health.state, broker.health.why) == ("up", "")


async def test_to_subscribe_answers_with_the_top_of_the_stream(
    broker: Broker, channel: str
) -> None:
    nothing = await broker.subscribe(channel)
    assert nothing.offset == 0
    top = await fill(broker, channel, 3)
    assert top.epoch == nothing.epoch
    await broker.subscribe(channel + ":other")
    assert await broker.subscribe(channel) == top


async def test_tops(broker: Broker, channel: str, top: Position) -> None:
    other = await broker.subscribe(channel + ":other")
    known = {channel: Position(1, top.epoch), channel + ":other": other}
    assert await broker.tops(known) == {channel: top, channel + ":other": other}
    assert await broker.tops({}) == {}


@pytest.mark.parametrize(
    "control",
    [Disconnect(user="ann", code=4001, reason="é {}"), Unsubscribe("a", client="c")],
)
async def test_a_control_message_reaches_this_process_too(broker: Broker, control: Control) -> None:
    told: list[Control] = []
    broker.control = told.append
    await broker.tell(control)
    await until(lambda: told)
    assert told == [control]


def test_a_broker_belongs_to_the_hub_that_it_was_attached_to(make: Make) -> None:
    broker = make()
    Hub(broker)
    with pytest.raises(ValueError, match=f"this {type(broker).__name__} belongs to another Hub"):
        Hub(broker)


# Last wills


async def test_a_last_will_is_published_once_when_an_entry_lapses(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await broker.enter(channel, ClientInfo("two"))
    for client in ("one", "two", "nobody", "one"):
        await broker.lapse(channel, client)
    await broker.publish(channel, "and now")
    await delivered.reach(2)
    assert data(tuple(delivered)) == ["one is gone", "and now"]
    assert await broker.present(channel) == {}


async def test_a_last_will_comes_once_however_many_notice(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await asyncio.gather(*(broker.lapse(channel, "one") for _ in range(5)))
    await broker.publish(channel, "and now")
    await delivered.reach(2)
    assert data(tuple(delivered)) == ["one is gone", "and now"]


@pytest.mark.parametrize("prefix", ["", "~", "will:", "\xff", "\0"])
async def test_no_publishers_id_suppresses_a_last_will(
    broker: Broker, delivered: Delivered, channel: str, prefix: str
) -> None:
    """Clients know their identifiers, and choose those of their publications."""
    client = "c" * 31  # with one byte more it is stored as its hash
    await broker.subscribe(channel)
    await broker.publish(channel, "mine", id=prefix + client)
    for _ in range(2):
        await broker.enter(channel, ClientInfo(client), last_will="gone")
        await broker.lapse(channel, client)
    await broker.publish(channel, "and now", id=prefix + client + ".")
    await delivered.reach(3)
    assert data(tuple(delivered)) == ["mine", "gone", "and now"]


async def test_a_client_that_leaves_has_no_last_will(
    broker: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.enter(channel, ClientInfo("one"), last_will="one is gone")
    await broker.leave(channel, "one")
    await broker.lapse(channel, "one")
    await broker.publish(channel, "and now")
    await delivered.reach(1)
    assert data(tuple(delivered)) == ["and now"]


# Two processes


@on_engines
async def test_every_process_gets_the_same_in_the_same_order(
    broker: Broker, another: Broker, delivered: Delivered, channel: str
) -> None:
    elsewhere = Delivered(another)
    assert await broker.subscribe(channel) == await another.subscribe(channel)
    publishers = [broker, another] * 100
    await asyncio.gather(*(each.publish(channel, f"{n}") for n, each in enumerate(publishers)))
    await delivered.reach(200)
    await elsewhere.reach(200)
    assert delivered == elsewhere
    assert delivered.offsets(channel) == list(range(1, 201))


@on_engines
async def test_a_process_gets_only_what_it_has_subscribed_to(
    broker: Broker, another: Broker, delivered: Delivered, channel: str
) -> None:
    await broker.subscribe(channel)
    await broker.subscribe(channel + ":left")
    await broker.unsubscribe(channel + ":left")
    for name in (channel + ":left", channel + ":other", channel):
        await another.publish(name, name)
    await delivered.reach(1)
    assert [each.channel for each in delivered] == [channel]


@on_engines
async def test_an_id_is_known_to_every_process(
    broker: Broker, another: Broker, channel: str
) -> None:
    first = await broker.publish(channel, "a", id="1")
    assert await another.publish(channel, "a", id="1") == first


@on_engines
async def test_a_process_reads_what_another_has_published(
    broker: Broker, another: Broker, channel: str, top: Position
) -> None:
    history = await another.history(channel, since=Position(1, top.epoch))
    assert (data(history.publications), history.position) == (["2", "3"], top)
    assert await another.tops({channel: top}) == {channel: top}


@on_engines
async def test_presence_is_that_of_all_processes(
    broker: Broker, another: Broker, channel: str
) -> None:
    await broker.enter(channel, ClientInfo("here"))
    await another.enter(channel, ClientInfo("there"))
    for each in (broker, another):
        assert set(await each.present(channel)) == {"here", "there"}
    await another.stop()
    await broker.leave(channel, "there")
    assert set(await broker.present(channel)) == {"here"}


@on_engines
async def test_a_control_message_reaches_every_process(broker: Broker, another: Broker) -> None:
    told: list[Control] = []
    another.control = told.append
    controls = [Disconnect(user=f"{number}") for number in range(50)]
    await asyncio.gather(*map(broker.tell, controls))
    await until(lambda: len(told) >= 50)
    assert told == controls


@on_engines
async def test_the_clients_of_a_process_that_has_ended_are_gone_and_their_wills_published_once(
    make: Make, broker: Broker, channel: str
) -> None:
    """It stopped without their having left; with nobody alive, it is noticed later."""
    delivered = Delivered(broker)
    await broker.subscribe(channel)
    async with started(make(lease=1.5)), started(make(lease=1.5)):
        async with started(make(lease=1.5)) as ended:
            for number in range(20):
                info = ClientInfo(f"{channel}:{number}")
                await ended.enter(channel, info, last_will=f"{number} is gone")
            await ended.enter(channel, ClientInfo(f"{channel}:silent"))
            assert len(await broker.present(channel)) == 21
        await delivered.reach(20)
        assert await broker.present(channel) == {}
    await broker.publish(channel, "and now")
    await delivered.reach(21)
    wills = sorted(str(each.data) for each in delivered)
    assert wills == sorted([*(f"{number} is gone" for number in range(20)), "and now"])


# Bad input: names that mean something to an engine, or are too much for it

NAMES = {
    "braces": "{a}",
    "nested braces": "{{a}",
    "an empty hash tag": "{}a",
    "a closing brace": "}a",
    "a pattern": "a*?[b]",
    "percent signs": "%s%7B%",
    "spaces": " a b ",
    "newlines": "a\r\nb\n",
    "quotes": "a'; DROP TABLE publication; --\"$$",
    "backslashes": "a\\0\\x00\\",
    "other scripts": "é😀‮\u200b",
    "keys of its own": "a}:top",
    "10 kB": "x" * 10_000,
    "NUL": "a\0b",
}


@pytest.mark.parametrize("name", NAMES)
async def test_any_name_is_a_channel_of_its_own(
    broker: Broker, delivered: Delivered, channel: str, name: str
) -> None:
    """It is never another channel, nor does it disturb others."""
    odd = channel + NAMES[name]
    await broker.subscribe(channel)
    await use(broker, delivered, odd)
    await broker.publish(channel, "even")
    await until(lambda: "even" in data(tuple(delivered)))
    said = [(each.channel, each.data) for each in delivered]
    assert sorted(said) == sorted([(odd, "odd"), (channel, "even")])
    assert await broker.present(channel) == {}


async def use(broker: Broker, delivered: Delivered, channel: str) -> None:
    """Do everything with a channel that a broker can do."""
    await broker.subscribe(channel)
    position = await broker.publish(channel, "odd", id=channel)
    await broker.enter(channel, ClientInfo(channel), last_will=channel)
    assert list(await broker.present(channel)) == [channel]
    assert data((await broker.history(channel)).publications) == ["odd"]
    assert await broker.tops({channel: position}) == {channel: position}
    await broker.leave(channel, channel)
    await until(lambda: "odd" in data(tuple(delivered)))  # it may come after the answer
    await broker.unsubscribe(channel)


async def test_similar_names_are_different_channels(broker: Broker, channel: str) -> None:
    names = ["", "%", "%25", "{", "%7B", "}", "%7D", "{}", ":", ":top", " ", "\n", "\\", "A", "a"]
    for name in names:
        assert (await broker.publish(channel + name, name)).offset == 1
    for name in names:
        assert data((await broker.history(channel + name)).publications) == [name]


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
