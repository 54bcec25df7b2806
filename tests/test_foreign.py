"""What comes out of an engine is input: what others have written under our names.

Whatever it is, nothing crashes, no other channel is disturbed, and a channel's own users get an
answer or a sentence.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from chatserver.brokers import Broker, Control
from chatserver.brokers.redis import RedisBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Position
from tests.asgi import until
from tests.engines import Valkey
from tests.test_brokers import Delivered, data, started

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]

DEEP = b'{"client":"c","info":' + b"[" * 5000 + b"]" * 5000 + b"}"
GARBAGE = [
    *(b"", b" ", b"\x00", b"\xff\xfe", b"0", b"-1", b"{}", b"null", b"1 2 3 4", b"a" * 100_000),
    *(
        b"5 e",
        b"5 e 10 60000 unknown",
        b"5 e -1 60000 unknown",
        b"5 e 10 99999999999999999999 unknown",
        b"-5 e",
        b"5.5 e",
        b"1e400 e",
        b"99999999999999999999 e",
        b"5 e\n",
        b"5  e",
        b"nan e",
    ),
    *(b"\xc1", b"\x91" * 5000, b"\x94\x00\xa1a\xa0\xa0", b"\x94\x07\xc4\x01a\xc4\x00\xa0"),
    b"\x94\x00\xc4\x02\xff\xff\xc4\x00\xa0",  # a text that is not UTF-8
    b"\x94\x00\xc4\x01a\xc4\x01{\xa0",  # a publisher that is not JSON
    *(b"+ ", b"- {", b"+ {}", b"9 e \x94", b"! !", b"p 5 {}", b"p 99999 {}", b"p -5 {}x"),
    *(b"+ " + DEEP, b"- " + DEEP, b"p %d %s" % (len(DEEP), DEEP)),
    b"\x94\x00\xc4\x01a\xc5%s%s\xa0" % (len(DEEP).to_bytes(2, "big"), DEEP),
]
TYPES = [
    ("SET", "value"),
    ("RPUSH", "value"),
    ("SADD", "value"),
    ("HSET", "field", "value"),
    ("ZADD", "1", "value"),
    ("XADD", "5-0", "e", "value"),
    ("XADD", "3-7", "t", "value", "e", "value"),
    ("XADD", "18446744073709551615-0", "field", "value"),
]


@pytest.fixture
async def broker(valkey: Valkey) -> AsyncIterator[Broker]:
    async with started(RedisBroker(valkey.url, lease=0.6)) as broker:
        yield broker


@pytest.fixture
def channel() -> str:
    return f"test:{secrets.token_hex(4)}"


async def use(broker: Broker, channel: str) -> None:
    """Do all that can be done with a channel, whatever comes of it."""
    calls = [
        broker.subscribe(channel),
        broker.publish(channel, "text", id="id"),
        broker.publish(channel, "text", keep=False),
        broker.history(channel),
        broker.history(channel, since=Position(1, "e"), limit=1),
        broker.history(channel, reverse=True),
        broker.tops({channel: Position(1, "e")}),
        broker.enter(channel, ClientInfo("client"), last_will="gone"),
        broker.present(channel),
        broker.lapse(channel, "client"),
        broker.leave(channel, "nobody"),
        broker.unsubscribe(channel),
    ]
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException):
            assert isinstance(answer, BrokerUnavailable), repr(answer)
            assert str(answer).endswith(".")


class Even:
    """A channel that is used beside the one with which something is wrong.

    Attributes:
        count: How many publications it was given.
        delivered: All that was delivered, in any channel.
    """

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = name
        self.count = 0
        self.delivered = Delivered(broker)
        self._broker = broker
        self._health = broker.health

    async def use(self) -> None:
        self.count += 1
        await self._broker.publish(self.name, f"{self.count}")

    async def check(self) -> None:
        """All that was published came, once and in order, and the broker has never been away."""
        await self.use()
        numbers = range(1, self.count + 1)
        await until(lambda: self.count in self.delivered.offsets(self.name))
        assert self.delivered.offsets(self.name) == list(numbers)
        assert self._broker.health == self._health


@pytest.fixture
async def even(broker: Broker, channel: str) -> Even:
    """Another channel, with which nothing is wrong."""
    name = channel + ":even"
    await broker.subscribe(name)
    return Even(broker, name)


@pytest.mark.parametrize("command", TYPES, ids=" ".join)
@pytest.mark.parametrize("name", ["top", "stream", "id:id", "present"])
async def test_anything_under_the_keys_of_a_channel(
    valkey: Valkey,
    broker: Broker,
    channel: str,
    even: Even,
    name: str,
    command: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number, garbage in enumerate(GARBAGE):
        odd = f"{channel}:{number}"
        await write(valkey, command, f"chatserver:{{{odd}}}:{name}", garbage)
        # What is right with the one travels with what is wrong with the other.
        await asyncio.gather(use(broker, odd), even.use())
    await even.check()
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_position_that_can_not_be_read_begins_a_new_epoch(
    valkey: Valkey, broker: Broker, channel: str
) -> None:
    for garbage in GARBAGE:
        top = await broker.publish(channel, "before")
        await write(valkey, ("SET", "value"), f"chatserver:{{{channel}}}:top", garbage)
        position = await broker.publish(channel, "after")
        history = await broker.history(channel, since=top)
        if garbage == b"5 e 10 60000 unknown":
            assert (position.offset, position.epoch != "e") == (6, True)
        else:
            assert (position.offset, position.epoch != top.epoch) == (1, True)
            assert history.publications == ()
            assert data((await broker.history(channel)).publications) == ["after"]
        assert history.position == position


async def test_a_known_id_whose_position_can_not_be_read_is_not_known(
    valkey: Valkey, broker: Broker, channel: str
) -> None:
    for number, garbage in enumerate(GARBAGE):
        await write(valkey, ("SET", "value"), f"chatserver:{{{channel}}}:id:{number}", garbage)
        position = await broker.publish(channel, "x", id=f"{number}")
        if garbage == b"5 e":
            assert position == Position(5, "e")
        else:
            assert position == await broker.publish(channel, "y", id=f"{number}")


@pytest.mark.parametrize("command", TYPES, ids=" ".join)
async def test_anything_under_the_key_of_an_id_harms_nothing_that_is_published_with_it(
    valkey: Valkey, broker: Broker, channel: str, command: tuple[str, ...]
) -> None:
    await broker.subscribe(channel)
    delivered = Delivered(broker)
    await broker.publish(channel, "0")
    await write(valkey, command, f"chatserver:{{{channel}}}:id:odd", b"garbage")
    ids = ("before", "odd", "after")
    positions = await asyncio.gather(*(broker.publish(channel, id, id=id) for id in ids))
    last = await broker.publish(channel, "last")
    await delivered.reach(5)
    assert [position.offset for position in (*positions, last)] == [2, 3, 4, 5]
    assert len({position.epoch for position in (*positions, last)}) == 1
    history = await broker.history(channel)
    assert data(history.publications) == ["0", *ids, "last"]


async def test_an_id_whose_publication_could_not_be_stored_is_not_known(
    valkey: Valkey, broker: Broker, channel: str
) -> None:
    key = f"chatserver:{{{channel}}}:stream"
    await broker.publish(channel, "before")
    await asyncio.to_thread(valkey.ask, "DEL", key)
    await write(valkey, ("RPUSH", "value"), key, b"garbage")
    with pytest.raises(BrokerUnavailable):
        await broker.publish(channel, "x", id="id")
    await asyncio.to_thread(valkey.ask, "DEL", key)
    assert (await broker.publish(channel, "x", id="id")).offset == 2
    assert data((await broker.history(channel)).publications) == ["x"]


async def test_an_entry_of_a_stream_that_can_not_be_read_is_left_out(
    valkey: Valkey, broker: Broker, channel: str
) -> None:
    await broker.publish(channel, "1")
    key = f"chatserver:{{{channel}}}:stream"
    for number, garbage in enumerate(GARBAGE):
        await write(
            valkey, ("XADD", f"1-{number + 1}", "e", "value", "t", str(2**50)), key, garbage
        )
    await write(valkey, ("XADD", "1-1000", "t", "value"), key, b"1")
    assert data((await broker.history(channel)).publications) == ["1"]


async def test_anything_that_is_announced(
    valkey: Valkey, broker: Broker, channel: str, even: Even, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Control] = []
    broker.control = told.append
    await broker.subscribe(channel)
    names = [f"chatserver:{{{channel}}}:news:0", "chatserver:{control}:0", "chatserver:{a}:news:0"]
    for garbage in [*GARBAGE, b"1 e \xc1", b"x e ", b"1 \xff x"]:
        for name in names:
            await asyncio.to_thread(valkey.ask, "PUBLISH", name, garbage)
        await even.use()
    await broker.publish(channel, "right")
    await even.check()
    assert told == []
    assert data(tuple(each for each in even.delivered if each.channel == channel)) == ["right"]
    assert [record for record in caplog.records if record.exc_info] == []


async def test_names_of_processes_that_are_none(valkey: Valkey, broker: Broker, even: Even) -> None:
    leases = "chatserver:{leases}"
    foreign = {*GARBAGE, *(b"!" + garbage for garbage in GARBAGE)}
    for garbage in GARBAGE:
        await asyncio.to_thread(valkey.ask, "ZADD", leases, 1, garbage)
    await until(lambda: foreign.isdisjoint(valkey.ask("ZRANGE", leases, 0, -1)))
    await even.check()


async def test_entries_of_a_dead_process_that_are_none(
    valkey: Valkey, broker: Broker, even: Even
) -> None:
    for name in ("dead1", "dead2"):
        for garbage in GARBAGE if name == "dead1" else ():
            await asyncio.to_thread(valkey.ask, "SADD", f"chatserver:{{{name}}}:entries", garbage)
        await asyncio.to_thread(valkey.ask, "ZADD", "chatserver:{leases}", 1, name)
    await asyncio.to_thread(valkey.ask, "SET", "chatserver:{dead2}:entries", "no set")
    await until(lambda: not valkey.ask("EXISTS", "chatserver:{dead1}:entries"))
    await asyncio.to_thread(valkey.ask, "DEL", "chatserver:{dead2}:entries")
    left = "!dead1", "dead1", "!dead2", "dead2"
    await until(lambda: not any(valkey.ask("ZSCORE", "chatserver:{leases}", each) for each in left))
    await even.check()


@pytest.mark.parametrize("numbers", ["01 {} 100 300000", "1 {} 0100 300000", "1 {} 100 0300000"])
async def test_a_top_with_other_numbers_than_ours_begins_a_new_stream(
    valkey: Valkey, broker: Broker, channel: str, numbers: str
) -> None:
    delivered = Delivered(broker)
    old = await broker.subscribe(channel)
    key = f"chatserver:{{{channel}}}:top"
    server = (await asyncio.to_thread(valkey.ask, "GET", key)).split()[-1]
    await write(valkey, ("SET", "value"), key, numbers.format(old.epoch).encode() + b" " + server)
    async with started(RedisBroker(valkey.url, publish_only=True)) as outside:
        positions = [await outside.publish(channel, text) for text in ("a", "b")]
    assert [position.offset for position in positions] == [1, 2]
    assert positions[0].epoch == positions[1].epoch != old.epoch
    await until(lambda: len(delivered) == 2)
    assert data((await broker.history(channel)).publications) == ["a", "b"]


async def write(valkey: Valkey, command: tuple[str, ...], key: str, garbage: bytes) -> None:
    """Carry out a command on a key, with something in place of "value"."""
    verb, *words = command
    words_and_garbage = [garbage if word == "value" else word for word in words]
    await asyncio.to_thread(valkey.ask, verb, key, *words_and_garbage)
