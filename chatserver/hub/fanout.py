"""The fan-out of one event loop: it writes to every member, and waits for none.

Members of a channel stand in rows of a hundred. A row knows up to which place of the channel's
log it has been written; a turn of the event loop writes to a row or a few, each gets everything
that is there by now, and the turns go round as long as a row is behind. So a message is with
everybody after one round from whenever it came, what came meanwhile travels with it, light load
pays no delay, and no room waits for a larger one longer than a row takes.

    Fanout      the channels and connections of one event loop, and its turns
    Channel     the members of one channel, by the form in which they take publications
    Feed        those who take the same form: their rows, and the log of what they lack
    Row         some of them, who are written to together
    Member      one connection's place in one channel

What is published comes into the inbox, on whatever thread; all else is only ever touched by the
loop's own thread.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from msgspec import Struct

from chatserver.connection import NO_MEMBERS, Connection, Write
from chatserver.hub.log import Log, joined
from chatserver.hub.subscription import Subscribed, Subscription
from chatserver.limits import Limits
from chatserver.publication import ClientInfo, Delivery, Encoder, Frame, Position, Publication

__all__ = ["Fanout", "Lost", "Member", "Shared", "running_loop"]

logger = logging.getLogger("chatserver")

#: Members in a row, and members written to before others get a turn.
ROW_MEMBERS = TURN_WRITES = 100
#: Bytes handed to one member at once. When as many wait in a channel, its publishers wait.
TURN_BYTES = 256 * 1024
#: Bytes in all logs together beyond which every publisher waits for its own channel.
MAX_WAITING = 16 * TURN_BYTES
#: Deliveries waiting for another thread's loop beyond which publishers wait.
INBOX_SIZE = 1024

#: A function that makes the frame by which a subscription is answered.
Answer: TypeAlias = Callable[[Subscribed], Frame | None]
#: Told that a member missed something, and where the stream goes on.
OnLost: TypeAlias = Callable[[str, Position], None]
Format: TypeAlias = tuple[Encoder, int | None]


class Lost(Struct, frozen=True):
    """The members of a channel missed something; the stream goes on behind `position`."""

    channel: str
    position: Position


class Shared:
    """A delivery on its way to many: encoded once per wire format, when first needed."""

    __slots__ = ("_frames", "delivery")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._frames: dict[Encoder, Frame | None] = {}

    def frame(self, encoder: Encoder) -> Frame | None:
        """It in a wire format; None where members of that format get nothing of it."""
        # Should two loops come here at the same time, either one's frame will do.
        if encoder not in self._frames:
            self._frames[encoder] = encoder(self.delivery)
        return self._frames[encoder]


class Member:
    """A connection's place in a channel.

    Args:
        connection: The connection.
        channel: The channel's name.
        encoder: Turns a delivery into what it gets.
        most: Bytes that are held for it while it joins.

    Attributes:
        joining: Decides what is written to it until it stands in a row; None from then on.
        row: Where it stands; None while it joins.
        index: Its number in the row.
        info: As whom it was entered into the channel's presence; None if it was not.
        answer: Makes the frame that is written before all else.
        on_lost: Told when it has missed something; without, it goes on behind the gap.
    """

    __slots__ = (
        *("answer", "channel", "connection", "encoder", "index", "info", "joining", "on_lost"),
        "row",
    )

    def __init__(self, connection: Connection, channel: str, encoder: Encoder, most: int) -> None:
        self.connection = connection
        self.channel = channel
        self.encoder = encoder
        self.joining: Subscription | None = Subscription(most)
        self.row: Row | None = None
        self.index = 0
        self.info: ClientInfo | None = None
        self.answer: Answer | None = None
        self.on_lost: OnLost | None = None


class Row:
    """Members who are written to together.

    Attributes:
        place: Up to where in the feed's log all of them have been written.
        ahead: Those who have been written further than that, and how far.
    """

    __slots__ = ("ahead", "feed", "members", "place", "writes")

    def __init__(self, feed: "Feed") -> None:
        self.feed = feed
        self.place = feed.log.end
        self.members: list[Member] = []
        self.writes: list[Write] = []  # what takes their publications, in the same order
        self.ahead: dict[Member, int] = {}

    def add(self, member: Member) -> None:
        """Let a member stand here, from the log's end on."""
        member.row, member.index = self, len(self.members)
        self.members.append(member)
        self.writes.append(member.connection.writer)
        if self.place < self.feed.log.end:
            self.ahead[member] = self.feed.log.end

    def remove(self, member: Member) -> None:
        """Let the last one stand in a member's place."""
        last, write = self.members.pop(), self.writes.pop()
        if last is not member:
            self.members[member.index], self.writes[member.index] = last, write
            last.index = member.index
        self.ahead.pop(member, None)
        member.row = None

    def write(self, most: int) -> int:
        """Write to each what it lacks, and so many bytes at most.

        Returns:
            How many publications were written, to all together.
        """
        log, place = self.feed.log, self.place
        self.place = until = log.until(place, most)
        if self.ahead:
            return self._write_apart(place, until)
        write_each(tuple(self.writes), log.slice(place, until))
        return (until - place) * len(self.writes)

    def _write_apart(self, place: int, until: int) -> int:
        """The same where some are ahead."""
        log, ahead, written = self.feed.log, self.ahead, 0
        for member, write in zip(tuple(self.members), tuple(self.writes), strict=True):
            start = ahead.get(member, place)
            if start < until:
                write_each((write,), log.slice(start, until))
                written += until - start
        self.ahead = {member: start for member, start in ahead.items() if start > until}
        return written

    def catch_up(self, member: Member) -> int:
        """Write to one member everything that is there, before its turn.

        Returns:
            How many publications that were.
        """
        log = self.feed.log
        place = self.ahead.get(member, self.place)
        if place == log.end:
            return 0
        write_each((self.writes[member.index],), log.slice(place, log.end))
        self.ahead[member] = log.end
        return log.end - place


class Feed:
    """The members of a channel who take publications in the same form.

    Attributes:
        log: What some of them still lack.
        rows: Who they are; the one that was written to longest ago comes first.
        queued: Whether a turn will come to it.
    """

    __slots__ = ("_waiters", "encoder", "log", "queued", "roomy", "rows")

    def __init__(self, encoder: Encoder, window_bits: int | None) -> None:
        self.encoder = encoder
        self.log = Log(window_bits)
        self.rows: deque[Row] = deque()
        self.roomy: dict[Row, None] = {}  # rows that are not full, in the order of becoming so
        self.queued = False
        # Publishers who wait, with the place up to which all must have been written.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def add(self, member: Member) -> None:
        """Let a member stand in a row with room."""
        row = next(iter(self.roomy), None)
        if row is None:
            row = Row(self)
            self.rows.append(row)
            self.roomy[row] = None
        row.add(member)
        if len(row.members) >= ROW_MEMBERS:
            del self.roomy[row]

    def remove(self, member: Member) -> None:
        """Let a member stand here no more."""
        row = member.row
        assert row is not None, "it stands in a row of this feed"
        row.remove(member)
        if row.members:
            self.roomy[row] = None
        else:
            self.rows.remove(row)
            self.roomy.pop(row, None)

    def next_row(self) -> Row | None:
        """The next row that is behind; None when all have everything."""
        for _ in range(len(self.rows)):
            row = self.rows[0]
            self.rows.rotate(-1)
            if row.place < self.log.end:
                return row
        return None

    def trim(self) -> int:
        """Drop what all have, and wake the publishers who wait for that.

        Returns:
            The bytes for which it counted.
        """
        place = min((row.place for row in self.rows), default=self.log.end)
        dropped = self.log.trim(place)
        while self._waiters and self._waiters[0][0] <= place:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        return dropped

    async def written(self, place: int) -> None:
        """Wait until all have been written up to a place."""
        if self.log.begin < place and self.rows:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((place, waiter))
            await waiter


class Channel:
    """The members of one channel on one event loop.

    Attributes:
        feeds: Those who are live, by the form in which they take publications.
        joining: Those who are not.
        members: How many there are.
    """

    __slots__ = ("feeds", "joining", "members")

    def __init__(self) -> None:
        self.feeds: dict[Format, Feed] = {}
        self.joining: dict[Member, None] = {}
        self.members = 0


class Fanout:
    """The members of all channels that live on one event loop.

    Only `deliver`, `behind` and `reach` may be called on another thread than that loop's.

    Args:
        loop: The event loop.
        limits: Those of its connections.

    Attributes:
        connections: All that are registered.
        channels: Those with a member here, by name.
        delivered: Frames written to members.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits | None = None) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self.channels: dict[str, Channel] = {}
        self.delivered = 0
        self._most = (limits or Limits()).max_buffer
        # A part of what a connection can buffer, so that nobody is slow who was not given a
        # turn to send.
        self._turn_bytes = max(min(TURN_BYTES, self._most // 4), 1)
        self._inbox: deque[Shared | Lost] = deque()
        self._taken = 0  # how many have been taken out of the inbox
        self._behind: deque[Feed] = deque()  # feeds with rows that lack something
        self._waiting = 0  # bytes in all logs
        self._pulling = False
        self._scheduled = False

    # Who is there

    def add(self, connection: Connection) -> None:
        """Count a connection, be told of its pace, and keep what it is sent in order."""
        self.connections.add(connection)
        connection.source = self

    def remove(self, connection: Connection) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        connection.source = None

    def join(self, name: str, connection: Connection, encoder: Encoder) -> Member:
        """Put a connection into a channel; what is published is held until it is live."""
        member = Member(connection, name, encoder, self._most)
        channel = self.channels.setdefault(name, Channel())
        channel.joining[member] = None
        channel.members += 1
        if connection.members is NO_MEMBERS:
            connection.members = {}
        connection.members[name] = member
        return member

    def leave(self, member: Member) -> None:
        """Take a connection out of a channel."""
        name = member.channel
        channel = self.channels[name]
        channel.joining.pop(member, None)
        if member.row is not None:
            self._take_out(channel, member)
        channel.members -= 1
        if not channel.members:
            del self.channels[name]
        del member.connection.members[name]

    def open(self, member: Member, top: Position) -> None:
        """Write what was held for a member, its answer first, and go live.

        Args:
            member: It has been answered, and its connection accepted.
            top: Where the channel stood before this was called.
        """
        self._pull()
        joining, connection = member.joining, member.connection
        assert joining is not None, "it is opened once"
        assert joining.answered is not None, "it was answered"
        if joining.overflowed:
            connection.close(1013, "more was published during the accept than can be held")
            return
        answer, member.answer = member.answer, None
        if answer is not None and (frame := answer(joining.answered)) is not None:
            connection.writer(joined([frame], connection.window_bits))
        held = self._encoded(member, joining.open())
        if held:
            self.delivered += len(held)
            connection.writer(joined(held, connection.window_bits))
        if joining.caught_up(top):
            self._stand(member)

    @property
    def subscriptions(self) -> int:
        """Pairs of a connection and its channel, now."""
        return sum(channel.members for channel in self.channels.values())

    # What is published

    def deliver(self, delivery: Shared | Lost) -> None:
        """Hand over a delivery, on any thread, for the next turn of the loop."""
        if self.loop.is_closed():
            return  # its connections are closed with it
        self._inbox.append(delivery)
        if self._scheduled:
            return
        self._scheduled = True
        if running_loop() is self.loop:
            self.loop.call_soon(self._turn)
        else:
            with suppress(RuntimeError):  # it was closed this moment
                self.loop.call_soon_threadsafe(self._turn)

    def behind(self, name: str) -> tuple[Feed, int] | None:
        """Whether a publisher on this loop must wait, for which feed, and up to which place.

        What others publish later doesn't count, so that none can keep another waiting.
        """
        self._pull()
        channel = self.channels.get(name)
        if channel is None:
            return None
        for feed in channel.feeds.values():
            if feed.log.size >= self._turn_bytes or (feed.queued and self._waiting >= MAX_WAITING):
                return feed, feed.log.end
        return None

    async def reach(self) -> None:
        """Wait, on another loop, until the inbox has room for what others publish."""
        mark = self._taken + len(self._inbox) - INBOX_SIZE
        # An event would have to be set from this loop's thread, and at each delivery.
        while self._taken < mark and not self.loop.is_closed():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def catch_up(self, connection: Connection) -> None:
        """Write to one connection what was published to it, before it is sent something else.

        So whoever publishes and then sends has both arrive in that order, and need not wait
        until all others have been written to. It is one write for each channel that has
        something, whatever number of publications that is.
        """
        if not (self._inbox or self._behind):
            return
        self._pull()
        for member in tuple(connection.members.values()):
            row = member.row
            if row is not None and row.feed.queued:
                self.delivered += row.catch_up(member)

    def paced(self, connection: Connection) -> None:
        """Take what the connection's publications are now to be given to."""
        for member in connection.members.values():
            if member.row is not None:
                member.row.writes[member.index] = connection.writer

    # A turn's work

    def _turn(self) -> None:
        """Write to as many members as one turn allows, and come back for the others."""
        self._scheduled = False
        self._pull()
        left = TURN_WRITES
        while self._behind and left > 0:
            feed = self._behind.popleft()
            row = feed.next_row()
            if row is None:
                self._trim(feed)
                feed.queued = False
                continue
            self._behind.append(feed)  # one row, and then the others have their turn
            self.delivered += row.write(self._turn_bytes)
            left -= len(row.members)
            if feed.log.size >= self._turn_bytes // 4:
                self._trim(feed)
        if (self._behind or self._inbox) and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _trim(self, feed: Feed) -> None:
        self._waiting -= feed.trim()

    def _pull(self) -> None:
        """Take over what is in the inbox, which other threads fill."""
        if self._pulling:
            return  # what is being taken may end a connection, which asks for what came before
        self._pulling = True
        while self._inbox:
            item = self._inbox.popleft()
            self._taken += 1
            if isinstance(item, Lost):
                self._lose(item)
            elif (channel := self.channels.get(item.delivery.channel)) is not None:
                for feed in tuple(channel.feeds.values()):
                    self._append(feed, item)
                for member in tuple(channel.joining):
                    self._offer(member, item)
        self._pulling = False

    def _append(self, feed: Feed, shared: Shared) -> None:
        """Put a delivery into a log, and let the turns come to its rows."""
        try:
            frame = shared.frame(feed.encoder)
            if frame is None:
                return
            self._waiting += feed.log.append(frame)
        except Exception:
            members = [member for row in feed.rows for member in row.members]
            self._give_up(members, shared.delivery)
            return
        if not feed.queued:
            feed.queued = True
            self._behind.append(feed)

    def _give_up(self, members: list[Member], delivery: Delivery) -> None:
        """End members for whom no frame can be made: behind the gap nothing may come."""
        logger.exception("A delivery of channel %r could not be encoded", delivery.channel)
        for member in members:
            member.connection.close(1011, "a publication could not be encoded")

    def _offer(self, member: Member, shared: Shared) -> None:
        """Let a member that is still joining decide what a delivery is to it."""
        joining, delivery = member.joining, shared.delivery
        assert joining is not None, "it is among those who join"
        if not isinstance(delivery, Publication) or not joining.take(delivery):
            return
        frames = self._encoded(member, [delivery])
        if frames:
            self.delivered += 1
            member.connection.writer(joined(frames, member.connection.window_bits))
        self._stand(member)

    def _encoded(self, member: Member, publications: list[Publication]) -> list[Frame]:
        """The frames of what was held for one member; nothing where one can't be made."""
        made = []
        for publication in publications:
            try:
                frame = member.encoder(publication)
                if frame is not None:
                    frame.wire(member.connection.window_bits or 0)
                    made.append(frame)
            except Exception:
                self._give_up([member], publication)
                return []
        return made

    # Rows

    def _stand(self, member: Member) -> None:
        """Let a member stand in a row: from here on what comes is in the log."""
        channel = self.channels[member.channel]
        channel.joining.pop(member, None)
        member.joining = None
        key = (member.encoder, member.connection.window_bits)
        feed = channel.feeds.get(key)
        if feed is None:
            feed = channel.feeds[key] = Feed(*key)
        feed.add(member)

    def _take_out(self, channel: Channel, member: Member) -> None:
        row = member.row
        assert row is not None, "it stands in one"
        feed = row.feed
        feed.remove(member)
        if not feed.rows:
            self._trim(feed)
            del channel.feeds[member.encoder, feed.log.window_bits]

    # What was lost

    def _lose(self, lost: Lost) -> None:
        """Tell the members of a channel that they have missed something."""
        channel = self.channels.get(lost.channel)
        if channel is None:
            return
        rows = [row for feed in channel.feeds.values() for row in feed.rows]
        for member in [member for row in rows for member in row.members]:
            if member.on_lost is not None:
                self.catch_up(member.connection)
                self._take_out(channel, member)
                self._tell_lost(member, member.on_lost, lost.position)
        for member in tuple(channel.joining):
            # One that is still joining is answered by what there is now.
            answered = member.joining is not None and member.joining.answered is not None
            if answered and member.on_lost is not None:
                del channel.joining[member]
                self._tell_lost(member, member.on_lost, lost.position)

    def _tell_lost(self, member: Member, on_lost: OnLost, position: Position) -> None:
        """Behind what came before the gap nothing is written, until it joins anew."""
        try:
            on_lost(member.channel, position)
        except Exception:
            logger.exception("Telling of a gap in channel %r failed", member.channel)


def write_each(writes: tuple[Write, ...], wire: Any) -> None:
    """The hot loop of the whole package. One socket's failure is none of the others' business."""
    rest = iter(writes)
    while True:
        try:
            for write in rest:
                write(wire)
        except Exception:
            logger.debug("A transport's write() failed", exc_info=True)
        else:
            return


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if it runs one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
