"""The fan-out of one event loop: its members by channel, written to without waiting for any.

What is published is put into the inbox, by whatever thread; the first in a turn of the event
loop schedules `_drain`. That joins what was published in a channel since the last turn, and hands
the bytes to each member in one write. So members are only ever touched by their own loop's
thread, light load pays no delay, and under load the batches grow by themselves.

Every member gets its channels' publications in the order in which they were published.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from chatserver.connection import NO_CHANNELS, Connection
from chatserver.fanout.batch import Batch, Shared, join
from chatserver.fanout.member import Member, Plan, Write, make_plan
from chatserver.limits import Limits
from chatserver.publication import Publication

__all__ = ["Fanout", "running_loop"]

T = TypeVar("T")

logger = logging.getLogger("chatserver")

#: Bytes handed to one member at most before its writer gets a turn. When as many wait in a
#: channel, its publishers are held back.
TURN_BYTES = 256 * 1024
#: Bytes that may wait in all channels together before every publisher is held back.
MAX_WAITING = 16 * TURN_BYTES
#: Members written to before others get a turn.
TURN_WRITES = 1000
#: Publications waiting for another thread's loop beyond which publishers are held back.
INBOX_SIZE = 1024


class Fanout:
    """The members of all channels that live on one event loop.

    Publications are numbered as they come: up to `_taken` all are written, `_pending` holds the
    next ones, of which those in `_batches` are being written, and `_inbox` what other threads, or
    this one, have put there since.

    Only `deliver`, `mark` and `reach` may be called on another thread than that loop's.

    Args:
        loop: The event loop.
        limits: Those of its connections. What is written in one turn is but a part of what
            a connection can buffer, so that nobody is slow who was not given a turn to send.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits | None = None) -> None:
        self.loop = loop
        self._turn_bytes = min(TURN_BYTES, max((limits or Limits()).max_buffer // 4, 1))
        self.connections: set[Connection] = set()
        self.members: dict[str, dict[Connection, Member]] = {}
        self.delivered = 0
        self._plans: dict[str, Plan] = {}
        self._inbox: deque[Shared] = deque()
        self._pending: list[Shared] = []
        # Bytes of these, by channel and in all.
        self._sizes: Counter[str] = Counter()
        self._size = 0
        self._batches: list[Batch] = []
        self._working = 0
        self._work: Iterator[int] | None = None
        self._taken = 0
        # Publishers who wait, with what for; in the order of that.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        # Members who were written to before their turn, up to which number.
        self._ahead: dict[Connection, int] = {}
        self._scheduled = False
        # Bound once: they would take 64 bytes each of every connection.
        self._hooks = (self._replan, self.catch_up)
        self._alone: dict[str, frozenset[str]] = {}

    def add(self, connection: Connection) -> None:
        """Count a connection, be told of its pace, and keep what it is sent in order."""
        self.connections.add(connection)
        connection.on_pace, connection.before_send = self._hooks

    def remove(self, connection: Connection) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        self._ahead.pop(connection, None)
        connection.on_pace = None
        connection.before_send = None

    def join(self, channel: str, connection: Connection) -> Member:
        """Put a connection into a channel; what is published is held until it is live."""
        member = Member()
        self.members.setdefault(channel, {})[connection] = member
        if connection.channels:
            connection.channels |= {channel}
        else:
            # One set for all who are in this channel only.
            connection.channels = self._alone.setdefault(channel, frozenset({channel}))
        self._replan(connection)
        return member

    def held(self, channel: str, connection: Connection) -> list[Publication]:
        """What was published since a connection joined, though it may still wait for its turn."""
        self._pull()
        member = self.members[channel][connection]
        missed = self._missed(connection)
        return [*(member.held or ()), *(one.publication for who, one in missed if who is member)]

    def leave(self, channel: str, connection: Connection) -> Member | None:
        """Take a connection out of a channel; None when it isn't in it."""
        member = self.members.get(channel, {}).pop(connection, None)
        if member is not None:
            self._replan(connection)
            connection.channels = connection.channels - {channel} or NO_CHANNELS
            if not self.members[channel]:
                del self.members[channel]
                self._alone.pop(channel, None)
        return member

    @property
    def subscriptions(self) -> int:
        """Pairs of a connection and its channel, now."""
        return sum(len(members) for members in self.members.values())

    def mark(self, here: asyncio.AbstractEventLoop, channel: str) -> int:
        """How far this must come before a publisher on the loop `here` publishes on; 0 if it may.

        What others publish later doesn't count, so that none can keep another waiting.
        """
        # Read first: what the loop's own thread takes meanwhile must not count twice.
        taken = self._taken
        if self.loop is here:
            self._pull()
            full = self._sizes[channel] >= self._turn_bytes or self._size >= MAX_WAITING
            return taken + len(self._pending) if full else 0
        waiting = len(self._pending) + len(self._inbox)
        return taken + waiting - INBOX_SIZE if waiting > INBOX_SIZE else 0

    async def reach(self, mark: int) -> None:
        """Wait until this has come to a `mark`; on any loop."""
        if running_loop() is not self.loop:
            # An event would have to be set from this loop's thread, and at each delivery.
            while self._taken < mark and not self.loop.is_closed():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        elif self._taken < mark:
            waiter = self.loop.create_future()
            self._waiters.append((mark, waiter))
            await waiter

    def deliver(self, shared: Shared) -> None:
        """Hand over a publication, on any thread, for the next turn of the loop."""
        if self.loop.is_closed():
            # Its connections are closed with it.
            self._inbox.clear()
            return
        self._inbox.append(shared)
        if self._scheduled:
            return
        self._scheduled = True
        if running_loop() is self.loop:
            self.loop.call_soon(self._drain)
        else:
            with suppress(RuntimeError):  # it was closed this moment
                self.loop.call_soon_threadsafe(self._drain)

    # A turn's work

    def _drain(self) -> None:
        """Write to as many members as one turn allows, and come back for the others."""
        self._scheduled = False
        if self._work is None:
            self._take()
            self._work = self._write_batches()
        written = 0
        for writes in self._work:
            written += writes
            if written >= TURN_WRITES:
                break
        else:
            self._finish()
        if (self._pending or self._inbox) and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._drain)

    def _pull(self) -> None:
        """Take over what is in the inbox, which other threads fill."""
        while self._inbox:
            shared = self._inbox.popleft()
            self._sizes[shared.publication.channel] += shared.size
            self._size += shared.size
            self._pending.append(shared)

    def _take(self) -> None:
        """Join what was published by channel, as far as no member sees another order."""
        self._pull()
        latest: dict[str, Batch] = {}
        # What a member may get, by channel; in one for all where it may be in several.
        spent: Counter[str] = Counter()
        for shared in self._pending:
            channel = shared.publication.channel
            exclusive = self._plan(channel).exclusive
            account = channel if exclusive else ""
            if spent[account] >= self._turn_bytes:
                break
            spent[account] += shared.size
            batch = latest.get(channel)
            if batch is None or not (exclusive or batch is self._batches[-1]):
                latest[channel] = batch = Batch(channel)
                self._batches.append(batch)
            batch.append(self._taken + self._working, shared)
            self._working += 1

    def _finish(self) -> None:
        self._work = None
        self._batches = []
        for shared in self._pending[: self._working]:
            channel = shared.publication.channel
            self._size -= shared.size
            self._sizes[channel] -= shared.size
            if not self._sizes[channel]:
                del self._sizes[channel]
        del self._pending[: self._working]
        self._taken += self._working
        self._working = 0
        while self._waiters and self._waiters[0][0] <= self._taken:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._ahead:
            taken = self._taken
            self._ahead = {who: number for who, number in self._ahead.items() if number > taken}

    def _write_batches(self) -> Iterator[int]:
        """Write, and say before each slice how much was written since the last one.

        Others have their turn only where this yields. By then it is noted who has what.
        """
        written = 0
        for batch in self._batches:
            plan = self._plan(batch.channel)
            # A write of the joined bytes to each, or one of each publication.
            for some in _slices(plan.others, max(TURN_WRITES // len(batch.publications), 1)):
                yield written
                self._write_singly(batch, some)
                batch.mark_done(some)
                written = len(some) * len(batch.publications)
            for group in plan.groups:
                joined = join(batch.publications, group.format)
                for start in range(0, len(group.writes), TURN_WRITES):
                    yield written
                    some = group.connections[start : start + TURN_WRITES]
                    writes = group.writes[start : start + TURN_WRITES]
                    self._write_slice(batch, plan, some, writes, joined)
                    if len(group.writes) > TURN_WRITES or len(plan.groups) > 1:
                        batch.mark_done(some)
                    written = len(some)
            batch.finished = True

    def _write_slice(
        self,
        batch: Batch,
        plan: Plan,
        connections: Sequence[Connection],
        writes: Sequence[Write],
        joined: bytes | None,
    ) -> None:
        if joined is None:
            self._write_singly(batch, connections)
        elif self._ahead or self._plans.get(batch.channel) is not plan:
            # Somebody joined, left, fell behind or went ahead since the plan was made.
            self._write_joined(batch, self._still_fast(batch, connections), joined)
        else:
            self._write_joined(batch, writes, joined)

    def _write_joined(self, batch: Batch, writes: Sequence[Write], joined: bytes) -> None:
        _write_each(writes, joined)
        self.delivered += len(batch.publications) * len(writes)

    def _still_fast(self, batch: Batch, connections: Sequence[Connection]) -> list[Write]:
        """Sort out again who can be handed the joined bytes; the others are written to."""
        members = self.members.get(batch.channel, {})
        writes: list[Write] = []
        for connection in connections:
            member = members.get(connection)
            write = connection.fast if member is not None and member.live else None
            if write is None or connection in self._ahead:
                self._write_singly(batch, (connection,))
            else:
                writes.append(write)
        return writes

    def _write_singly(self, batch: Batch, connections: Sequence[Connection]) -> None:
        """Write to each by itself, if it is still in the channel, what it has not had."""
        members = self.members.get(batch.channel, {})
        for connection in connections:
            publications = batch.publications
            if connection in self._ahead:
                publications = batch.since(self._ahead[connection])
            member = members.get(connection)
            if not publications or member is None:
                continue
            try:
                joined = self._joined_or_written(connection, member.live, publications)
                if joined and connection.fast is not None:
                    connection.fast(joined)
            except Exception:
                logger.debug("Writing to a connection failed", exc_info=True)

    def _joined_or_written(self, connection: Connection, live: bool, some: list[Shared]) -> bytes:
        """What to write to a member that is live and takes it; to any other it is written here."""
        if live and connection.fast is not None:
            joined = join(some, connection.format)
            if joined is not None:
                self.delivered += len(some)
                return joined
        for shared in some:
            self._write_frame(connection, shared)
        return b""

    def _write_frame(self, connection: Connection, shared: Shared) -> None:
        member = self.members.get(shared.publication.channel, {}).get(connection)
        if member is None:
            return
        if not member.live:
            if not member.admits(shared.publication):
                return
            self._replan(connection)
        frame = shared.frame(connection.encoder)
        if frame is None:
            connection.before_send = None  # nothing comes behind the gap
            connection.close(1011, "a publication could not be encoded")
        else:
            connection.write(frame)
            self.delivered += 1

    def catch_up(self, connection: Connection) -> bytes:
        """Let one member have what was published up to now, before it is sent something else.

        So whoever publishes and then sends has both arrive in that order, and needs not wait
        until all others have been written to.

        Returns:
            What must be written to it first, by `fast`; the rest is written.
        """
        if not self._inbox and not self._pending:
            return b""
        self._pull()
        missed = self._missed(connection)
        if not missed:
            return b""
        self._ahead[connection] = self._taken + len(self._pending)
        live = all(member.live for member, _ in missed)
        return self._joined_or_written(connection, live, [shared for _, shared in missed])

    def _missed(self, connection: Connection) -> list[tuple[Member, Shared]]:
        """The publications that a connection is still to get, and as what, in order."""
        first = self._ahead.get(connection, self._taken)
        numbers: list[tuple[int, Shared]] = []
        for batch in self._batches:
            if batch.lacks(connection):
                numbers += zip(batch.numbers, batch.publications, strict=True)
        waiting = max(first - self._taken, self._working)
        numbers += enumerate(self._pending[waiting:], self._taken + waiting)
        return [
            (self.members[channel][connection], shared)
            for number, shared in numbers
            if number >= first and (channel := shared.publication.channel) in connection.channels
        ]

    # The plans

    def _plan(self, channel: str) -> Plan:
        plan = self._plans.get(channel)
        if plan is None:
            plan = make_plan(self.members.get(channel, {}))
            if channel in self.members:
                self._plans[channel] = plan
        return plan

    def _replan(self, connection: Connection) -> None:
        """Forget how the channels of a connection are written to."""
        for channel in connection.channels:
            self._plans.pop(channel, None)


def _slices(items: tuple[T, ...], size: int) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _write_each(writes: Sequence[Write], data: bytes) -> None:
    """The hot loop of the whole package. One socket's failure is none of the others' business."""
    rest = iter(writes)
    while True:
        try:
            for write in rest:
                write(data)
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
