"""The members of a channel, in rows that are written to together.

    Channel     the members of one channel, by the form in which they take publications
    Feed        the members with the same form: their rows, and the log of what they lack
    Row         up to a hundred of them, and up to which place of the log they were written
    Member      one connection in one channel

All of it belongs to one event loop, whose `Fanout` gives the rows their turns.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from chatserver.connection import Connection, Write
from chatserver.hub.log import Log
from chatserver.hub.subscription import Subscribed, Subscription
from chatserver.publication import ClientInfo, Encoder, Frame, Position

__all__ = [
    "ROW_MEMBERS",
    "Answer",
    "Channel",
    "Feed",
    "Member",
    "OnLeft",
    "OnLost",
    "Row",
    "write_each",
]

logger: logging.Logger = logging.getLogger("chatserver")

#: Members in a row at most.
ROW_MEMBERS = 100

#: Makes the frames that answer a subscription.
Answer: TypeAlias = Callable[[Subscribed], Sequence[Frame]]
#: Called with a channel and the position after which it goes on when a member missed something.
#: Makes the frames that tell the client, which goes on after them; None if it is to wait.
OnLost: TypeAlias = Callable[[str, Position], Sequence[Frame] | None]
#: Called with a channel when a member has left it.
OnLeft: TypeAlias = Callable[[str], None]
#: The form of a publication: its encoder, and the window for compressed messages.
Format: TypeAlias = tuple[Encoder, int | None]


class Member:
    """A connection in a channel.

    Args:
        connection: The connection.
        channel: The channel's name.
        encoder: Encodes a delivery for the connection.
        most: Bytes that are held for it while it joins.

    Attributes:
        joining: Decides what is written to it until it is in a row; None from then on.
        row: Its row; None while it joins.
        index: Its index in the row.
        info: Its entry in the channel's presence; None without one.
        answer: Makes the frames that are written before everything else.
        on_lost: Called when it has missed something; if None, it goes on after the gap.
        on_left: Called when it has left; None where nobody wants to know.
    """

    __slots__ = (
        *("answer", "channel", "connection", "encoder", "index", "info", "joining", "on_left"),
        *("on_lost", "row"),
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
        self.on_left: OnLeft | None = None


class Row:
    """Members that are written to together.

    Attributes:
        place: Up to which place of the feed's log all of them were written.
        ahead: The members that were written further than that, and up to which place.
        turn: The number of the turn that wrote to the row last.
    """

    __slots__ = ("ahead", "feed", "members", "place", "turn", "writes")

    def __init__(self, feed: "Feed") -> None:
        self.feed: Feed = feed
        self.place: int = feed.log.end
        self.members: list[Member] = []
        self.writes: list[Write] = []  # the members' writers, in the same order
        self.ahead: dict[Member, int] = {}
        self.turn: int = 0

    def add(self, member: Member) -> None:
        """Add a member, which gets what comes after the log's end."""
        member.row, member.index = self, len(self.members)
        self.members.append(member)
        self.writes.append(member.connection.writer)
        if self.place < self.feed.log.end:
            self.ahead[member] = self.feed.log.end

    def remove(self, member: Member) -> None:
        """Remove a member; the last one takes its index."""
        last, write = self.members.pop(), self.writes.pop()
        if last is not member:
            self.members[member.index], self.writes[member.index] = last, write
            last.index = member.index
        self.ahead.pop(member, None)
        member.row = None

    def write(self, most: int) -> int:
        """Write to each member what it lacks, `most` bytes at most.

        Returns:
            How many publications were written, summed over the members.
        """
        log, place = self.feed.log, self.place
        self.place = until = log.until(place, most)
        if self.ahead:
            return self._write_apart(place, until)
        write_each(tuple(self.writes), log.slice(place, until))
        return (until - place) * len(self.writes)

    def _write_apart(self, place: int, until: int) -> int:
        """The same when some members are ahead."""
        log, ahead = self.feed.log, self.ahead
        pairs = zip(self.members, self.writes, strict=True)
        together = tuple(write for member, write in pairs if member not in ahead)
        behind = [(member, start) for member, start in ahead.items() if start < until]
        self.ahead = {member: start for member, start in ahead.items() if start > until}
        write_each(together, log.slice(place, until))
        for member, start in behind:
            write_each((self.writes[member.index],), log.slice(start, until))
        written = (until - place) * len(together)
        return written + sum(until - start for _, start in behind)

    def catch_up(self, member: Member) -> int:
        """Write to one member everything that it lacks, before its row's turn.

        Returns:
            How many publications that was.
        """
        log = self.feed.log
        place = self.ahead.get(member, self.place)
        if place == log.end:
            return 0
        # Set before the write, because the write may end the connection, which calls `catch_up`.
        self.ahead[member] = log.end
        write_each((self.writes[member.index],), log.slice(place, log.end))
        return log.end - place


class Feed:
    """The members of a channel that take publications in the same form.

    Attributes:
        log: The publications that some of them still lack.
        rows: Their rows; the one that was written to longest ago comes first.
        queued: Whether a turn will serve the feed.
    """

    __slots__ = ("_waiters", "encoder", "log", "queued", "roomy", "rows")

    def __init__(self, encoder: Encoder, window_bits: int | None) -> None:
        self.encoder: Encoder = encoder
        self.log: Log = Log(window_bits)
        self.rows: deque[Row] = deque()
        self.roomy: dict[Row, None] = {}  # rows with room, those that have had it longest first
        self.queued: bool = False
        # Publishers that wait, with the place up to which all must have been written.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def add(self, member: Member) -> None:
        """Add a member to a row with room."""
        row = next(iter(self.roomy), None)
        if row is None:
            row = Row(self)
            self.rows.append(row)
            self.roomy[row] = None
        row.add(member)
        if len(row.members) >= ROW_MEMBERS:
            del self.roomy[row]

    def remove(self, member: Member) -> None:
        """Remove a member."""
        row = member.row
        assert row is not None, "it stands in a row of this feed"
        row.remove(member)
        if row.members:
            self.roomy[row] = None
        else:
            self.rows.remove(row)
            self.roomy.pop(row, None)

    def next_row(self) -> Row | None:
        """The next row that is behind; None when no row is."""
        for _ in range(len(self.rows)):
            row = self.rows[0]
            self.rows.rotate(-1)
            if row.place < self.log.end:
                return row
        return None

    def trim(self) -> int:
        """Drop what all rows have, and wake the publishers that wait for that.

        Returns:
            The bytes that it counted for.
        """
        place = min((row.place for row in self.rows), default=self.log.end)
        dropped = self.log.trim(place)
        while self._waiters and self._waiters[0][0] <= place:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        return dropped

    async def written(self, place: int) -> None:
        """Wait until all rows were written up to a place."""
        if self.log.begin < place and self.rows:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((place, waiter))
            await waiter


class Channel:
    """The members of one channel on one event loop.

    Attributes:
        feeds: The live members, by the form in which they take publications.
        joining: The members that are not live yet.
        members: How many members there are.
    """

    __slots__ = ("feeds", "joining", "members")

    def __init__(self) -> None:
        self.feeds: dict[Format, Feed] = {}
        self.joining: dict[Member, None] = {}
        self.members: int = 0


def write_each(writes: tuple[Write, ...], wire: Any) -> None:
    """The hot loop of the whole package. A socket that fails doesn't affect the others."""
    rest = iter(writes)
    while True:
        try:
            for write in rest:
                write(wire)
        except Exception:
            logger.debug("A transport's write() failed", exc_info=True)
        else:
            return
