"""Clients of `tests.recorder` that record what happens to them, for `tests.checker`.

They do what a client should: they connect to another server when theirs is gone, ask for what they
have missed, and publish again with the same id until they are told that it is done.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import structs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from chatserver.publication import Position
from tests.checker import Acknowledged, Answered, Delivered, Event, Gone, Lost, Published, Seen

__all__ = ["Follower", "Publisher", "Recording", "Subscriber"]

#: Seconds after which a client that gets no answer goes to another server.
PATIENCE = 7.0
#: Seconds between two attempts, at least and at most.
DELAYS = (0.05, 0.3)
GONE = (OSError, TimeoutError, WebSocketException)


class Recording:
    """What all clients of a run record, in the order in which it happened.

    Args:
        ports: Those of the servers.
        random: Chooses servers and delays.

    Attributes:
        history: The events.
        times: When each happened, in seconds.
    """

    def __init__(self, ports: Sequence[int], random: Random) -> None:
        self.ports = ports
        self.random = random
        self.history: list[Event] = []
        self.times: list[float] = []
        self._closed = False

    def note(self, event: Event) -> None:
        if not self._closed:
            self.history.append(event)
            self.times.append(time.monotonic())

    def close(self) -> None:
        """Record nothing more: the clients' own end is none of the history."""
        self._closed = True

    def resumed(self, after: float) -> float:
        """Seconds from a moment until every subscriber has got something, or an answer."""
        first: dict[str, float] = {}
        for event, at in zip(self.history, self.times, strict=True):
            if at > after and isinstance(event, Answered | Delivered):
                first.setdefault(event.subscriber, at - after)
        return max(first.values(), default=0.0)

    def away(self) -> list[float]:
        """For each time that a subscriber was away: seconds until it was answered again."""
        gone: dict[str, float] = {}
        away: list[float] = []
        for event, at in zip(self.history, self.times, strict=True):
            if isinstance(event, Gone):
                gone.setdefault(event.subscriber, at)
            elif isinstance(event, Answered) and event.subscriber in gone:
                away.append(at - gone.pop(event.subscriber))
        return away


class Client:
    """A client with a connection to one server after another.

    Attributes:
        name: Its name in the recording.
        port: That of its server.
        connected: How many connections it has had.
    """

    def __init__(self, recording: Recording, name: str) -> None:
        self.name = name
        self.port = 0
        self.connected = 0
        self.recording = recording

    @asynccontextmanager
    async def connection(self, path: str = "/") -> AsyncIterator[ClientConnection]:
        """A connection to one of the servers.

        Args:
            path: Where it goes, with the query.

        Raises:
            OSError, TimeoutError, WebSocketException: It can't be had, or was lost.
        """
        self.port = self.recording.random.choice(self.recording.ports)
        async with connect(
            f"ws://127.0.0.1:{self.port}{path}",
            open_timeout=PATIENCE,
            close_timeout=0.1,
            # A frozen server is left for another one.
            ping_interval=0.5,
            ping_timeout=1.0,
            compression=None,
            max_size=None,
            proxy=None,
        ) as connection:
            self.connected += 1
            yield connection

    async def pause(self) -> None:
        await asyncio.sleep(self.recording.random.uniform(*DELAYS))


class Subscriber(Client):
    """A client that follows channels for as long as `run` is not cancelled.

    Attributes:
        positions: How far it has come in each channel.
        live: The channels that it is subscribed to now.
    """

    def __init__(
        self, recording: Recording, name: str, channels: Sequence[str], last_will: str | None = None
    ) -> None:
        super().__init__(recording, name)
        self.channels = channels
        self.last_will = last_will
        self.positions: dict[str, Position] = {}
        self.live: set[str] = set()

    async def run(self) -> None:
        while True:
            try:
                async with self.connection(self.path()) as connection:
                    await self._follow(connection)
            except GONE:
                pass
            finally:
                self.live.clear()
                self.recording.note(Gone(self.name))
            await self.pause()

    def path(self) -> str:
        """Where it connects to."""
        return "/"

    def has_all(self, positions: Mapping[str, Position]) -> bool:
        """Whether it is subscribed to these channels, and has come so far in each."""
        return all(self._has(channel, position) for channel, position in positions.items())

    def _has(self, channel: str, position: Position) -> bool:
        own = self.positions.get(channel)
        if own is None or channel not in self.live:
            return False
        return own.epoch == position.epoch and own.offset >= position.offset

    async def _follow(self, connection: ClientConnection) -> None:
        for channel in self.channels:
            await self._subscribe(connection, channel)
        async for text in connection:
            message = msgspec.json.decode(text)
            if "got" in message:
                self._got(message["got"], message["publication"])
            elif "answer" in message:
                self._answered(message["answer"], message)
            elif "lost" in message:
                channel = message["lost"]
                self.live.discard(channel)
                self.recording.note(Lost(self.name, channel))
                await self._subscribe(connection, channel)
            else:
                await self.pause()
                await self._subscribe(connection, message["uncertain"])

    async def _subscribe(self, connection: ClientConnection, channel: str) -> None:
        position = self.positions.get(channel)
        since = None if position is None else [position.offset, position.epoch]
        request = {"subscribe": channel, "since": since, "last_will": self.last_will}
        await connection.send(msgspec.json.encode(request).decode())

    def _answered(self, channel: str, answer: dict[str, Any]) -> None:
        since, position = self.positions.get(channel), Position(*answer["position"])
        publications = tuple(map(_seen, answer["publications"]))
        self.live.add(channel)
        self.positions[channel] = position
        recovered = answer["recovered"]
        self.recording.note(Answered(self.name, channel, since, recovered, publications, position))

    def _got(self, channel: str, publication: list[Any]) -> None:
        seen = _seen(publication)
        if channel not in self.live:
            return  # it was told of a loss, and has not been answered yet
        own, position = self.positions[channel], seen.position
        self.recording.note(Delivered(self.name, channel, seen))
        if position.epoch != own.epoch or position.offset > own.offset:
            self.positions[channel] = position


class Follower(Subscriber):
    """A client of a class with `recover = True`, which follows one channel.

    It does what the example in docs/guide/recovery.md does.
    """

    def __init__(self, recording: Recording, name: str, channels: Sequence[str]) -> None:
        super().__init__(recording, name, channels[:1])

    def path(self) -> str:
        since = {name: structs.asdict(position) for name, position in self.positions.items()}
        query = urlencode({"since": msgspec.json.encode(since).decode()})
        return f"/follow/{quote(self.channels[0], safe='')}?{query}"

    async def _follow(self, connection: ClientConnection) -> None:
        async for text in connection:
            message = msgspec.json.decode(text)
            channel = message["channel"]
            if "since" in message:
                if channel in self.live:
                    self.recording.note(Lost(self.name, channel))
                position = [message["since"]["offset"], message["since"]["epoch"]]
                recovered = message.get("recovered", False)
                answer = {"recovered": recovered, "publications": [], "position": position}
                self._answered(channel, answer)
            else:
                epoch = self.positions[channel].epoch
                self._got(channel, [message["offset"], epoch, message["data"]])


def _seen(publication: list[Any]) -> Seen:
    offset, epoch, data = publication
    return Seen(Position(offset, epoch), data)


class Publisher(Client):
    """A client that publishes one thing after another, each until it is acknowledged.

    Attributes:
        uncertain: How often it had to publish again, because it got no answer.
    """

    def __init__(self, recording: Recording, name: str, channels: Sequence[str]) -> None:
        super().__init__(recording, name)
        self.channels = channels
        self.uncertain = 0
        self._count = 0
        self._stopped = False

    def stop(self) -> None:
        """Publish nothing more, once the last one is acknowledged."""
        self._stopped = True

    async def run(self, pause: float) -> None:
        """Publish until `stop`, with a pause in seconds after each acknowledgement."""
        channels, random = self.channels, self.recording.random
        waiting: Published | None = None
        while not (self._stopped and waiting is None):
            try:
                async with self.connection() as connection:
                    while not (self._stopped and waiting is None):
                        waiting = waiting or self._next(random.choice(channels))
                        if await self._publish(connection, waiting) is None:
                            self.uncertain += 1
                            await self.pause()
                            continue
                        waiting = None
                        await asyncio.sleep(pause)
            except GONE:
                self.uncertain += waiting is not None
            await self.pause()

    async def publish(self, channel: str) -> Position:
        """Publish once."""
        event = self._next(channel)
        while True:
            try:
                async with self.connection() as connection:
                    if (position := await self._publish(connection, event)) is not None:
                        return position
            except GONE:
                pass
            await self.pause()

    def _next(self, channel: str) -> Published:
        self._count += 1
        id = f"{self.name}.{self._count}"
        return Published(channel, id, f"text of {id}")

    async def _publish(self, connection: ClientConnection, event: Published) -> Position | None:
        """Where it stands now; None if that is not certain."""
        request = {"publish": event.channel, "id": event.id, "data": event.data}
        self.recording.note(event)
        async with asyncio.timeout(PATIENCE):
            await connection.send(msgspec.json.encode(request).decode())
            answer = msgspec.json.decode(await connection.recv())
        if "acknowledged" not in answer:
            return None
        position = Position(*answer["position"])
        self.recording.note(Acknowledged(event.channel, event.id, position))
        return position
