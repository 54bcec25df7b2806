"""What is the same for all engines, over one that does as a test tells it."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import pytest

from chatserver.brokers.base import Control
from chatserver.brokers.engine import (
    Answers,
    Draft,
    Engine,
    Enter,
    Interrupted,
    Leave,
    Read,
    Receive,
)
from chatserver.brokers.remote import RemoteBroker
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, History, Position
from chatserver.rules import Rules
from tests.asgi import until

pytestmark = pytest.mark.anyio

TOP = Position(1, "epoch")
ANN = ClientInfo("ann")
GONE = Interrupted("it is gone")


class Told(Engine):
    """An engine without anything behind it.

    Attributes:
        failing: Methods that raise an error, whenever they are called.
        calls: The methods that were called since the last `connect`, that one included.
        changes: All changes of presence.
        drafts: All that was published.
        process: The process that holds the lease.
        is_connected: Whether it is connected.
    """

    address = "the.engine"

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.changes: list[Enter | Leave] = []
        self.drafts: list[Draft] = []
        self.process = ""
        self.is_connected = False
        self._lost: asyncio.Future[None] | None = None

    def lose(self) -> None:
        """Lose the connection, and let nobody connect again."""
        self.failing["connect"] = GONE
        assert self._lost is not None
        self._lost.set_exception(GONE)

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        for _ in range(3):
            await asyncio.sleep(0)
        if name in self.failing:
            raise self.failing[name]

    async def connect(self) -> None:
        self.calls.clear()
        await self._called("connect")
        self.is_connected = True
        self._lost = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self.is_connected = False

    async def ping(self) -> None:
        await self._called("ping")

    async def listen(self, receive: Receive) -> None:
        assert self._lost is not None
        await self._lost

    async def follow(self, channels: Mapping[str, Rules]) -> Answers[Position]:
        await self._called("follow")
        return [TOP for _ in channels]

    async def unfollow(self, channels: Collection[str]) -> None:
        await self._called("unfollow")

    async def tops(self, known: Mapping[str, Position]) -> Answers[Position]:
        await self._called("tops")
        return list(known.values())

    async def append(self, drafts: Sequence[Draft]) -> Answers[Position]:
        await self._called("append")
        self.drafts += drafts
        return [TOP for _ in drafts]

    async def read(self, reads: Sequence[Read]) -> Answers[History]:
        await self._called("read")
        return [History((), TOP) for _ in reads]

    async def tell(self, controls: Sequence[Control]) -> Answers[None]:
        await self._called("tell")
        return [None for _ in controls]

    async def enter_and_leave(self, changes: Sequence[Enter | Leave]) -> Answers[None]:
        await self._called("enter_and_leave")
        self.changes += changes
        return [None for _ in changes]

    async def present(self, channels: Sequence[str]) -> Answers[dict[str, ClientInfo]]:
        await self._called("present")
        return [{} for _ in channels]

    async def renew(self, process: str, ttl: float, *, new: bool) -> bool:
        await self._called("renew, new" if new else "renew")
        if new:
            self.process = process
        return process == self.process

    async def expired(self, ttl: float) -> Sequence[str]:
        return ()

    async def entries(self, process: str, limit: int) -> Sequence[tuple[str, str]]:
        return ()

    async def end(self, process: str) -> None:
        await self._called("end")


@pytest.fixture
def engine() -> Told:
    return Told()


@pytest.fixture
async def broker(engine: Told) -> AsyncIterator[RemoteBroker]:
    """Started; it waits for no answer for longer than 50 ms."""
    made = RemoteBroker(engine, publish_timeout=0.05, lease=0.3)
    await made.start()
    yield made
    await made.stop()


async def away(broker: RemoteBroker, engine: Told) -> None:
    """Wait until the broker refuses to ask, because the engine has been away for long."""
    engine.lose()
    await until(lambda: broker.health.state == "down")
    await asyncio.sleep(0.06)  # the time-out itself


async def back(broker: RemoteBroker, engine: Told) -> None:
    engine.failing.clear()
    await until(lambda: broker.health.state == "up")


async def unavailable(call: Any) -> None:
    with pytest.raises(BrokerUnavailable, match=r"the\.engine"):
        await call


# Start and stop


async def test_a_start_that_fails_leaves_the_reason(engine: Told) -> None:
    engine.failing["connect"] = Interrupted("nobody listens there")
    broker = RemoteBroker(engine)
    with pytest.raises(BrokerUnavailable, match="nobody listens there"):
        await broker.start()
    async with asyncio.timeout(1):
        with pytest.raises(BrokerUnavailable, match="nobody listens there"):
            await broker.publish("a", "b")


async def test_a_start_that_is_cancelled_leaves_nothing_behind(engine: Told) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    broker = RemoteBroker(engine)
    broker.check = never
    tasks = asyncio.all_tasks()
    starting = asyncio.create_task(broker.start())
    await until(lambda: "renew, new" in engine.calls)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not engine.is_connected
    assert asyncio.all_tasks() == tasks


@pytest.mark.parametrize("turns", range(6))
async def test_it_stops_while_it_loses_its_engine(engine: Told, turns: int) -> None:
    """Before Python 3.13 a task group that fails at that moment swallows a cancellation."""
    broker = RemoteBroker(engine)
    await broker.start()
    engine.lose()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await broker.stop()
    assert not engine.is_connected
    with pytest.raises(BrokerUnavailable):
        await broker.publish("a", "b")


def _publish_in_child(broker: RemoteBroker, engine: Told, results: Any) -> None:
    async def publish() -> None:
        await broker.start()
        await broker.publish("a", "b")

    asyncio.run(publish())
    results.put(engine.drafts[0].id)


def test_processes_that_were_forked_give_different_ids(engine: Told) -> None:
    """As those of gunicorn, which may import the application before it forks."""
    broker = RemoteBroker(engine)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    for _ in range(2):
        child = context.Process(target=_publish_in_child, args=(broker, engine, results))
        child.start()
        child.join(20)
    assert results.get(timeout=5) != results.get(timeout=5)


# Presence


async def test_a_client_that_was_refused_leaves_nothing_to_tell(
    broker: RemoteBroker, engine: Told
) -> None:
    """Clients that try to connect during a long outage must not pile up."""
    await away(broker, engine)
    for number in range(10):
        client = f"client{number}"
        await unavailable(broker.enter("a", ClientInfo(client)))
        await unavailable(broker.leave("a", client))
    await back(broker, engine)
    await broker.enter("a", ANN)
    assert [change for change in engine.changes if isinstance(change, Leave)] == []


async def test_a_client_that_left_meanwhile_is_told_when_the_engine_is_back(
    broker: RemoteBroker, engine: Told
) -> None:
    await broker.enter("a", ANN)
    await away(broker, engine)
    await unavailable(broker.lapse("a", "ann"))
    await unavailable(broker.leave("a", "ann"))
    await back(broker, engine)
    await until(lambda: any(isinstance(change, Leave) for change in engine.changes))


async def test_it_enters_its_clients_anew_when_its_lease_was_taken(
    broker: RemoteBroker, engine: Told
) -> None:
    """However often the connection is lost in between."""
    await broker.enter("a", ANN)
    first = engine.process
    engine.failing["renew, new"] = GONE
    engine.process = ""
    await until(lambda: broker.health.state == "down")
    await back(broker, engine)
    await until(lambda: len(engine.changes) > 1)
    entered = engine.changes[-1]
    assert isinstance(entered, Enter)
    assert entered.process == engine.process != first


async def test_nothing_is_changed_before_the_lease_is_held_and_streams_are_checked(
    engine: Told,
) -> None:
    """An entry without a lease would stay; a last will might be in a stream that has gone back."""

    async def check() -> None:
        engine.calls.append("check")

    broker = RemoteBroker(engine)
    broker.check = check
    await broker.start()
    engine.lose()
    await until(lambda: broker.health.state == "down")
    calls = broker.enter("a", ANN), broker.publish("a", "b"), broker.lapse("a", "bob")
    asked = [asyncio.create_task(call) for call in calls]
    await back(broker, engine)
    await asyncio.gather(*asked)
    assert engine.calls[:3] == ["connect", "renew", "check"]
    assert sorted(engine.calls[3:]) == ["append", "enter_and_leave"]
    await broker.stop()
