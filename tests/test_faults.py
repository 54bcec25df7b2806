"""Faults of real servers and engines: nothing acknowledged is lost, and what is lost is told.

Each kind of fault once, in the short form; `make chaos` has the long one.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest

from tests.asgi import until
from tests.checker import Delivered
from tests.clients import Follower, Publisher, Recording, Subscriber
from tests.crowd import come
from tests.engines import Cluster, Engine, Postgres, Sentinel, Valkey
from tests.faults import CLUSTER, SENTINEL, Field, kinds, run

pytest_plugins = ["tests.engines"]
pytestmark = [pytest.mark.anyio, pytest.mark.live]


def valkey_that_keeps() -> Engine:
    return Valkey("appendonly yes", "appendfsync always")


def postgres_that_counts() -> Engine:
    return Postgres("shared_preload_libraries = 'pg_stat_statements'")


ENGINES: dict[str, Callable[[], Engine]] = {
    "redis": valkey_that_keeps,
    "postgres": postgres_that_counts,
}


@pytest.fixture(scope="module", params=ENGINES)
def shared(request: pytest.FixtureRequest) -> Iterator[Field]:
    with Field(ENGINES[request.param], haste=4) as field:
        yield field


@pytest.fixture
def field(shared: Field) -> Iterator[Field]:
    """Each test leaves all as it should be, and nothing in the logs."""
    yield shared
    shared.heal()
    assert [line for server in shared.servers for line in server.complaints()] == []


@pytest.mark.parametrize("fault", kinds())
async def test_nothing_is_lost_but_what_is_told(field: Field, fault: str) -> None:
    verdict = await run(field, fault, seed=1)
    assert [str(violation) for violation in verdict.violations] == []
    assert verdict.published >= 10
    assert verdict.delivered >= 10
    assert verdict.resumed < 3.0


@pytest.mark.parametrize("fault", ["a server killed", "the engine killed", "data flushed"])
async def test_a_class_that_recovers_loses_nothing_but_what_is_told(
    field: Field, fault: str
) -> None:
    verdict = await run(field, fault, 1, Follower)
    assert [str(violation) for violation in verdict.violations] == []
    assert verdict.delivered >= 10
    assert (verdict.recovered > 0) is (fault == "a server killed")
    assert (verdict.unrecovered > 0) is (fault == "data flushed")


def cluster() -> Cluster:
    return Cluster("appendonly yes", "appendfsync always", "cluster-require-full-coverage no")


@pytest.mark.parametrize(("harms", "make"), [(CLUSTER, cluster), (SENTINEL, Sentinel)])
async def test_nothing_is_lost_on_several_servers_but_what_is_told(
    harms: str, make: Callable[[], Cluster | Sentinel]
) -> None:
    with Field(make, haste=4) as field:
        for fault in kinds(harms):
            verdict = await run(field, fault, seed=1)
            assert [str(violation) for violation in verdict.violations] == []
            assert verdict.published >= 10
            assert verdict.delivered >= 10
            field.heal()
        assert [line for server in field.servers for line in server.complaints()] == []


async def test_health_is_red_while_the_engine_is_frozen_and_green_soon_after(field: Field) -> None:
    frozen, within = time.monotonic(), 5.0
    field.engine.freeze()
    while field.servers[0].is_ready():
        assert time.monotonic() < frozen + within
    field.engine.thaw()
    thawed = time.monotonic()
    while not all(server.is_ready() for server in field.servers):
        assert time.monotonic() < thawed + 3.0


async def test_the_clients_of_a_killed_server_leave_once(field: Field) -> None:
    """Its last wills are published by the servers that live, once, when its lease is over."""
    dying, *living = field.servers
    channel, gone = f"leave:{time.time_ns()}", [f"{number} is gone" for number in range(20)]
    there = Recording([dying.port], Random(1))
    here = Recording([server.port for server in living], Random(2))
    victims = [Subscriber(there, text, [channel], last_will=text) for text in gone]
    watchers = [Subscriber(here, f"W{number}", [channel]) for number in range(4)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in (*victims, *watchers)]
        await until(lambda: all(each.live for each in (*victims, *watchers)))
        await asyncio.to_thread(dying.kill)
        await until(lambda: len(texts(here)) >= len(watchers) * len(gone), patience=10)
        last = await Publisher(here, "closing", [channel]).publish(channel)
        await until(lambda: all(each.has_all({channel: last}) for each in watchers))
        for task in tasks:
            task.cancel()
    await asyncio.to_thread(dying.start)
    for watcher in watchers:
        assert sorted(texts(here, watcher.name)) == sorted([*gone, "text of closing.1"])


def texts(recording: Recording, subscriber: str = "") -> list[str]:
    return [
        event.seen.data
        for event in recording.history
        if isinstance(event, Delivered) and event.subscriber.startswith(subscriber)
    ]


async def test_two_thousand_come_back_at_once_and_history_is_read_for_many(field: Field) -> None:
    count, channel = 2000, f"crowd:{time.time_ns()}"
    publisher = Publisher(Recording(field.ports, Random(1)), "P", [channel])
    positions = [await publisher.publish(channel) for _ in range(20)]
    top = positions[-1]
    asked, began = questions(field.engine), time.monotonic()
    answers = await come(field.ports, count, channel, positions)
    assert time.monotonic() - began < 10
    for number, answer in enumerate(answers):
        since = positions[number % len(positions)].offset
        assert answer["recovered"]
        assert answer["position"] == [top.offset, top.epoch]
        offsets = [offset for offset, _, _ in answer["publications"]]
        assert offsets == list(range(since + 1, top.offset + 1))
    assert questions(field.engine) - asked < count / 4


def questions(engine: Engine) -> int:
    """How many scripts or statements the engine has carried out, whatever they were."""
    if isinstance(engine, Postgres):
        engine.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        return int(engine.sql("SELECT sum(calls) FROM pg_stat_statements")[0][0])
    assert isinstance(engine, Valkey)
    # What a script does counts in the total of commands as well.
    return int(engine.ask("INFO", "commandstats")["cmdstat_evalsha"]["calls"])
