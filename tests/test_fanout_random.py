"""The fan-out against a model: whatever the order of events, each gets the right things in order.

A run is made of its seed alone. Connections of both kinds subscribe with and without an answer,
before their accept and after it, leave, are sent something by themselves, fill up and are emptied,
fail and are closed, while it is published to three channels on two event loops, some of it late or
never, and turns are broken off after a few writes. To see one: `asyncio.run(run(seed))`.

The second loop is stood for by a `Fanout` of its own on the same one: what two of them do to each
other they do through what they share, and with threads a run would be more than its seed.
"""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from chatserver.connection import Connection
from chatserver.hub import fanout as fanout_module
from chatserver.hub import rows
from chatserver.hub.fanout import Fanout, Lost, Shared
from chatserver.hub.log import joined
from chatserver.hub.rows import Member
from chatserver.hub.subscription import Continuity, State, Step, Subscribed, Verdict, before
from chatserver.limits import Limits
from chatserver.publication import (
    PLAIN,
    Delivery,
    Encoder,
    Frame,
    History,
    Position,
    Publication,
    frame,
)
from tests.asgi import MemoryConnection, MemoryServer, accepted, text
from tests.members import said

CHANNELS = "abc"
#: So much of a stream is retained.
RETAINED = 6


def loud(delivery: Delivery) -> Frame | None:
    """Another wire format, with the same words."""
    return frame(delivery.data, "text") if isinstance(delivery, Publication) else None


ENCODERS: list[Encoder] = [PLAIN["text"], PLAIN["text"], loud]


class Stream:
    """One channel at its broker, and what this process knows of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.top = Position(0, "0")
        self.publications: list[Publication] = []
        self.on_its_way: list[Publication] = []
        self.continuity = Continuity(1 << 20)
        self.continuity.start(self.top)

    def publish(self, skip: str = "") -> Publication:
        self.top = Position(self.top.offset + 1, self.top.epoch)
        label = f"{self.name}{self.top.epoch}.{self.top.offset}"
        position = (self.top.offset, self.top.epoch)
        publication = Publication(self.name, label, *position, skip=skip)
        self.publications = [*self.publications, publication][-RETAINED:]
        return publication

    def begin_anew(self) -> None:
        self.epoch += 1
        self.top = Position(0, str(self.epoch))
        self.publications = []

    def history(self, since: Position) -> History:
        kept = self.publications if since.epoch == self.top.epoch else []
        return History(tuple(each for each in kept if each.offset > since.offset), self.top)


class Place:
    """A client's place in a channel, as the model has it.

    Attributes:
        last: The last publication that it was given, or the position of its answer.
        goes_on: Whether it is written what comes after a loss that it was told of.
        silent: Whether it was told of a loss, and is written nothing more.
        held: What is to be written when it is opened; None from then on.
        label: That of its answer; empty without one.
        anew: Where its answer begins, since something was lost before it was written.
    """

    def __init__(self, member: Member, since: Position | None) -> None:
        self.member = member
        self.since = since
        self.history: History | None = None
        self.last: Position | None = None
        self.goes_on = False
        self.silent = False
        self.held: list[str] | None = []
        self.label = ""
        self.anew: Position | None = None

    def holds(self, position: Position) -> bool:
        """Whether its answer has what the channel lost: history knew more than was delivered."""
        last = self.last
        return last is not None and last.epoch == position.epoch and position.offset <= last.offset


class Client:
    """One connection, and what it should get.

    Attributes:
        expected: Labels that it must get, each channel's and its own in this order.
        allowed: Labels that it may get besides, because it left before their turn.
    """

    def __init__(self, out: Fanout, server: MemoryServer | None, connection: Connection) -> None:
        self.out = out
        self.server = server
        self.connection = connection
        self.places: dict[str, Place] = {}
        self.expected: list[str] = []
        self.allowed: set[str] = set()

    @property
    def got(self) -> list[str]:
        if isinstance(self.connection, MemoryConnection):
            return said(self.connection)
        assert self.server is not None
        return self.server.texts


class Model:
    """Fan-outs, what was published in them, and who should have got it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        limits = Limits(max_buffer=1 << 20)
        self.outs = [Fanout(asyncio.get_running_loop(), limits) for _ in range(2)]
        for out in self.outs:
            out._turn_bytes = random.choice([70, 200, 400, 1000])
        self.streams = {name: Stream(name) for name in CHANNELS}
        self.clients: list[Client] = []
        self.sent = 0

    async def enter(self) -> None:
        out = self.random.choice(self.outs)
        if self.random.random() < 0.25:
            client = Client(out, *await accepted())
        else:
            client = Client(out, None, MemoryConnection(self.random.choice([0, 0, 15])))
        client.connection.accepted = self.random.random() < 0.8
        out.add(client.connection)
        self.clients.append(client)

    # What the broker does

    def publish(self) -> None:
        stream = self.streams[self.random.choice("aaabc")]
        skip = ""
        if self.clients and self.random.random() < 0.3:
            skip = self.random.choice(self.clients).connection.id
        publication = stream.publish(skip)
        if self.random.random() < 0.96:
            stream.on_its_way.append(publication)
        if self.random.random() < 0.04:
            stream.on_its_way.append(publication)
        if self.random.random() < 0.7:
            self.deliver(stream)

    def deliver(self, stream: Stream) -> None:
        """All that is on its way arrives; the hub's part, with the same continuity."""
        for publication in stream.on_its_way:
            verdict = stream.continuity.take(publication)
            if verdict is Verdict.NEXT:
                self.pass_on(stream, [publication])
            elif verdict is Verdict.LOST:
                self.pass_on(stream, [before(publication), publication])
        stream.on_its_way.clear()

    def fill(self, stream: Stream) -> None:
        top = stream.continuity.top
        if stream.continuity.gap and top is not None:
            self.pass_on(stream, stream.continuity.fill(stream.history(top)))

    def pass_on(self, stream: Stream, steps: list[Step]) -> None:
        for step in steps:
            item = Lost(stream.name, step) if isinstance(step, Position) else Shared(step)
            for out in self.outs:
                out.deliver(item)
            for client in self.clients:
                place = client.places.get(stream.name)
                if place is not None and place.last is not None and not place.silent:
                    self.expect_step(client, place, place.last, step)

    def expect_step(self, client: Client, place: Place, last: Position, step: Step) -> None:
        if not isinstance(step, Position):
            is_new = step.epoch != last.epoch or step.offset > last.offset
            if is_new and step.skip != client.connection.id:
                self.expect(client, str(step.data), place)
        elif place.member.on_lost is not None and not place.holds(step):
            if place.goes_on and place.held is not None:
                place.last = place.anew = step
                place.held = [f"anew {place.label}"] if place.label else []
                return
            if not place.goes_on:
                place.silent, place.held = True, None
            self.expect(client, lost_label(place.member.channel, step))

    def expect(self, client: Client, label: str, place: Place | None = None) -> None:
        if place is not None and place.held is not None:
            place.held.append(label)
        elif client.connection.close_code is None:
            client.expected.append(label)

    # What clients do

    async def send(self, client: Client) -> None:
        if client.connection.accepted and client.connection.close_code is None:
            self.sent += 1
            self.expect(client, f"mine{self.sent}")
            await client.connection.push(text(f"mine{self.sent}"))

    def subscribe(self, client: Client, name: str) -> None:
        encoder = self.random.choice(ENCODERS)
        member = client.out.join(name, client.connection, encoder)
        stream, since = self.streams[name], None
        if self.random.random() < 0.5:
            since = Position(self.random.randint(0, stream.top.offset), stream.top.epoch)
        place = client.places[name] = Place(member, since)
        if self.random.random() < 0.6:
            place.goes_on = self.random.random() < 0.5
            member.on_lost = self.on_lost(client, place.goes_on)

    def on_lost(
        self, client: Client, goes_on: bool
    ) -> Callable[[str, Position], list[Frame] | None]:
        """Tell it in its turn, after what came before, as a rich client is told."""

        def tell(name: str, position: Position) -> list[Frame] | None:
            connection = client.connection
            frames = [Frame(lost_label(name, position))]
            if goes_on:
                return frames
            connection.writer(joined(frames, connection.window_bits))
            return None

        return tell

    def go_on(self, client: Client, name: str) -> None:
        """The next step on the way in, as the hub takes it."""
        place, stream = client.places[name], self.streams[name]
        member = place.member
        joining = member.joining
        if joining is None or joining.state is State.LIVE:
            return
        if joining.state is State.JOINING:
            if place.since is not None and place.history is None:
                place.history = stream.history(place.since)
                return
            top = self.pulled(client, stream)
            subscribed = joining.answer(place.since, place.history, top)
            self.check_answer(place, subscribed)
            place.last = subscribed.position
            if self.random.random() < 0.5:
                self.answer(client, place, subscribed)
        if client.connection.accepted:
            self.open(client, place)

    def answer(self, client: Client, place: Place, subscribed: Subscribed) -> None:
        self.sent += 1
        place.label = f"answer{self.sent}"
        self.expect(client, place.label, place)

        def made(again: Subscribed) -> list[Frame]:
            if place.anew is not None and again == Subscribed(False, (), place.anew):
                return [Frame(f"anew {place.label}")]
            return [Frame(place.label if again == subscribed else "another")]

        place.member.answer = made

    def check_answer(self, place: Place, subscribed: Subscribed) -> None:
        if subscribed.recovered:
            assert place.since is not None
            assert place.since.epoch == subscribed.position.epoch
            offsets = [each.offset for each in subscribed.publications]
            assert offsets == list(range(place.since.offset + 1, subscribed.position.offset + 1))
        else:
            assert subscribed.publications == ()

    def pulled(self, client: Client, stream: Stream) -> Position:
        client.out.pull()
        assert stream.continuity.top is not None
        return stream.continuity.top

    def open(self, client: Client, place: Place) -> None:
        top = self.pulled(client, self.streams[place.member.channel])
        if place.member.joining is None:
            return
        held, place.held = place.held or [], None
        for label in held:
            self.expect(client, label)
        client.out.open(place.member, top)

    def accept(self, client: Client) -> None:
        client.connection.accepted = True
        for place in client.places.values():
            joining = place.member.joining
            if joining is not None and joining.state is State.ANSWERED:
                self.open(client, place)

    def leave(self, client: Client, name: str) -> None:
        place = client.places.pop(name)
        client.out.leave(place.member)
        got = set(client.got)
        late = {each for each in client.expected if of(each) == name and each not in got}
        client.expected = [each for each in client.expected if each not in late]
        client.allowed |= late

    def turn_full(self, client: Client) -> None:
        if isinstance(client.connection, MemoryConnection):
            client.connection.full = not client.connection.full

    def close(self, client: Client) -> None:
        """What was published before goes first."""
        if client.connection.accepted:
            client.connection.close(1000)

    # Turns

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def step(self) -> None:
        chance = self.random.random()
        client = self.random.choice(self.clients)
        name = self.random.choice(CHANNELS)
        stream = self.streams[name]
        if chance < 0.36:
            for _ in range(self.random.choice([1, 1, 1, 2, 5])):
                self.publish()
        elif chance < 0.38:
            self.deliver(stream)
        elif chance < 0.42:
            self.fill(stream)
        elif chance < 0.425:
            stream.begin_anew()
        elif chance < 0.58:
            await self.turn()
        elif chance < 0.60:
            await self.enter()
        elif chance < 0.70:
            await self.send(client)
        elif chance < 0.75:
            self.turn_full(client)
        elif chance < 0.755:
            self.close(client)
        elif chance < 0.78:
            self.accept(client)
        elif name not in client.places:
            self.subscribe(client, name)
        elif client.places[name].member.joining is not None and self.random.random() < 0.9:
            self.go_on(client, name)
        elif self.random.random() < 0.4:
            self.leave(client, name)

    async def end(self) -> None:
        """Everything arrives, everybody is accepted and answered."""
        for stream in self.streams.values():
            self.deliver(stream)
            while stream.continuity.gap:
                self.fill(stream)
        for client in self.clients:
            self.accept(client)
            for name, place in client.places.items():
                while place.last is None:
                    self.go_on(client, name)
        for _ in range(3000):
            if not any(out._behind or out._inbox for out in self.outs):
                break
            await self.turn()


def lost_label(name: str, position: Position) -> str:
    return f"lost {name}{position.epoch}.{position.offset}"


def of(label: str) -> str:
    """The channel of which a label is; empty for what a client was sent by itself."""
    channel = label.removeprefix("lost ")[0]
    return channel if label.removeprefix("lost ")[1:2].isdigit() else ""


def per_channel(labels: list[str], name: str) -> list[str]:
    """Those of one channel, and those that were sent to the client itself: they have one order."""
    return [label for label in labels if of(label) in ("", name)]


async def run(seed: int) -> Model:
    model = Model(Random(seed))
    for _ in range(model.random.randrange(2, 9)):
        await model.enter()
        for name in CHANNELS:
            if model.random.random() < (0.8 if name == "a" else 0.3):
                model.subscribe(model.clients[-1], name)
                for _ in range(model.random.randrange(4)):
                    model.go_on(model.clients[-1], name)
    for _ in range(model.random.randrange(40, 160)):
        await model.step()
    await model.end()
    for number, client in enumerate(model.clients):
        await client.connection.finish()
        got = client.got
        assert len(set(got)) == len(got), f"{seed}: client {number} got something twice"
        got = [each for each in got if each not in client.allowed]
        assert sorted(got) == sorted(client.expected), f"{seed}: client {number}"
        for name in CHANNELS:
            assert per_channel(got, name) == per_channel(client.expected, name), (seed, number)
    for out in model.outs:
        assert out._waiting == 0, seed
        for channel in out.channels.values():
            for feed in channel.feeds.values():
                assert feed.log.size == 0, seed
                assert not any(
                    start > row.place for row in feed.rows for start in row.ahead.values()
                )
    return model


#: Writes in a turn, and members in a row.
SHAPES = [(1, 1), (2, 1), (3, 2), (5, 3), (1000, 100)]


@pytest.mark.parametrize(("writes", "row"), SHAPES)
def test_each_gets_everything_once_and_in_order(
    writes: int, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout_module, "TURN_WRITES", writes)
    monkeypatch.setattr(rows, "ROW_MEMBERS", row)

    async def many() -> None:
        for seed in range(800):
            await run(seed)

    asyncio.run(many())


def test_the_model_sees_all_that_it_is_meant_to() -> None:
    """A model in which nothing happens would be right about everything."""

    async def many() -> list[Model]:
        return [await run(seed) for seed in range(100)]

    clients = [client for model in asyncio.run(many()) for client in model.clients]
    labels = [label for client in clients for label in client.got]
    assert sum(of(label) != "" for label in labels) > 5000
    assert sum(label.startswith("answer") for label in labels) > 50
    assert sum(label.startswith("lost") for label in labels) > 20
    assert any(label.startswith("anew") for label in labels)
    assert sum(label.startswith("mine") for label in labels) > 300
