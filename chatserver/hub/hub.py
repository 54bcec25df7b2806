"""The hub: this process's connections by channel, and the fan-out to them.

A publication goes from `Hub.publish` to the broker, which numbers and keeps it, and comes
back from there by `Hub.deliver`, in this process as in every other. `deliver` encodes it once
per wire format and writes the frame to each member; it awaits nobody.

Connections live on event loops, and a process may have several (each socket of Starlette's
`TestClient` has its own). So the members are kept per loop, in a `Fanout` which only that
loop's thread touches; what comes from another thread is put into its inbox.
"""

import asyncio
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from msgspec import Struct, structs

from chatserver.brokers import Broker, MemoryBroker
from chatserver.brokers.following import Following
from chatserver.connection import Connection
from chatserver.errors import TooManyConnections
from chatserver.fanout import Fanout, Member, Shared, running_loop
from chatserver.limits import Counts, Limits
from chatserver.publication import (
    ClientInfo,
    History,
    Position,
    Publication,
    continues,
    payload,
)

__all__ = ["Hub", "Statistics", "Subscribed"]


#: Publications after which a publisher yields to the event loop.
TURN_PUBLICATIONS = 256


class Subscribed(Struct, frozen=True):
    """The answer to a subscription.

    Attributes:
        recovered: Whether `publications` are exactly what was missed since the position
            asked for; False too where none was asked for.
        publications: What was missed, in order. Later ones are written to the connection.
        position: Where in the stream the live publications go on.
    """

    recovered: bool
    publications: tuple[Publication, ...]
    position: Position


class Statistics(Counts, kw_only=True):
    """What the hub is doing and has done since it began, with the `Counts` of its limits.

    Attributes:
        connections: Accepted connections, now.
        channels: Channels with a subscriber in this process, now.
        subscriptions: Pairs of a connection and its channel, now.
        published: Publications acknowledged to publishers of this process.
        delivered: Frames written to subscribers of this process.
    """

    connections: int
    channels: int
    subscriptions: int
    published: int
    delivered: int


class Hub:
    """This process's registry of connections by channel, and its local fan-out.

    Safe to use from every event loop and thread of the process; a connection is only to be
    subscribed and unsubscribed on its own loop.

    Args:
        broker: Carries the publications; in this process's memory by default.
        limits: What clients may take.

    Attributes:
        counts: How often one wanted more.
    """

    def __init__(self, broker: Broker | None = None, *, limits: Limits | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self.broker.deliver = self.deliver
        self.limits = limits or Limits()
        self.counts = Counts()
        self._lock = threading.Lock()
        self._fanouts: dict[asyncio.AbstractEventLoop, Fanout] = {}
        # The loops with members in a channel: replaced, never changed, so that `deliver`
        # can read without the lock.
        self._routes: dict[str, tuple[Fanout, ...]] = {}
        self._following = Following(self.broker, self._routes.__contains__)
        self._releases: set[asyncio.Task[None]] = set()
        self._users: Counter[str] = Counter()
        self._published = 0
        self._delivered = 0

    # Publishing

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
    ) -> Position:
        """Publish to a channel; may be awaited on any event loop of the process.

        Args:
            channel: The channel's name, not empty.
            data: Text, bytes, or anything that can be JSON: a `Message`, a dict, a
                pydantic model.
            id: Chosen by the publisher, to be able to ask again when the answer was lost:
                within five minutes the same id delivers nothing and is answered with the
                first one's position.
            info: Who publishes, as subscribers are told.

        Returns:
            The publication's position. The broker has it; subscribers get it from there.

        Raises:
            TypeError: The data is not JSON, or the channel not a string.
            ValueError: The channel's name is empty, or text has lone surrogates.
            BrokerUnavailable: It is not certain that the broker has it.
        """
        _check_channel(channel)
        position = await self.broker.publish(channel, payload(data), id=id, info=info)
        with self._lock:
            self._published += 1
        await self._delivered_to(channel)
        return position

    def publish_from_thread(
        self,
        channel: str,
        data: Any,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
    ) -> Position:
        """Publish from synchronous code, in a thread without an event loop.

        Arguments, answer and errors are those of `publish`.

        Raises:
            RuntimeError: This thread runs an event loop; await `publish` there.
        """
        if running_loop() is not None:
            raise RuntimeError(
                "publish_from_thread() would block this thread's event loop; "
                "use 'await hub.publish(...)' there"
            )
        return asyncio.run(self.publish(channel, data, id=id, info=info))

    async def _delivered_to(self, channel: str) -> None:
        """Wait while this loop or another is far behind with writing to members.

        So the writers get their turn however fast one publishes, and inboxes stay bounded.
        """
        here = asyncio.get_running_loop()
        marks = [
            (fanout, mark)
            for fanout in self._routes.get(channel, ())
            if (mark := fanout.mark(here, channel))
        ]
        if self._published % TURN_PUBLICATIONS == 0:
            await asyncio.sleep(0)
        for fanout, mark in marks:
            await fanout.reach(mark)

    def deliver(self, publication: Publication) -> None:
        """Write a publication to this process's subscribers. Awaits nobody, on any thread."""
        shared = Shared(publication)
        for fanout in self._routes.get(publication.channel, ()):
            fanout.deliver(shared)

    # Subscribing

    async def subscribe(
        self,
        connection: Connection,
        channel: str,
        *,
        since: Position | None = None,
        info: ClientInfo | None = None,
    ) -> Subscribed:
        """Let a connection follow a channel, from now on or from a position on.

        What is published meanwhile is held back and becomes part of the answer, so that
        between the answer and what is written to the connection nothing is missing, twice
        or out of order: send the answer before anything else is awaited.

        Args:
            connection: One registered on this event loop, and not yet in the channel.
            channel: The channel's name.
            since: Where the client stands; what it missed is in the answer.
            info: With it, the client is entered into the channel's presence.

        Raises:
            ValueError: The connection is in the channel already, or not registered (any
                more), or the name is empty.
            RuntimeError: It was unsubscribed or unregistered meanwhile.
            BrokerUnavailable: The broker can't say for certain that it delivers the channel.
        """
        _check_channel(channel)
        member = self._join(connection, channel)
        try:
            await self._following.settle(channel)
            if info is not None:
                member.present = True
                await self.broker.enter(channel, info)
            limit = None if since is not None else 0
            history = await self.broker.history(channel, since=since, limit=limit)
            if self._member(connection, channel) is not member:
                raise RuntimeError(f"the connection left channel {channel!r} while subscribing")
        except BaseException:
            if self._member(connection, channel) is member:
                self._part(connection, channel)
            with suppress(Exception):  # what came first is what is told
                await self._release(connection, {channel: member})
            raise
        # From here on nothing is awaited, so nothing can come between.
        held = self._fanout().held(channel, connection)
        subscribed = _merge(since, history, held)
        member.go_live(subscribed.position)
        return subscribed

    async def unsubscribe(self, connection: Connection, channel: str) -> None:
        """Let a connection leave a channel; nothing happens when it isn't in it.

        When cancelled, it leaves nevertheless: in this process at once, at the broker soon.
        """
        if (member := self._part(connection, channel)) is not None:
            await self._release(connection, {channel: member})

    async def _release(self, connection: Connection, members: dict[str, Member]) -> None:
        """Tell the broker who left, to the end also when this is cancelled."""
        task = asyncio.get_running_loop().create_task(self._tell(connection, members))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        await asyncio.shield(task)

    async def _tell(self, connection: Connection, members: dict[str, Member]) -> None:
        """Tell the broker of every channel, and then raise what went wrong with the first."""

        async def tell(channel: str, member: Member) -> None:
            try:
                if member.present and not self._is_present(connection, channel):
                    await self.broker.leave(channel, connection.id)
            finally:
                await self._following.settle(channel)

        told = (tell(channel, member) for channel, member in members.items())
        for error in await asyncio.gather(*told, return_exceptions=True):
            if error is not None:
                raise error

    # Reading

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """Read the retained part of a channel's stream; see `Broker.history`."""
        return await self.broker.history(channel, since=since, limit=limit, reverse=reverse)

    async def present(self, channel: str) -> dict[str, ClientInfo]:
        """Who is in a channel now, in all processes, by client identifier."""
        return await self.broker.present(channel)

    def statistics(self) -> Statistics:
        """What the hub is doing now and has done since it began."""
        with self._lock:
            fanouts = list(self._fanouts.values())
            return Statistics(
                connections=sum(len(fanout.connections) for fanout in fanouts),
                channels=len(self._routes),
                subscriptions=sum(fanout.subscriptions for fanout in fanouts),
                published=self._published,
                delivered=self._delivered + sum(fanout.delivered for fanout in fanouts),
                **structs.asdict(self.counts),
            )

    # The registry

    def enter_user(self, user: str) -> None:
        """Count one more connection of a user, before it is accepted.

        Raises:
            TooManyConnections: The user has as many in this process as the limits allow.
        """
        most = self.limits.max_user_connections
        with self._lock:
            if most and self._users[user] >= most:
                self.counts.refused += 1
                raise TooManyConnections(f"{most} connections are open already")
            self._users[user] += 1

    def leave_user(self, user: str) -> None:
        """Count it no more."""
        with self._lock:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user]

    def register(self, connection: Connection) -> None:
        """Count an accepted connection of this event loop."""
        with self._lock:
            self._fanout().add(connection)

    async def unregister(self, connection: Connection) -> None:
        """Let a connection leave all its channels, and count it no more; see `unsubscribe`."""
        members = {name: self._part(connection, name) for name in list(connection.channels)}
        with self._lock:
            fanout = self._fanouts.get(asyncio.get_running_loop())
            if fanout is not None and connection in fanout.connections:
                fanout.remove(connection)
                self.counts.slow_consumers += connection.slow
                if not fanout.connections:
                    self._forget(fanout)
        if left := {name: member for name, member in members.items() if member is not None}:
            await self._release(connection, left)

    def _join(self, connection: Connection, channel: str) -> Member:
        with self._lock:
            fanout = self._fanouts.get(asyncio.get_running_loop())
            if fanout is None or connection not in fanout.connections:
                raise ValueError("the connection is not registered on this event loop")
            if channel in connection.channels:
                raise ValueError(f"the connection is in channel {channel!r} already")
            if channel not in fanout.members:
                self._routes[channel] = (*self._routes.get(channel, ()), fanout)
            return fanout.join(channel, connection)

    def _part(self, connection: Connection, channel: str) -> Member | None:
        """Take a connection out of a channel, in this process; None when it isn't in it."""
        with self._lock:
            fanout = self._fanouts.get(asyncio.get_running_loop())
            member = None if fanout is None else fanout.leave(channel, connection)
            if fanout is not None and member is not None and channel not in fanout.members:
                self._unroute(channel, fanout)
            return member

    def _member(self, connection: Connection, channel: str) -> Member | None:
        """A connection's place in a channel now; None when it isn't in it."""
        fanout = self._fanouts.get(asyncio.get_running_loop())
        return None if fanout is None else fanout.members.get(channel, {}).get(connection)

    def _is_present(self, connection: Connection, channel: str) -> bool:
        """Whether a connection that left a channel has entered it anew."""
        member = self._member(connection, channel)
        return member is not None and member.present

    def _unroute(self, channel: str, fanout: Fanout) -> None:
        rest = tuple(other for other in self._routes[channel] if other is not fanout)
        if rest:
            self._routes[channel] = rest
        else:
            del self._routes[channel]

    def _fanout(self) -> Fanout:
        loop = asyncio.get_running_loop()
        if loop not in self._fanouts:
            for other in [each for each in self._fanouts if each.is_closed()]:
                self._forget(self._fanouts[other])
            self._fanouts[loop] = Fanout(loop, self.limits)
        return self._fanouts[loop]

    def _forget(self, fanout: Fanout) -> None:
        """Drop a loop without connections, or closed with connections left behind."""
        for channel in fanout.members:
            self._unroute(channel, fanout)
        self._delivered += fanout.delivered
        del self._fanouts[fanout.loop]


def _merge(since: Position | None, history: History, held: list[Publication]) -> Subscribed:
    """Put what was published while subscribing behind what was read from history."""
    top = history.position
    # What was held of another epoch belongs to a stream that was lost meanwhile.
    later = tuple(each for each in held if each.epoch == top.epoch and each.offset > top.offset)
    if later:
        top = Position(later[-1].offset, later[-1].epoch)
    publications = history.publications + later
    if since is None:
        return Subscribed(False, later, top)
    if continues(since, publications, top):
        return Subscribed(True, publications, top)
    return Subscribed(False, (), top)


def _check_channel(channel: str) -> None:
    if not isinstance(channel, str):
        raise TypeError(f"a channel's name must be a str, got {type(channel).__name__}")
    if not channel:
        raise ValueError("a channel's name must not be empty")
