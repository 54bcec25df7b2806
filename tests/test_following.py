"""What is followed at the broker, as subscribers come and go: one call at a time per channel."""

import asyncio

import pytest

from chatserver.brokers import MemoryBroker
from chatserver.errors import BrokerUnavailable
from chatserver.hub.following import Following
from chatserver.publication import Position

pytestmark = pytest.mark.anyio


class Slow(MemoryBroker):
    """Notes each call when it begins and when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.fails = False

    async def subscribe(self, channel: str) -> Position:
        self.calls.append("subscribe")
        await asyncio.sleep(0)
        self.calls.append("done")
        if self.fails:
            raise BrokerUnavailable("down")
        return await super().subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        self.calls.append("unsubscribe")
        await asyncio.sleep(0)
        self.calls.append("done")
        await super().unsubscribe(channel)


class Site:
    """A `Following`, and the channels that are wanted."""

    def __init__(self) -> None:
        self.broker = Slow()
        self.wanted: set[str] = set()
        self.started: list[tuple[str, Position]] = []
        self.following = Following(self.broker, self.wanted.__contains__, self.start, 1000)

    def start(self, channel: str, position: Position) -> None:
        continuity = self.following.continuity(channel)
        assert continuity is not None
        continuity.start(position)
        self.started.append((channel, position))


async def test_the_first_follows_and_the_last_gives_up() -> None:
    site = Site()
    site.wanted.add("a")
    await asyncio.gather(*(site.following.settle("a") for _ in range(5)))
    assert site.broker.calls == ["subscribe", "done"]
    (started,) = site.started
    assert started[0] == "a"
    site.wanted.clear()
    await asyncio.gather(*(site.following.settle("a") for _ in range(5)))
    assert site.broker.calls == ["subscribe", "done", "unsubscribe", "done"]
    assert site.following.continuity("a") is None
    assert site.following._turns == {}


async def test_calls_of_one_channel_never_overlap() -> None:
    site = Site()

    async def come_and_go(number: int) -> None:
        for _ in range(20):
            (site.wanted.discard if number % 2 else site.wanted.add)("a")
            await site.following.settle("a")

    await asyncio.gather(*(come_and_go(number) for number in range(6)))
    assert site.broker.calls[1::2] == ["done"] * (len(site.broker.calls) // 2)
    begun = site.broker.calls[::2]
    assert begun == ["subscribe", "unsubscribe"] * (len(begun) // 2) + ["subscribe"] * (
        len(begun) % 2
    )


async def test_what_was_not_confirmed_is_asked_for_again() -> None:
    site = Site()
    site.wanted.add("a")
    site.broker.fails = True
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await site.following.settle("a")
    site.broker.fails = False
    await site.following.settle("a")
    await site.following.settle("a")
    assert site.broker.calls.count("subscribe") == 3
    assert len(site.started) == 1


async def test_what_may_have_got_to_the_broker_is_given_up_there() -> None:
    site = Site()
    site.wanted.add("a")
    site.broker.fails = True
    with pytest.raises(BrokerUnavailable):
        await site.following.settle("a")
    site.wanted.clear()
    await site.following.settle("a")
    assert site.broker.calls.count("unsubscribe") == 1


async def test_a_cancelled_turn_is_passed_on() -> None:
    site = Site()
    site.wanted.add("a")
    first = asyncio.ensure_future(site.following.settle("a"))
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(site.following.settle("a")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.cancel()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert not waiting[2].cancelled()
    continuity = site.following.continuity("a")
    assert continuity is not None
    assert continuity.top is not None
    assert site.following._turns == {}
