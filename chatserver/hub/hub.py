"""The hub's face: publishing, subscribing, and the registry of this process's connections.

A publication goes from `Hub.publish` to the broker, which numbers and keeps it, and comes
back from there by `Hub.deliver`, in this process as in every other. `deliver` checks that it
follows the one before, and hands it to the fan-out of each event loop that has a subscriber.

Connections live on event loops, and a process may have several (each socket of Starlette's
`TestClient` has its own). So the members are kept per loop, in a `Fanout` that only that
loop's thread touches; what comes from another thread is put into its inbox.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from msgspec import structs

from chatserver.brokers import Broker, Control, Disconnect, MemoryBroker
from chatserver.connection import Connection
from chatserver.errors import BrokerUnavailable, TooManyChannels
from chatserver.hub.admission import Admission
from chatserver.hub.fanout import Fanout, Lost, Shared, running_loop
from chatserver.hub.following import Following
from chatserver.hub.rows import Answer, Member, OnLost
from chatserver.hub.subscription import State, Step, Subscribed, Verdict, before
from chatserver.limits import Counts, Limits
from chatserver.publication import (
    PLAIN,
    ClientInfo,
    Delivery,
    Encoder,
    History,
    Payload,
    Position,
    Publication,
    payload,
)

__all__ = ["Hub", "Statistics"]

logger = logging.getLogger("chatserver")

#: Publications after which a publisher yields to the event loop.
TURN_PUBLICATIONS = 256
#: Channels that a connection leaves before others get a turn.
TURN_CHANNELS = 100
#: Bytes of one channel that are held while its position, or what was missed, is asked for.
MAX_HELD = 4 * 1024 * 1024


class Statistics(Counts, kw_only=True):
    """What the hub is doing and has done since it began, with the `Counts` of its limits.

    Attributes:
        connections: Registered connections, now.
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
        broker: Carries the publications; in this process's memory by default. It can't be
            another hub's.
        limits: What clients may take.

    Attributes:
        broker: The broker.
        admission: Counts connections, and refuses those beyond the limits.
        limits: What clients may take.
        counts: How many clients went beyond that, and what was lost.
    """

    def __init__(self, broker: Broker | None = None, *, limits: Limits | None = None) -> None:
        self.broker: Broker | MemoryBroker = broker or MemoryBroker()
        self.broker.attach(self.deliver, self.lost, self.control)
        self.admission: Admission = Admission(limits)
        self.limits: Limits = self.admission.limits
        self.counts: Counts = self.admission.counts
        self._lock = threading.RLock()
        self._fanouts: dict[asyncio.AbstractEventLoop, Fanout] = {}
        # The loops with members in a channel: replaced, never changed, so that it can be read
        # without the lock.
        self._routes: dict[str, tuple[Fanout, ...]] = {}
        self._following = Following(
            self.broker, self._routes.__contains__, self._followed, MAX_HELD
        )
        # Tasks that are to come to their end whoever waits for them is cancelled.
        self._tasks: set[asyncio.Task[None]] = set()
        self._published = 0
        self._delivered = 0

    async def start(self) -> None:
        """Connect the broker; called when the application starts.

        Raises:
            BrokerUnavailable: It can't be had; one sentence says why, and what to do.
        """
        await self.broker.start()

    async def stop(self) -> None:
        """Let the broker go; called when the application stops."""
        await self.broker.stop()

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
        await self._written(channel)
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

    async def _written(self, channel: str) -> None:
        """Wait while this loop or another is far behind with writing to members.

        So the writers get their turn however fast one publishes, and logs stay bounded.
        """
        here = asyncio.get_running_loop()
        for fanout in self._routes.get(channel, ()):
            if fanout.loop.is_closed():
                # Until its end, for the loop of `publish_from_thread` ends with this.
                await asyncio.shield(self._abandon(fanout))
            elif fanout.loop is not here:
                await fanout.reach()
            elif (behind := fanout.behind(channel)) is not None:
                feed, place = behind
                await feed.written(place)
        if self._published % TURN_PUBLICATIONS == 0:
            await asyncio.sleep(0)

    # What the broker calls, on any thread

    def deliver(self, delivery: Delivery) -> None:
        """Pass a delivery on to this process's subscribers. Awaits nobody."""
        if not isinstance(delivery, Publication):
            self._pass_on(delivery)
            return
        with self._lock:
            continuity = self._following.continuity(delivery.channel)
            if continuity is None:
                return  # one that nobody follows any more
            verdict = continuity.take(delivery)
            if verdict is Verdict.NEXT:
                self._pass_on(delivery)
            elif verdict is Verdict.GAP:
                self._fill_soon(delivery.channel)
            elif verdict is Verdict.LOST:
                self._pass_on_all(delivery.channel, [before(delivery), delivery])

    def lost(self, channel: str, position: Position) -> None:
        """The broker has lost continuity: the stream of a channel goes on behind `position`."""
        with self._lock:
            continuity = self._following.continuity(channel)
            # One that isn't confirmed yet is told its position by the broker's answer.
            if continuity is not None and continuity.top is not None:
                continuity.reset(position)
                self._tell_lost(channel, position)

    def control(self, control: Control) -> None:
        """Do what another process, or this one, has told all of them."""
        with self._lock:
            fanouts = tuple(self._fanouts.values())
        for fanout in fanouts:
            with suppress(RuntimeError):  # its loop was closed this moment
                fanout.loop.call_soon_threadsafe(self._obey, fanout, control)

    def _pass_on(self, delivery: Delivery) -> None:
        shared = Shared(delivery)
        for fanout in self._routes.get(delivery.channel, ()):
            fanout.deliver(shared)

    def _followed(self, channel: str, position: Position) -> None:
        """The broker has said where the stream of a channel stands that it now delivers."""
        with self._lock:
            continuity = self._following.continuity(channel)
            if continuity is not None:
                self._pass_on_all(channel, continuity.start(position))

    def _pass_on_all(self, channel: str, steps: Sequence[Step]) -> None:
        """Pass on what was held or read; behind it there may be a gap."""
        for step in steps:
            if isinstance(step, Position):
                self._tell_lost(channel, step)
            else:
                self._pass_on(step)
        continuity = self._following.continuity(channel)
        if continuity is not None and continuity.gap:
            self._fill_soon(channel)

    def _fill_soon(self, channel: str) -> None:
        """Read what was missed of a channel, on one of the loops that have members of it."""
        for fanout in self._routes.get(channel, ()):
            with suppress(RuntimeError):  # its loop was closed this moment
                fanout.loop.call_soon_threadsafe(self._begin_to_fill, channel)
                return

    def _begin_to_fill(self, channel: str) -> None:
        self._begin(self._fill(channel))

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fill(self, channel: str) -> None:
        """Read what was missed once for all members, or tell them that it is lost."""
        continuity = self._following.continuity(channel)
        if continuity is None or continuity.top is None:
            return
        since = continuity.top
        try:
            history = await self.broker.history(channel, since=since)
        except Exception as error:
            logger.warning("What was missed of channel %r can't be read: %s", channel, error)
            history = None
        with self._lock:
            if continuity is not self._following.continuity(channel):
                return
            if continuity.gap and continuity.top == since:  # else it went on meanwhile
                self._pass_on_all(channel, continuity.fill(history))

    def _tell_lost(self, channel: str, position: Position) -> None:
        logger.warning(
            "Publications of channel %r were lost; it goes on behind offset %d",
            channel,
            position.offset,
        )
        for fanout in self._routes.get(channel, ()):
            self.counts.lost += fanout.channels[channel].members
            fanout.deliver(Lost(channel, position))

    def _obey(self, fanout: Fanout, control: Control) -> None:
        for connection in tuple(fanout.connections):
            if not (
                (control.client and control.client == connection.id)
                or (control.user and control.user == connection.user)
            ):
                continue
            if isinstance(control, Disconnect):
                connection.close(control.code, control.reason)
            elif control.channel in connection.members:
                self._begin(self._try(self.unsubscribe(connection, control.channel)))

    # Subscribing

    async def subscribe(
        self,
        connection: Connection,
        channel: str,
        *,
        encoder: Encoder = PLAIN[None],
        since: Position | None = None,
        recent: int = 0,
        info: ClientInfo | None = None,
        last_will: Payload | None = None,
        answer: Answer | None = None,
        on_lost: OnLost | None = None,
    ) -> Subscribed:
        """Let a connection follow a channel, from now on or from a position on.

        What is published meanwhile is held back, so that between the answer and what is
        written to the connection nothing is missing, twice or out of order. A connection that
        is not accepted yet is written to when it is `opened`.

        Args:
            connection: One registered on this event loop, and not yet in the channel.
            channel: The channel's name.
            encoder: Turns what is delivered into what this connection gets; text by default.
            since: Where the client stands; what it missed is in the answer.
            recent: How many of the newest publications are in the answer, where `since` is None.
            info: With it, the client is entered into the channel's presence.
            last_will: Published to the channel if this process ends without the client having
                left; it needs an entry in the channel's presence, and makes one.
            answer: Makes the frames that tell the client of the answer. They are written before
                everything else of the channel.
            on_lost: Told when the client has missed something, on the connection's loop; the
                client is in the channel then, but is written nothing more until it has left
                and subscribed anew. Without it the client goes on behind the gap.

        Raises:
            ValueError: The connection is in the channel already, or not registered (any
                more), or the name is empty.
            TooManyChannels: It is in as many as the limits allow.
            RuntimeError: It was unsubscribed or unregistered meanwhile.
            BrokerUnavailable: The broker can't say for certain that it delivers the channel,
                or took so long that more was published than can be held.
        """
        _check_channel(channel)
        if last_will is not None and info is None:
            info = ClientInfo(connection.id)
        member = self._join(connection, channel, encoder)
        member.answer, member.on_lost = answer, on_lost
        try:
            await self._following.settle(channel)
            if info is not None:
                member.info = info
                await self.broker.enter(channel, info, last_will=last_will)
            history = await self._read(channel, since, recent)
            if connection.members.get(channel) is not member:
                raise RuntimeError(f"the connection left channel {channel!r} while subscribing")
            # From here on nothing is awaited, so nothing can come between.
            return self._answer(member, since, history, recent)
        except BaseException:
            self._part(member)
            with suppress(Exception):  # what came first is what is told
                await self._release(connection, [member])
            raise

    async def _read(self, channel: str, since: Position | None, recent: int) -> History | None:
        """Read what a subscription asks for, in the order of the stream."""
        if since is not None:
            return await self.broker.history(channel, since=since)
        if recent <= 0:
            return None
        newest = await self.broker.history(channel, limit=recent, reverse=True)
        return History(newest.publications[::-1], newest.position)

    def _answer(
        self, member: Member, since: Position | None, history: History | None, recent: int
    ) -> Subscribed:
        joining = member.joining
        assert joining is not None, "it was not answered before"
        subscribed = joining.answer(since, history, self._top(member), recent)
        if joining.overflowed:
            raise BrokerUnavailable("the broker took too long to answer a subscription")
        if member.connection.accepted:
            self._open(member)
        return subscribed

    def opened(self, connection: Connection) -> None:
        """A connection was accepted: write what was held for it, and go live."""
        for member in tuple(connection.members.values()):
            if member.joining is not None and member.joining.state is State.ANSWERED:
                self._open(member)

    def _open(self, member: Member) -> None:
        fanout = self._fanouts[asyncio.get_running_loop()]
        fanout.open(member, self._top(member))

    def _top(self, member: Member) -> Position:
        """Where a member's channel stands, with all up to there taken over by its loop."""
        # Without the lock another thread could be about to hand over what is counted already.
        with self._lock:
            continuity = self._following.continuity(member.channel)
            if continuity is None or continuity.top is None:
                raise BrokerUnavailable(f"channel {member.channel!r} is not delivered any more")
            self._fanouts[asyncio.get_running_loop()].pull()
            return continuity.top

    async def unsubscribe(self, connection: Connection, channel: str) -> None:
        """Let a connection leave a channel; nothing happens when it isn't in it.

        When cancelled, it leaves nevertheless: in this process at once, at the broker soon.
        """
        member: Member | None = connection.members.get(channel)
        if member is not None:
            self._part(member)
            await self._release(connection, [member])

    async def _release(self, connection: Connection, members: Sequence[Member]) -> None:
        """Tell the broker who left, to the end also when this is cancelled."""
        await asyncio.shield(self._begin(self._tell(connection, members)))

    async def _tell(self, connection: Connection, members: Sequence[Member]) -> None:
        """Tell the broker of every channel, and then raise what went wrong with the first."""
        errors: list[BaseException] = []
        for start in range(0, len(members), TURN_CHANNELS):
            some = members[start : start + TURN_CHANNELS]
            self._part_all(some)
            told = (self._tell_left(connection, member) for member in some)
            errors += filter(None, await asyncio.gather(*told, return_exceptions=True))
        if errors:
            raise errors[0]

    async def _tell_left(self, connection: Connection, member: Member) -> None:
        try:
            again: Member | None = connection.members.get(member.channel)
            if member.info is not None and (again is None or again.info is None):
                await self.broker.leave(member.channel, member.info.client)
        finally:
            await self._following.settle(member.channel)

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

    def register(self, connection: Connection, user: str = "") -> None:
        """Count a connection of this event loop, before it is accepted.

        Args:
            connection: The connection.
            user: Whose it is, for control messages; empty where nobody asked.
        """
        connection.user = user
        with self._lock:
            self._fanout().add(connection)

    async def unregister(self, connection: Connection) -> None:
        """Let a connection leave all its channels, and count it no more; see `unsubscribe`."""
        members = tuple(connection.members.values())
        with self._lock:
            fanout = self._fanouts.get(asyncio.get_running_loop())
            if fanout is not None and connection in fanout.connections:
                fanout.remove(connection)
                self.counts.slow_consumers += connection.slow
                self._forget_if_empty(fanout)
        self._part_all(members[:TURN_CHANNELS])
        if members:
            await self._release(connection, members)

    def _join(self, connection: Connection, channel: str, encoder: Encoder) -> Member:
        with self._lock:
            fanout = self._fanouts.get(asyncio.get_running_loop())
            if fanout is None or connection not in fanout.connections:
                raise ValueError("the connection is not registered on this event loop")
            if channel in connection.members:
                raise ValueError(f"the connection is in channel {channel!r} already")
            most = self.limits.max_channels
            if most and len(connection.members) >= most:
                raise TooManyChannels(f"a connection may be in {most} channels")
            if channel not in fanout.channels:
                self._routes[channel] = (*self._routes.get(channel, ()), fanout)
            return fanout.join(channel, connection, encoder)

    def _part(self, member: Member) -> None:
        """Take a connection out of a channel, in this process, unless it has left already."""
        if member.connection.members.get(member.channel) is not member:
            return
        with self._lock:
            fanout = self._fanouts[asyncio.get_running_loop()]
            fanout.leave(member)
            if member.channel not in fanout.channels:
                self._unroute(member.channel, fanout)
                self._forget_if_empty(fanout)

    def _part_all(self, members: Sequence[Member]) -> None:
        for member in members:
            self._part(member)

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
                self._abandon(self._fanouts[other])
            self._fanouts[loop] = Fanout(loop, self.limits)
        return self._fanouts[loop]

    def _forget_if_empty(self, fanout: Fanout) -> None:
        if not fanout.connections and not fanout.channels:
            self._forget(fanout)

    def _forget(self, fanout: Fanout) -> None:
        """Drop a loop without connections, or closed with connections left behind."""
        for channel in fanout.channels:
            self._unroute(channel, fanout)
        self._delivered += fanout.delivered
        del self._fanouts[fanout.loop]

    def _abandon(self, fanout: Fanout) -> asyncio.Task[None]:
        """Give up the channels of a loop that was closed, and let its clients' entries lapse."""
        connections: set[Connection] = set()
        with self._lock:
            if self._fanouts.get(fanout.loop) is fanout:  # else another thread was quicker
                connections = fanout.connections
                self._forget(fanout)
        return self._begin(self._lapse(connections, tuple(fanout.channels)))

    async def _lapse(self, connections: Collection[Connection], channels: Sequence[str]) -> None:
        for connection in connections:
            for member in connection.members.values():
                if member.info is not None:
                    await self._try(self.broker.lapse(member.channel, member.info.client))
        for channel in channels:
            await self._try(self._following.settle(channel))
            continuity = self._following.continuity(channel)
            if continuity is not None and continuity.gap:
                self._fill_soon(channel)  # it may have been that loop's to fill

    async def _try(self, telling: Awaitable[None]) -> None:
        """Tell the broker of somebody who left, where nobody waits for it."""
        try:
            await telling
        except Exception as error:
            logger.warning("The broker could not be told who left: %s", error)


def _check_channel(channel: str) -> None:
    if not isinstance(channel, str):
        raise TypeError(f"a channel's name must be a str, got {type(channel).__name__}")
    if not channel:
        raise ValueError("a channel's name must not be empty")
