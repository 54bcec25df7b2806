"""The fan-out of one event loop: it writes to every member, and never waits for one.

Members of a channel are in rows of a hundred. A row knows up to which place of the channel's log
its members were written. A turn of the event loop writes to one row or a few; each gets everything
that the log has by now, and the turns go round as long as a row is behind. So every member has a
message after one round, and messages that arrived meanwhile go with it. Under light load nothing
is delayed, and no room waits for a larger one longer than one row takes.

Publications are put into the inbox by any thread; everything else is used by the loop's own
thread only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from msgspec import Struct

from chatserver.connection import NO_MEMBERS, Connection, connection_of
from chatserver.hub.log import joined
from chatserver.hub.rows import ROW_MEMBERS, Channel, Feed, Member, OnLost, Row, write_each
from chatserver.hub.subscription import State
from chatserver.limits import Limits
from chatserver.publication import Delivery, Encoder, Frame, Position, Publication

__all__ = ["Fanout", "Lost", "Shared", "running_loop"]

logger: logging.Logger = logging.getLogger("chatserver")

#: Members that one turn writes to before other tasks run.
TURN_WRITES = ROW_MEMBERS
#: The same when so many channels have publications that some would not get a row: a thousand
#: publishers in a thousand rooms must not leave the writers behind.
MOST_WRITES = 10 * TURN_WRITES
#: Bytes given to one member at once. When a channel's log holds as many, its publishers wait.
TURN_BYTES = 256 * 1024
#: Bytes in all logs together beyond which each publisher waits for its own channel.
MAX_WAITING = 16 * TURN_BYTES
#: Deliveries in the inbox of another thread's loop beyond which publishers wait.
INBOX_SIZE = 1024


class Lost(Struct, frozen=True):
    """The members of a channel missed something; the stream goes on after `position`."""

    channel: str
    position: Position


class Shared:
    """A delivery to many members: encoded once per wire format, when it is first needed."""

    __slots__ = ("_frames", "delivery")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery: Delivery = delivery
        self._frames: dict[Encoder, Frame | None] = {}

    def frame(self, encoder: Encoder) -> Frame | None:
        """The delivery in a wire format; None if members with that format don't get it."""
        # If two loops come here at the same time, either frame can be used.
        if encoder not in self._frames:
            self._frames[encoder] = encoder(self.delivery)
        return self._frames[encoder]


class Fanout:
    """The members of all channels that live on one event loop.

    Only `deliver`, `behind` and `reach` may be called on another thread than that loop's.

    Args:
        loop: The event loop.
        limits: The limits of its connections.

    Attributes:
        connections: All registered connections.
        channels: The channels with a member on this loop, by name.
        delivered: Frames written to members.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits | None = None) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self.channels: dict[str, Channel] = {}
        self.delivered: int = 0
        self._most = (limits or Limits()).max_buffer
        # A part of what a connection can buffer, so that no client counts as slow because it
        # had no turn to send.
        self._turn_bytes = max(min(TURN_BYTES, self._most // 4), 1)
        self._inbox: deque[Shared | Lost] = deque()
        self._taken = 0  # deliveries taken out of the inbox
        self._served = 0  # of those, the ones taken before the last turn
        self._behind: deque[Feed] = deque()  # feeds with rows that are behind
        self._waiting = 0  # bytes in all logs
        self._turns = 0
        # True while the inbox is emptied or a row written to. Either may end a connection, which
        # calls `catch_up`; then nothing more may be taken out of the inbox.
        self._busy = False
        self._scheduled = False

    # Connections and members

    def add(self, connection: Connection) -> None:
        """Register a connection: it tells us when its `writer` changes, and asks to catch up."""
        self.connections.add(connection)
        connection.source = self

    def remove(self, connection: Connection) -> None:
        """Unregister a connection."""
        self.connections.discard(connection)
        connection.source = None

    def join(self, name: str, connection: Connection, encoder: Encoder) -> Member:
        """Put a connection into a channel; publications are held until it is live."""
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
        """Make a member live: write its answer first, then what was held for it.

        Args:
            member: Its subscription is answered, and its connection accepted.
            top: The channel's position when the inbox was emptied last.
        """
        joining, connection = member.joining, member.connection
        if joining is None:
            return  # it was told of a loss instead
        assert joining.answered is not None, "it was answered"
        if joining.overflowed:
            connection.close(1013, "more was published during the accept than can be held")
            return
        self._catch_up(connection)
        answer, member.answer = member.answer, None
        if answer is not None and (frames := answer(joining.answered)):
            write_each((connection.writer,), joined(frames, connection.window_bits))
        self._write_held(member, joining.open())
        if joining.caught_up(top):
            self._stand(member)

    @property
    def subscriptions(self) -> int:
        """How many pairs of a connection and a channel there are now."""
        return sum(channel.members for channel in self.channels.values())

    # Publications

    def deliver(self, delivery: Shared | Lost) -> None:
        """Put a delivery into the inbox, on any thread, for the loop's next turn."""
        if self.loop.is_closed():
            return  # its connections were closed with it
        self._inbox.append(delivery)
        if self._scheduled:
            return
        self._scheduled = True
        if running_loop() is self.loop:
            self.loop.call_soon(self._turn)
        else:
            with suppress(RuntimeError):  # the loop was closed in this moment
                self.loop.call_soon_threadsafe(self._turn)

    def pull(self) -> None:
        """Empty the inbox, which other threads fill."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._taken += 1
                self._take(self._inbox.popleft())
        finally:
            self._busy = False

    def behind(self, name: str) -> tuple[Feed, int] | None:
        """The feed and the place that a publisher on this loop must wait for; None for no wait.

        Later publications of others don't count, so that no publisher keeps another waiting.
        """
        self.pull()
        channel = self.channels.get(name)
        if channel is None:
            return None
        for feed in channel.feeds.values():
            if feed.log.size >= self._turn_bytes or (feed.queued and self._waiting >= MAX_WAITING):
                return feed, feed.log.end
        return None

    async def reach(self) -> None:
        """Wait, on another loop, until this loop's inbox has room for more publications."""
        mark = self._taken + len(self._inbox) - INBOX_SIZE
        # Polling: an event would have to be set from this loop's thread at each delivery.
        while self._taken < mark and not self.loop.is_closed():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def catch_up(self, connection: Connection) -> None:
        """Write to one connection what was published to it, before something else is sent to it.

        So a handler that publishes and then sends has both arrive in that order, without waiting
        until all other members have been written to. It is one write per channel that has
        publications, however many there are.
        """
        if not (self._inbox or self._behind):
            return
        self.pull()
        self._catch_up(connection)

    def _catch_up(self, connection: Connection) -> None:
        for member in tuple(connection.members.values()):
            row = member.row
            if row is not None and row.feed.queued:
                self.delivered += row.catch_up(member)

    def paced(self, connection: Connection) -> None:
        """Use the connection's new `writer` for its publications from now on."""
        for member in connection.members.values():
            if member.row is not None:
                member.row.writes[member.index] = connection.writer

    # A turn's work

    def _turn(self) -> None:
        """Write to as many members as one turn allows; schedule the next turn for the others."""
        self._scheduled = False
        self.pull()
        self._turns += 1
        served: list[Feed] = []
        # Of the channels that are behind, as many as there are new deliveries get a row.
        rooms = min(self._taken - self._served, len(self._behind))
        self._served = self._taken
        written = 0
        while self._behind and (written < TURN_WRITES or (rooms > 0 and written < MOST_WRITES)):
            rooms -= 1
            feed = self._behind.popleft()
            row = feed.next_row()
            if row is None:
                self._trim(feed)
                feed.queued = False
                continue
            if row.turn == self._turns:
                # All its rows had their turn: sockets need time to take that first.
                feed.rows.rotate(1)
                served.append(feed)
                continue
            row.turn = self._turns
            self._behind.append(feed)  # after one row the other feeds come first
            self._busy = True
            try:
                self.delivered += row.write(self._turn_bytes)
            finally:
                self._busy = False
            written += len(row.members)
            if feed.log.size >= self._turn_bytes // 4:
                self._trim(feed)
        self._behind.extend(served)
        if (self._behind or self._inbox) and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _trim(self, feed: Feed) -> None:
        self._waiting -= feed.trim()

    def _take(self, item: Shared | Lost) -> None:
        if isinstance(item, Lost):
            self._lose(item)
        elif (channel := self.channels.get(item.delivery.channel)) is not None:
            for feed in tuple(channel.feeds.values()):
                self._append(feed, item)
            for member in tuple(channel.joining):
                self._offer(member, item)

    def _append(self, feed: Feed, shared: Shared) -> None:
        """Append a delivery to a feed's log, and schedule turns for its rows."""
        if skipped := _skipped(feed, shared.delivery):
            # It gets now what came before, and is ahead of its row afterwards.
            row, member = skipped
            self.delivered += row.catch_up(member)
        try:
            frame = shared.frame(feed.encoder)
            if frame is None:
                return
            self._waiting += feed.log.append(frame)
        except Exception:
            members = [member for row in feed.rows for member in row.members]
            self._give_up(members, shared.delivery)
            return
        if skipped:
            row.ahead[member] = feed.log.end
        if not feed.queued:
            feed.queued = True
            self._behind.append(feed)

    def _give_up(self, members: list[Member], delivery: Delivery) -> None:
        """Close members whose frame can't be made: after the gap nothing may be written."""
        logger.exception("A delivery of channel %r could not be encoded", delivery.channel)
        for member in members:
            member.connection.close(1011, "a publication could not be encoded")

    def _offer(self, member: Member, shared: Shared) -> None:
        """Let the subscription of a joining member decide about a delivery."""
        joining, delivery = member.joining, shared.delivery
        assert joining is not None, "it is among those who join"
        if not isinstance(delivery, Publication) or not delivery.offset:
            # What has no offset can't be part of an answer.
            if joining.state is State.LIVE:
                self._write_held(member, [delivery])
        elif joining.take(delivery):
            self._write_held(member, [delivery])
            self._stand(member)

    def _write_held(self, member: Member, deliveries: Sequence[Delivery]) -> None:
        """Write to one member alone; close it where a frame can't be made."""
        connection, made = member.connection, []
        for delivery in deliveries:
            if _spared(delivery) is connection:
                continue
            try:
                frame = member.encoder(delivery)
                if frame is not None:
                    frame.wire(connection.window_bits or 0)
                    made.append(frame)
            except Exception:
                self._give_up([member], delivery)
                return
        if made:
            self.delivered += len(made)
            write_each((connection.writer,), joined(made, connection.window_bits))

    # Rows

    def _stand(self, member: Member) -> None:
        """Put a member into a row: from now on it gets its publications from the log."""
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
        """Tell the members of a channel that they missed something."""
        channel = self.channels.get(lost.channel)
        if channel is None:
            return
        rows = [row for feed in channel.feeds.values() for row in feed.rows]
        for member in [member for row in rows for member in row.members]:
            if member.on_lost is not None:
                self.catch_up(member.connection)
                if not self._tell_lost(member, member.on_lost, lost.position):
                    self._take_out(channel, member)
        for member in tuple(channel.joining):
            joining = member.joining
            assert joining is not None, "it is among those who join"
            if (
                joining.lose(lost.position)
                and member.on_lost is not None
                and not self._tell_lost(member, member.on_lost, lost.position)
            ):
                del channel.joining[member]
                member.joining = None

    def _tell_lost(self, member: Member, on_lost: OnLost, position: Position) -> bool:
        """Tell one member that it missed something.

        Returns:
            Whether it goes on after the gap. If not, nothing more is written to it until it
            subscribes again.
        """
        try:
            frames = on_lost(member.channel, position)
        except Exception:
            logger.exception("on_lost() failed for channel %r", member.channel)
            return False
        if frames is None:
            return False
        joining, connection = member.joining, member.connection
        if joining is not None and joining.state is State.ANSWERED:
            joining.answer_anew(position)
        else:
            write_each((connection.writer,), joined(frames, connection.window_bits))
        return True


def _spared(delivery: Delivery) -> Connection | None:
    """The connection of this process that a delivery is not for. Most are for all."""
    skip = delivery.skip if isinstance(delivery, Publication) else ""
    return connection_of(skip) if skip else None


def _skipped(feed: Feed, delivery: Delivery) -> tuple[Row, Member] | None:
    """The member of a feed that a delivery is not for, with its row, if there is one."""
    connection = _spared(delivery)
    member: Member | None = connection.members.get(delivery.channel) if connection else None
    row = member.row if member is not None else None
    return (row, member) if member and row and row.feed is feed else None


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
