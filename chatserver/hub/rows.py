"""Where the members of a channel stand: in rows, which are written to together.

    Channel     the members of one channel, by the form in which they take publications
    Feed        those who take the same form: their rows, and the log of what they lack
    Row         some of them, and up to which place of the log they have been written
    Member      one connection's place in one channel

All of it belongs to one event loop, whose `Fanout` lets the rows have their turns.
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

__all__ = ["ROW_MEMBERS", "Answer", "Channel", "Feed", "Member", "OnLost", "Row", "write_each"]

logger = logging.getLogger("chatserver")

#: Members in a row.
ROW_MEMBERS = 100

#: A function that makes the frames by which a subscription is answered.
Answer: TypeAlias = Callable[[Subscribed], Sequence[Frame]]
#: Told that a member missed something, and where the stream goes on.
OnLost: TypeAlias = Callable[[str, Position], None]
#: What decides a publication's form: the encoder, and the window for compressed messages.
Format: TypeAlias = tuple[Encoder, int | None]


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
        answer: Makes the frames that are written before all else.
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
        turn: The number of the turn that wrote to them last.
    """

    __slots__ = ("ahead", "feed", "members", "place", "turn", "writes")

    def __init__(self, feed: "Feed") -> None:
        self.feed: Feed = feed
        self.place: int = feed.log.end
        self.members: list[Member] = []
        self.writes: list[Write] = []  # what takes their publications, in the same order
        self.ahead: dict[Member, int] = {}
        self.turn: int = 0

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
        """Write to one member everything that is there, before its turn.

        Returns:
            How many publications that were.
        """
        log = self.feed.log
        place = self.ahead.get(member, self.place)
        if place == log.end:
            return 0
        # First, for the write may end the connection, and that asks for what came before.
        self.ahead[member] = log.end
        write_each((self.writes[member.index],), log.slice(place, log.end))
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
        self.encoder: Encoder = encoder
        self.log: Log = Log(window_bits)
        self.rows: deque[Row] = deque()
        self.roomy: dict[Row, None] = {}  # rows that are not full, in the order of becoming so
        self.queued: bool = False
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
        self.members: int = 0


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
