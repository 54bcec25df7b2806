"""Publishing, subscribing, and the registry of this process's connections.

`Hub.publish` gives a publication to the broker, which numbers and stores it, and passes it to
`Hub.deliver`, in this process as in every other. `deliver` checks that it follows the publication
before it, and gives it to the fan-out of each event loop that has a subscriber.

Connections live on event loops, and a process may have several (each socket of Starlette's
`TestClient` has its own). So the members are kept per loop, in a `Fanout` that only that
loop's thread uses; other threads put deliveries into its inbox.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from msgspec import structs

from chatserver.brokers import Broker, Control, Disconnect, MemoryBroker, Unsubscribe
from chatserver.connection import Connection
from chatserver.errors import BrokerUnavailable, TooManyChannels, can_be_sent, close_reason
from chatserver.hub.admission import Admission
from chatserver.hub.fanout import Fanout, Lost, Shared, running_loop
from chatserver.hub.following import Following
from chatserver.hub.rows import Answer, Member, OnLeft, OnLost
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
    check_name,
    payload,
)
from chatserver.rules import RulesByName, rules_by_name

__all__ = ["Hub", "Statistics"]

logger: logging.Logger = logging.getLogger("chatserver")

#: Publications after which a publisher yields to the event loop.
TURN_PUBLICATIONS = 256
#: Channels that a connection leaves before other tasks get a turn.
TURN_CHANNELS = 100
#: Channels whose positions are asked for in one call.
CHECKED_AT_ONCE = 1000
#: Bytes of one channel that are held while its position, or a gap in it, is asked for.
MAX_HELD = 4 * 1024 * 1024


class Statistics(Counts, kw_only=True):
    """What the hub does now and has done since it was made, with the `Counts` of its limits.

    Attributes:
        connections: Registered connections, now.
        channels: Channels with a subscriber in this process, now.
        subscriptions: Pairs of a connection and a channel, now.
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

    Safe to use from every event loop and thread of the process; but a connection is subscribed
    and unsubscribed on its own loop only.

    Args:
        broker: Carries the publications; by default a `MemoryBroker`. It can't belong to
            another hub.
        limits: What clients may take.
        rules: What is kept of which channels; see `chatserver.rules`.

    Attributes:
        broker: The broker.
        admission: Counts connections, and refuses those beyond the limits.
        limits: What clients may take.
        counts: How many clients went beyond a limit, and what was lost.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        limits: Limits | None = None,
        rules: RulesByName | None = None,
    ) -> None:
        if broker is not None and not isinstance(broker, Broker):
            kind = type(broker).__name__
            raise TypeError(f"Hub() takes a Broker, as broker_from_url(url) makes one; got {kind}")
        self.broker: Broker | MemoryBroker = broker or MemoryBroker()
        if rules:
            self.broker.rules = rules_by_name(rules, self.broker.rules)
        self.broker.attach(self.deliver, self.control, self.check, self._written)
        self.admission: Admission = Admission(limits)
        self.limits: Limits = self.admission.limits
        self.counts: Counts = self.admission.counts
        self._lock = threading.RLock()
        self._fanouts: dict[asyncio.AbstractEventLoop, Fanout] = {}
        # The loops with members in a channel: a tuple is replaced, never changed, so that it can
        # be read without the lock.
        self._routes: dict[str, tuple[Fanout, ...]] = {}
        self._following = Following(
            self.broker, self._routes.__contains__, self._followed, MAX_HELD
        )
        # What came too early for a connection: it is closed when it is accepted, and a member
        # leaves when it has its answer.
        self._closing: dict[Connection, Disconnect] = {}
        self._leaving: set[Member] = set()
        # Tasks that run to their end even if the task that awaits them is cancelled.
        self._tasks: set[asyncio.Task[None]] = set()
        self._published = 0
        self._delivered = 0

    async def start(self) -> None:
        """Connect the broker; called when the application starts.

        Raises:
            BrokerUnavailable: It can't be reached; one sentence says why, and what to do.
        """
        await self.broker.start()
        self.admission.stopping = False

    async def stop(self) -> None:
        """Stop the broker; called when the application stops."""
        await self.broker.stop()

    # Publishing

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        """Publish to a channel; may be awaited on any event loop of the process.

        Args:
            channel: The channel's name, not empty.
            data: Text, bytes, or anything that can be encoded as JSON: a `Message`, a dict, a
                pydantic model.
            id: Chosen by the publisher, so that it can publish again when it got no answer:
                within five minutes a second publish with the same id delivers nothing, and
                returns the position of the first.
            info: The publisher, as subscribers see it.
            keep: If False, it is delivered and not kept: it has no offset, and is neither in the
                history nor in what a client that comes back has missed. For "is typing".
            skip: The identifier of a connection that does not get it, in whatever process.

        Returns:
            The publication's position. The broker has stored it, and delivers it to subscribers.

        Raises:
            TypeError: The data can't be encoded as JSON, or the channel or id is not a string.
            ValueError: The channel's name or the id is empty, or text has lone surrogates.
            BrokerUnavailable: It is not certain that the broker has stored it.
        """
        check_name("a channel's name", channel)
        if id is not None:
            check_name("an id", id)
        position = await self.broker.publish(
            channel, payload(data), id=id, info=info, keep=keep, skip=skip
        )
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
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        """Publish from synchronous code, in a thread without an event loop.

        Arguments, return value and errors are those of `publish`.

        Raises:
            RuntimeError: This thread runs an event loop; await `publish` there.
        """
        if running_loop() is not None:
            raise RuntimeError(
                "publish_from_thread() would block this thread's event loop; "
                "use 'await hub.publish(...)' there"
            )
        return asyncio.run(self.publish(channel, data, id=id, info=info, keep=keep, skip=skip))

    async def _written(self, channel: str) -> None:
        """Wait while this loop or another is far behind in writing to members.

        So the writers get their turn however fast publishers are, and the logs stay bounded.
        """
        here = asyncio.get_running_loop()
        for fanout in self._routes.get(channel, ()):
            if fanout.loop.is_closed():
                # To its end, because the loop of `publish_from_thread` ends after this.
                await asyncio.shield(self._abandon(fanout))
            elif fanout.loop is not here:
                await fanout.reach()
            elif (behind := fanout.behind(channel)) is not None:
                feed, place = behind
                await feed.written(place)
        if self._published % TURN_PUBLICATIONS == 0:
            await asyncio.sleep(0)

    # Control, in every process

    async def disconnect(
        self,
        *,
        user: str = "",
        client: str = "",
        code: int = 1008,
        reason: str = "disconnected by the application",
    ) -> None:
        """Close the connections of a user, or one client's, in every process.

        They are closed soon after this returns. It forbids nobody to connect again: that is for
        `authenticate` to know before. A client should come back by itself or not as the table of
        close codes says; after 1008 it should not.

        Args:
            user: The user's name, as in presence.
            client: Or the identifier of one connection.
            code: The close code.
            reason: Why, in words for the client; cut to 123 bytes.

        Raises:
            TypeError: A name or the reason is no text.
            ValueError: Not exactly one of user and client is given, it has lone surrogates, or the
                code can't be sent.
            BrokerUnavailable: It is not certain that every process was told.
        """
        _check_one(user, client)
        if not isinstance(code, int) or not can_be_sent(code):
            raise ValueError(
                f"{code!r} can't be sent as a close code; 1008 and those from 3000 to 4999 can"
            )
        if not isinstance(reason, str):
            raise TypeError(f"the reason must be a str, got {type(reason).__name__}")
        await self.broker.tell(Disconnect(user, client, code, close_reason(reason)))

    async def unsubscribe(self, *, channel: str, user: str = "", client: str = "") -> None:
        """Have the connections of a user, or one client's, leave a channel, in every process.

        They leave soon after this returns, as if by `Endpoint.leave`, and stay connected. The
        clients are not told, and may join again.

        Args:
            channel: The channel's name.
            user: The user's name, as in presence.
            client: Or the identifier of one connection.

        Raises:
            ValueError: Not exactly one of user and client is given, or the channel is empty.
            BrokerUnavailable: It is not certain that every process was told.
        """
        check_name("a channel's name", channel)
        _check_one(user, client)
        await self.broker.tell(Unsubscribe(channel, user, client))

    # What the broker calls, on any thread

    def deliver(self, delivery: Delivery) -> None:
        """Pass a delivery on to this process's subscribers. Never waits."""
        if not isinstance(delivery, Publication) or not delivery.offset:
            self._pass_on(delivery)
            return
        with self._lock:
            continuity = self._following.continuity(delivery.channel)
            if continuity is None:
                return  # the channel is not followed any more
            verdict = continuity.take(delivery)
            if verdict is Verdict.NEXT:
                self._pass_on(delivery)
            elif verdict is Verdict.GAP:
                self._fill_soon(delivery.channel)
            elif verdict is Verdict.LOST:
                self._pass_on_all(delivery.channel, [before(delivery), delivery])

    async def check(self) -> None:
        """Compare where this process stands in each channel that it follows with the broker.

        What was missed is read from the history; where that is impossible, members are told.

        Raises:
            BrokerUnavailable: The broker can't be asked.
        """
        followed = list(self._following.tops().items())
        for start in range(0, len(followed), CHECKED_AT_ONCE):
            known = dict(followed[start : start + CHECKED_AT_ONCE])
            for channel, top in (await self.broker.tops(known)).items():
                self._compare(channel, known[channel], top)

    def _compare(self, channel: str, known: Position, top: Position) -> None:
        with self._lock:
            continuity = self._following.continuity(channel)
            verdict = Verdict.OLD if continuity is None else continuity.compare(known, top)
            if verdict is Verdict.GAP:
                self._fill_soon(channel)
            elif verdict is Verdict.LOST:
                self._tell_lost(channel, top)

    def control(self, control: Control) -> None:
        """Carry out what a process has told all processes."""
        with self._lock:
            fanouts = tuple(self._fanouts.values())
        for fanout in fanouts:
            with suppress(RuntimeError):  # the loop was closed in this moment
                fanout.loop.call_soon_threadsafe(self._obey, fanout, control)

    def _pass_on(self, delivery: Delivery) -> None:
        shared = Shared(delivery)
        for fanout in self._routes.get(delivery.channel, ()):
            fanout.deliver(shared)

    def _followed(self, channel: str, position: Position) -> None:
        """The broker delivers a channel now, and has told the position of its stream."""
        with self._lock:
            continuity = self._following.continuity(channel)
            if continuity is not None:
                self._pass_on_all(channel, continuity.start(position))

    def _pass_on_all(self, channel: str, steps: Sequence[Step]) -> None:
        """Pass on what was held or read; after it there may be another gap."""
        for step in steps:
            if isinstance(step, Position):
                self._tell_lost(channel, step)
            else:
                self._pass_on(step)
        continuity = self._following.continuity(channel)
        if continuity is not None and continuity.gap:
            self._fill_soon(channel)

    def _fill_soon(self, channel: str) -> None:
        """Read the missed publications of a channel, on one of the loops with members of it."""
        for fanout in self._routes.get(channel, ()):
            with suppress(RuntimeError):  # the loop was closed in this moment
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
        """Read what was missed, once for all members, or tell them that it is lost."""
        continuity = self._following.continuity(channel)
        if continuity is None or continuity.top is None:
            return
        since = continuity.top
        try:
            history = await self.broker.history(channel, since=since)
        except BrokerUnavailable:
            return  # the broker awaits `check` when it is back
        except Exception as error:
            logger.warning("Missed publications of channel %r can't be read: %s", channel, error)
            history = None
        with self._lock:
            if continuity is not self._following.continuity(channel):
                return
            if continuity.gap and continuity.top == since:  # else it was reset meanwhile
                self._pass_on_all(channel, continuity.fill(history))

    def _tell_lost(self, channel: str, position: Position) -> None:
        logger.warning(
            "Publications of channel %r were lost; it goes on after offset %d",
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
                self._close(connection, control)
            elif (member := connection.members.get(control.channel)) is not None:
                self._expel(member)

    def _close(self, connection: Connection, control: Disconnect) -> None:
        if connection.accepted:
            connection.close(control.code, control.reason)
        else:
            self._closing[connection] = control

    def _expel(self, member: Member) -> None:
        """Have a member leave; one that is being subscribed, when that is done."""
        joining = member.joining
        if joining is not None and joining.state is State.JOINING:
            self._leaving.add(member)
        else:
            self._begin(self._try(self.leave(member.connection, member.channel)))

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
        on_left: OnLeft | None = None,
    ) -> Subscribed:
        """Subscribe a connection to a channel, from now on or from a position on.

        Publications that arrive meanwhile are held, so that between the answer and what is
        written to the connection nothing is missing, duplicated or out of order. To a connection
        that is not accepted yet nothing is written before `opened`.

        Args:
            connection: A connection that is registered on this event loop, and not in the channel.
            channel: The channel's name.
            encoder: Encodes a delivery for this connection; as text by default.
            since: The client's position; the answer holds what it missed since then, if that is
                all there, and fits into half of the connection's buffer.
            recent: How many of the newest publications the answer holds, if `since` is None or
                can't be recovered.
            info: If given, the client is entered into the channel's presence.
            last_will: Published to the channel if this process ends before the client has
                left; it makes an entry in the channel's presence if `info` is not given.
            answer: Makes the frames that tell the client the answer. They are written before
                everything else of the channel.
            on_lost: Called when the client has missed something, on the connection's loop. It
                makes the frames that tell the client, which then goes on after the gap; an answer
                that is not written yet is replaced by one that begins there. If it returns None,
                the client stays in the channel, but nothing more is written to it until it has
                left and subscribed again. Without it, the client goes on and isn't told.
            on_left: Called once when the client has left the channel, whoever made it leave, or
                when this raises after it had joined; on the connection's loop. It must not raise.

        Raises:
            ValueError: The connection is in the channel already, or is not registered (any
                more), or the name is empty.
            TooManyChannels: The connection has reached its limit of channels.
            RuntimeError: It was unsubscribed or unregistered meanwhile.
            BrokerUnavailable: The broker can't confirm that it delivers the channel, or it took
                so long that more was published than can be held.
        """
        check_name("a channel's name", channel)
        if last_will is not None and info is None:
            info = ClientInfo(connection.id)
        member = self._join(connection, channel, encoder)
        member.answer, member.on_lost, member.on_left = answer, on_lost, on_left
        try:
            await self._following.settle(channel)
            if info is not None:
                member.info = structs.replace(info, since=time.time())
                await self.broker.enter(channel, member.info, last_will=last_will)
            history = await self._read(channel, since, recent)
            if connection.members.get(channel) is not member:
                raise RuntimeError(f"the connection left channel {channel!r} while subscribing")
            # From here on there is no await, so no other task can run in between.
            subscribed = self._answer(member, since, history, recent)
            if member in self._leaving:
                self._expel(member)
            return subscribed
        except BaseException:
            self._part(member)
            with suppress(Exception):  # the first error is the one to raise
                await self._release(connection, [member])
            raise
        finally:
            self._leaving.discard(member)

    async def _read(self, channel: str, since: Position | None, recent: int) -> History | None:
        """Read what a subscription asks for, in the order of the stream."""
        if since is not None:
            missed = await self.broker.history(channel, since=since)
            if recent <= 0 or missed.publications or missed.position == since:
                return missed
            # The position is of another stream, or all that came after it is gone.
        elif recent <= 0:
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
        """A connection was accepted: write what was held for it, and make it live."""
        if connection in self._closing:
            self._close(connection, self._closing.pop(connection))
        for member in tuple(connection.members.values()):
            if member.joining is not None and member.joining.state is State.ANSWERED:
                self._open(member)

    def _open(self, member: Member) -> None:
        fanout = self._fanouts[asyncio.get_running_loop()]
        fanout.open(member, self._top(member))

    def _top(self, member: Member) -> Position:
        """The position of a member's channel, after this loop has taken all up to there."""
        # Without the lock, another thread might have counted a publication and not passed it on.
        with self._lock:
            continuity = self._following.continuity(member.channel)
            if continuity is None or continuity.top is None:
                raise BrokerUnavailable(f"channel {member.channel!r} is not delivered any more")
            self._fanouts[asyncio.get_running_loop()].pull()
            return continuity.top

    async def leave(self, connection: Connection, channel: str) -> None:
        """Undo `subscribe`; if the connection is not in the channel, do nothing.

        When cancelled, it leaves nevertheless: in this process at once, at the broker soon.
        """
        member: Member | None = connection.members.get(channel)
        if member is not None:
            self._part(member)
            await self._release(connection, [member])

    async def _release(self, connection: Connection, members: Sequence[Member]) -> None:
        """Tell the broker who left; runs to its end even if this is cancelled."""
        telling = self._begin(self._tell(connection, members))
        # If this is cancelled, nobody waits for its error any more.
        telling.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([telling])
        await telling

    async def _tell(self, connection: Connection, members: Sequence[Member]) -> None:
        """Tell the broker of every channel, then raise the first error."""
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
        """The clients in a channel now, in all processes, by client identifier."""
        return await self.broker.present(channel)

    def statistics(self) -> Statistics:
        """What the hub does now and has done since it was made."""
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
        """Register a connection of this event loop, before it is accepted.

        Args:
            connection: The connection.
            user: The connection's user, for control messages; empty if unknown.
        """
        connection.user = user
        with self._lock:
            self._fanout().add(connection)

    async def unregister(self, connection: Connection) -> None:
        """Let a connection leave all its channels, and unregister it; see `leave`."""
        members = tuple(connection.members.values())
        self._closing.pop(connection, None)
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
        """Take a connection out of a channel in this process, unless it has left already."""
        if member.connection.members.get(member.channel) is not member:
            return
        with self._lock:
            fanout = self._fanouts[asyncio.get_running_loop()]
            fanout.leave(member)
            if member.channel not in fanout.channels:
                self._unroute(member.channel, fanout)
                self._forget_if_empty(fanout)
        if member.on_left is not None:
            member.on_left(member.channel)

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
        """Drop a loop that has no connections, or was closed with connections left."""
        for channel in fanout.channels:
            self._unroute(channel, fanout)
        self._delivered += fanout.delivered
        del self._fanouts[fanout.loop]

    def _abandon(self, fanout: Fanout) -> asyncio.Task[None]:
        """Give up the channels of a closed loop, and let its clients' entries lapse."""
        connections: set[Connection] = set()
        with self._lock:
            if self._fanouts.get(fanout.loop) is fanout:  # else another thread has done it
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
                self._fill_soon(channel)  # the closed loop may have been the one to fill it

    async def _try(self, telling: Awaitable[None]) -> None:
        """Tell the broker that a client left, where no caller waits for the result."""
        try:
            await telling
        except Exception as error:
            logger.warning("The broker could not be told that a client left: %s", error)


def _check_one(user: str, client: str) -> None:
    if bool(user) == bool(client):
        raise ValueError(f"expected either a user or a client, got {user=} and {client=}")
    check_name("the name of a user or client", user or client)
