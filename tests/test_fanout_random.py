"""The fan-out against a model: whatever the order of events, each gets the right things in order.

A run is made of its seed alone: connections of both kinds subscribe, leave, are sent something by
themselves, fill up and are emptied, while it is published to three channels and turns are broken
off after a few writes. To see one: `run(seed)`.
"""

import asyncio
from random import Random

import pytest
from chatserver.fanout import Fanout, Shared, loop

from chatserver.connection import Connection
from chatserver.hub.hub import _merge
from chatserver.publication import History, Position, Publication
from tests.asgi import MemoryServer, MemoryWriter, accepted, direct, text

CHANNELS = "abc"


class Client:
    """One connection, and what it should get.

    Attributes:
        expected: Labels that it must get, in this order among themselves.
        allowed: Those that it may get besides: it left before their turn.
    """

    def __init__(self, server: MemoryServer | MemoryWriter, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.subscribing: set[str] = set()
        self.live: set[str] = set()
        self.expected: list[str] = []
        self.allowed: set[str] = set()

    @property
    def got(self) -> list[str]:
        if isinstance(self.server, MemoryWriter):
            return _texts(b"".join(self.server.written))
        return self.server.texts


class Model:
    """The fan-out, what was published in it, and who should have got it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.out = Fanout(asyncio.get_running_loop())
        self.offsets = dict.fromkeys(CHANNELS, 0)
        self.clients: list[Client] = []
        self.answers = 0

    async def enter(self) -> Client:
        if self.random.random() < 0.25:
            client = Client(*await accepted())
        else:
            client = Client(*direct(window_bits=self.random.choice([0, 0, 15])))
        self.out.add(client.connection)
        self.clients.append(client)
        return client

    def publish(self) -> None:
        channel = self.random.choice("aaabc")
        self.offsets[channel] = offset = self.offsets[channel] + 1
        label = f"{channel}{offset}"
        self.out.deliver(Shared(Publication(channel, label, offset, "e")))
        for client in self.clients:
            if channel in client.live:
                client.expected.append(label)

    async def send(self, client: Client) -> None:
        self.answers += 1
        label = f"mine{self.answers}"
        client.expected.append(label)
        await client.connection.push(text(label))

    def subscribe(self, client: Client, channel: str) -> None:
        self.out.join(channel, client.connection)
        client.subscribing.add(channel)

    async def answer(self, client: Client, channel: str) -> None:
        """As the hub does, with a history that was read now or at any time before."""
        member = self.out.members[channel][client.connection]
        held = self.out.held(channel, client.connection)
        oldest = held[0].offset - 1 if held else self.offsets[channel]
        position = Position(self.random.randint(oldest, self.offsets[channel]), "e")
        subscribed = _merge(None, History((), position), held)
        assert subscribed.position.offset == self.offsets[channel]
        member.go_live(subscribed.position)
        client.subscribing.discard(channel)
        client.live.add(channel)
        await self.send(client)

    def leave(self, client: Client, channel: str) -> None:
        self.out.leave(channel, client.connection)
        client.subscribing.discard(channel)
        if channel in client.live:
            client.live.remove(channel)
            got = set(client.got)
            late = {each for each in client.expected if each[0] == channel and each not in got}
            client.expected = [each for each in client.expected if each not in late]
            client.allowed |= late

    def turn_full(self, client: Client) -> None:
        if isinstance(client.server, MemoryWriter) and client.server.listener is not None:
            client.server.full = not client.server.full
            client.server.listener.socket_paced()

    async def step(self) -> None:
        chance = self.random.random()
        client = self.random.choice(self.clients)
        channel = self.random.choice(CHANNELS)
        if chance < 0.40:
            for _ in range(self.random.choice([1, 1, 1, 2, 5])):
                self.publish()
        elif chance < 0.62:
            await asyncio.sleep(0)
        elif chance < 0.64:
            await self.enter()
        elif chance < 0.80:
            await self.send(client)
        elif chance < 0.90:
            self.turn_full(client)
        elif channel in client.subscribing:
            await self.answer(client, channel)
        elif channel not in client.live:
            self.subscribe(client, channel)
        elif self.random.random() < 0.4:
            self.leave(client, channel)


async def run(seed: int) -> None:
    model = Model(Random(seed))
    for _ in range(model.random.randrange(2, 9)):
        client = await model.enter()
        for channel in CHANNELS:
            if model.random.random() < (0.8 if channel == "a" else 0.3):
                model.subscribe(client, channel)
                await model.answer(client, channel)
    for _ in range(model.random.randrange(20, 80)):
        await model.step()
    for _ in range(2000):
        if not model.out._pending and not model.out._inbox:
            break
        await asyncio.sleep(0)
    for client in model.clients:
        await client.connection.finish()
        got = client.got
        assert len(set(got)) == len(got), f"{seed}: twice"
        assert [each for each in got if each not in client.allowed] == client.expected, seed
    assert not model.out._ahead


def _texts(wire: bytes) -> list[str]:
    found = []
    while wire:
        size = wire[1]
        found.append(wire[2 : 2 + size].decode())
        wire = wire[2 + size :]
    return found


@pytest.mark.parametrize("writes", [1, 2, 3, 5, 1000])
def test_each_gets_everything_once_and_in_order(
    writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TURN_WRITES", writes)

    async def many() -> None:
        for seed in range(200):
            monkeypatch.setattr(loop, "TURN_BYTES", (70, 200, 400, 1000)[seed % 4])
            await run(seed)

    asyncio.run(many())
