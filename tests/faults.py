"""Runs of clients against servers and an engine, with a fault in each, made of a seed.

    with Field(lambda: Valkey("appendonly yes", "appendfsync always")) as field:
        verdict = await run(field, "the engine killed", seed=1)
        assert verdict.violations == []

Servers and engine are real processes, and live on from run to run; a proxy is between them.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from msgspec import Struct

from chatserver.testing import PROTOCOLS
from tests.asgi import until as eventually
from tests.checker import Acknowledged, Answered, Delivered, Violation, check
from tests.clients import Publisher, Recording, Subscriber
from tests.engines import PATIENCE, Cluster, Engine, Process, Sentinel, Valkey, until
from tests.proxy import Proxy, Way

__all__ = [
    "CLUSTER",
    "ENGINE",
    "KINDS",
    "SENTINEL",
    "Field",
    "Server",
    "Store",
    "Verdict",
    "kinds",
    "run",
]

ROOT = Path(__file__).resolve().parent.parent
#: What a server logs because of a fault of ours. Its start may fail: its broker may be away.
COMPLAINT = re.compile("The broker failed|never retrieved|Exception in|Unhandled|unhandled")
#: What runs do: so many servers, channels and clients.
SERVERS, CHANNELS, PUBLISHERS, SUBSCRIBERS = 3, 3, 5, 8
#: Seconds between two publications of a publisher.
PAUSE = 0.005
#: Seconds that a fault takes at most.
LONGEST = 30.0
#: Seconds until all subscribers must have all that was published, after the fault is over.
RECOVERED_WITHIN = 20.0


class Server(Process):
    """A server of `tests.recorder`.

    Args:
        broker: The URL of its broker.
    """

    def __init__(self, broker: str) -> None:
        super().__init__()
        self._broker = broker
        self._seen = 0

    def command(self) -> Sequence[str | Path]:
        options = [f"--{name}={value}" for name, value in PROTOCOLS.items()]
        return [
            *(sys.executable, "-m", "uvicorn", "tests.recorder:app", f"--port={self.port}"),
            *(*options, "--log-level=warning", "--timeout-graceful-shutdown=3"),
        ]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "CHATSERVER_BROKER": self._broker, "PYTHONPATH": str(ROOT)}

    def start(self) -> None:
        """Start it, and again if it ends, for its broker may be away, as a supervisor does."""
        end = time.monotonic() + PATIENCE + LONGEST
        while True:
            try:
                super().start()
                return
            except RuntimeError:
                if time.monotonic() > end:
                    raise

    def ready(self) -> bool:
        return self.readiness() != ""

    def complaints(self) -> list[str]:
        """What it has logged since the last call that tells of a fault of our own."""
        lines = self.log.splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        return [line for line in new if COMPLAINT.search(line)]

    def is_ready(self) -> bool:
        """Whether its broker works, too."""
        return self.readiness() == "ready"

    def readiness(self) -> str:
        """What `/readyz` says: "ready" or why not; empty if nobody answers."""
        try:
            return str(self._get("/readyz")["status"])
        except (OSError, HTTPException):
            return ""

    def tasks(self) -> int:
        """How many tasks its event loop has."""
        return int(self._get("/tasks"))

    def _get(self, path: str) -> Any:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=1)) as connection:
            connection.request("GET", path)
            return json.load(connection.getresponse())


class Store(Protocol):
    """An engine, or several that work together."""

    @property
    def url(self) -> str: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Field:
    """An engine, a proxy before it, and servers that use it.

    Args:
        make: Makes the engine. Before a Cluster, or servers with a Sentinel, there is no proxy.
        servers: How many servers there are.
        haste: How much shorter faults are than they may be; 1 for as long as they may be.

    Attributes:
        haste: As given.
        store: What was made.
        engine: The engine, if there is one; another one after a failover.
        proxy: The way from the servers to the engine.
        servers: The servers.
    """

    def __init__(
        self, make: Callable[[], Store], servers: int = SERVERS, haste: float = 1.0
    ) -> None:
        self.haste = haste
        self._make = make
        self._count = servers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.store = store = stack.enter_context(self._make())
            url = store.url
            if isinstance(store, Engine):
                self.engine = store
                self.proxy = stack.enter_context(Proxy(store.port))
                url = self.proxy.way(url)
            self.servers = [stack.enter_context(Server(url)) for _ in range(self._count)]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def ports(self) -> list[int]:
        return [server.port for server in self.servers]

    def replica(self) -> Engine:
        """Start a copy of the engine."""
        return self._stack.enter_context(self.engine.replica())

    def heal(self) -> None:
        """Wait until all is as it should be between two runs."""
        for each in self.servers:
            until(each.is_ready, f"the server on port {each.port} is ready")


# Faults

#: What a fault harms.
ENGINE, CLUSTER, SENTINEL = "an engine", "a Cluster", "servers with a Sentinel"

#: Does harm to a field for a while, and returns when nothing harms it any more.
Fault: TypeAlias = Callable[[Field, Random], Awaitable[None]]


class Kind(Struct, frozen=True):
    """A kind of fault.

    Attributes:
        fault: What it does.
        may_lose: Whether it takes the engine's data away.
        harms: What it harms.
    """

    fault: Fault
    may_lose: bool = False
    harms: str = ENGINE


KINDS: dict[str, Kind] = {}


def fault(name: str, *, may_lose: bool = False, harms: str = ENGINE) -> Callable[[Fault], Fault]:
    def register(fault: Fault) -> Fault:
        KINDS[name] = Kind(fault, may_lose, harms)
        return fault

    return register


def kinds(harms: str = ENGINE) -> list[str]:
    """The kinds of faults that harm an engine, or something else."""
    return [name for name, kind in KINDS.items() if kind.harms == harms]


async def a_while(
    field: Field, random: Random, least: float, most: float, rarely: float | None = None
) -> None:
    """Wait for some seconds; once in eight times for `rarely`, if that is given."""
    seconds = random.uniform(least, most)
    if rarely is not None and random.random() < 1 / 8:
        seconds = rarely
    await asyncio.sleep(seconds / field.haste)


async def do(*calls: Callable[[], None]) -> None:
    """Call what blocks, one after the other, while the clients go on."""
    for call in calls:
        await asyncio.to_thread(call)


@fault("a server killed")
async def kill_server(field: Field, random: Random) -> None:
    server = random.choice(field.servers)
    await do(server.kill)
    await a_while(field, random, 0.1, 1.0)
    await do(server.start)


@fault("all servers killed")
async def kill_servers(field: Field, random: Random) -> None:
    await do(*(server.kill for server in field.servers))
    await asyncio.gather(*(do(server.start) for server in field.servers))


@fault("a server frozen")
async def freeze_server(field: Field, random: Random) -> None:
    server = random.choice(field.servers)
    await do(server.freeze)
    await a_while(field, random, 0.2, 4.0)
    await do(server.thaw)


@fault("rolling restart")
async def restart_servers(field: Field, random: Random) -> None:
    for server in field.servers:
        await do(server.stop, server.start)


@fault("the engine killed")
async def kill_engine(field: Field, random: Random) -> None:
    await do(field.engine.kill)
    await a_while(field, random, 0.0, 2.0, rarely=10.0)
    await do(field.engine.start)


@fault("the engine restarted")
async def restart_engine(field: Field, random: Random) -> None:
    await do(field.engine.stop, field.engine.start)


@fault("the engine frozen")
async def freeze_engine(field: Field, random: Random) -> None:
    await do(field.engine.freeze)
    await a_while(field, random, 0.2, 6.0, rarely=15.0)
    await do(field.engine.thaw)


@fault("the way cut")
async def cut(field: Field, random: Random) -> None:
    await do(field.proxy.cut)
    await a_while(field, random, 0.1, 3.0, rarely=LONGEST)
    await do(field.proxy.heal)


@fault("the way frozen")
async def freeze_way(field: Field, random: Random) -> None:
    await do(field.proxy.freeze)
    await a_while(field, random, 0.2, 6.0)
    await do(field.proxy.heal)


@fault("answers lost")
async def lose_answers(field: Field, random: Random) -> None:
    """The engine does what it is asked to, and nobody is told: then all connections break."""
    await do(lambda: field.proxy.freeze(Way.BACK))
    await a_while(field, random, 0.05, 1.0)
    await do(field.proxy.cut, field.proxy.heal)


@fault("connections dropped")
async def drop(field: Field, random: Random) -> None:
    for _ in range(random.randint(1, 8)):
        await do(field.proxy.drop)
        await a_while(field, random, 0.0, 0.3)


@fault("the way slow")
async def delay(field: Field, random: Random) -> None:
    field.proxy.delay = random.uniform(0.02, 0.5)
    await a_while(field, random, 0.5, 3.0)
    await do(field.proxy.heal)


@fault("several at once")
async def several(field: Field, random: Random) -> None:
    others = [kill_server, freeze_server, kill_engine, cut, lose_answers, drop]
    # The engine's process and the way to it are one thing each, which one fault at a time harms.
    chosen = random.sample(others, 3)
    await asyncio.gather(*(each(field, random) for each in chosen))


@fault("data flushed", may_lose=True)
async def flush(field: Field, random: Random) -> None:
    await do(field.engine.flush)


@fault("data flushed while away", may_lose=True)
async def flush_away(field: Field, random: Random) -> None:
    """Nobody is connected when it happens."""
    await do(field.proxy.cut, field.engine.flush)
    await a_while(field, random, 0.0, 0.5)
    await do(field.proxy.heal)


@fault("failover to a replica that lagged", may_lose=True)
async def fail_over(field: Field, random: Random) -> None:
    """The replica lacks what was acknowledged last."""
    replica = await asyncio.to_thread(field.replica)
    await a_while(field, random, 0.0, 0.3)
    await do(replica.promote)
    await a_while(field, random, 0.0, 0.5)
    await do(field.engine.kill)
    field.engine, field.proxy.target = replica, replica.port


@fault("failover to a replica in step", may_lose=True)
async def fail_over_in_step(field: Field, random: Random) -> None:
    """The replica lacks nothing; but nobody can know that."""
    replica = await asyncio.to_thread(field.replica)
    await do(lambda: field.proxy.freeze(Way.TO))
    await a_while(field, random, 0.1, 0.3)  # what was on its way is written, and copied
    await do(replica.promote, field.engine.kill, field.proxy.heal)
    field.engine, field.proxy.target = replica, replica.port


@fault("a node killed", harms=CLUSTER)
async def kill_node(field: Field, random: Random) -> None:
    node = random.choice(nodes_of(field))
    await do(node.kill)
    await a_while(field, random, 0.0, 2.0)
    await do(node.start)


@fault("a node frozen", harms=CLUSTER)
async def freeze_node(field: Field, random: Random) -> None:
    node = random.choice(nodes_of(field))
    await do(node.freeze)
    await a_while(field, random, 0.2, 4.0)
    await do(node.thaw)


@fault("all nodes killed", harms=CLUSTER)
async def kill_nodes(field: Field, random: Random) -> None:
    nodes = nodes_of(field)
    await do(*(node.kill for node in nodes))
    await do(*(node.start for node in nodes))


def nodes_of(field: Field) -> list[Valkey]:
    assert isinstance(field.store, Cluster)
    return field.store.nodes


@fault("the main server killed", may_lose=True, harms=SENTINEL)
async def kill_main(field: Field, random: Random) -> None:
    """Sentinel makes the replica the server."""
    group = field.store
    assert isinstance(group, Sentinel)
    await do(group.main.kill)
    await eventually(lambda: group.replica.role() == "master", patience=PATIENCE)


# Runs


class Verdict(Struct):
    """What came of a run.

    Attributes:
        fault: The kind of fault.
        seed: What the run was made of.
        published: Publications that were acknowledged.
        again: How often a publisher had to publish again.
        delivered: Publications that subscribers got, by delivery or in answers.
        recovered: Answers that held all that was missed.
        unrecovered: Answers that said that something is missing.
        resumed: Seconds from the end of the fault until every subscriber has got something.
        away: Seconds that the slowest subscriber took to be subscribed again, after its connection
            had ended.
        violations: What must not have happened.
        complaints: Lines of the servers' logs that tell of faults of our own.
    """

    fault: str
    seed: int
    published: int
    again: int
    delivered: int
    recovered: int
    unrecovered: int
    resumed: float
    away: float
    violations: list[Violation]
    complaints: list[str]


async def run(
    field: Field, fault: str, seed: int, kind_of_subscriber: type[Subscriber] = Subscriber
) -> Verdict:
    """Publish and subscribe, do harm, wait until all is well, and judge."""
    random = Random(f"{fault} {seed}")
    recording = Recording(field.ports, random)
    channels = [f"{fault}:{seed}:{number}:{time.time_ns()}" for number in range(CHANNELS)]
    publishers = [Publisher(recording, f"P{number}", channels) for number in range(PUBLISHERS)]
    subscribers = [
        kind_of_subscriber(
            recording, f"S{number}", random.sample(channels, random.randint(1, CHANNELS))
        )
        for number in range(SUBSCRIBERS)
    ]
    kind = KINDS[fault]
    async with asyncio.TaskGroup() as group:
        following = [group.create_task(each.run()) for each in subscribers]
        publishing = [group.create_task(each.run(PAUSE)) for each in publishers]
        await a_while(field, random, 0.3, 0.8)
        await kind.fault(field, random)
        healed = time.monotonic()
        await a_while(field, random, 0.3, 0.8)
        for publisher in publishers:
            publisher.stop()
        await asyncio.wait(publishing, timeout=RECOVERED_WITHIN)
        await _catch_up(recording, channels, subscribers)
        recording.close()
        for task in (*following, *publishing):
            task.cancel()
    verdict = _judge(fault, seed, recording, healed, kind.may_lose, publishers)
    verdict.complaints = [line for server in field.servers for line in server.complaints()]
    return verdict


async def _catch_up(
    recording: Recording, channels: Sequence[str], subscribers: Sequence[Subscriber]
) -> None:
    """Publish something last, and wait until all subscribers have it."""
    closing = Publisher(recording, "closing", channels)
    with suppress(TimeoutError, AssertionError):  # then the checker finds what is missing
        async with asyncio.timeout(RECOVERED_WITHIN):
            last = {channel: await closing.publish(channel) for channel in channels}
            for each in subscribers:
                expected = {channel: last[channel] for channel in each.channels}
                await eventually(partial(each.has_all, expected), patience=RECOVERED_WITHIN)


def _judge(
    fault: str,
    seed: int,
    recording: Recording,
    healed: float,
    may_lose: bool,
    publishers: Sequence[Publisher],
) -> Verdict:
    history = recording.history
    answers = [event for event in history if isinstance(event, Answered) and event.since]
    return Verdict(
        fault=fault,
        seed=seed,
        published=sum(isinstance(event, Acknowledged) for event in history),
        again=sum(publisher.uncertain for publisher in publishers),
        delivered=sum(isinstance(event, Delivered) for event in history)
        + sum(len(event.publications) for event in answers),
        recovered=sum(event.recovered for event in answers),
        unrecovered=sum(not event.recovered for event in answers),
        resumed=recording.resumed(healed),
        away=max(recording.away(), default=0.0),
        violations=check(history, may_lose=may_lose),
        complaints=[],
    )
