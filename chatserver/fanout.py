"""The fan-out of one event loop: its members by channel, written to without waiting for any.

What is published is put into the inbox, by whatever thread; the first in a turn of the event
loop schedules `_drain`. That joins what was published in a channel since the last turn, and hands
the bytes to each member in one write. So members are only ever touched by their own loop's
thread, light load pays no delay, and under load the batches grow by themselves.

Every member gets its channels' publications in the order in which they were published.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from chatserver.connection import MESSAGE_OVERHEAD, Connection, Format
from chatserver.limits import Limits
from chatserver.publication import Encoder, Frame, Position, Publication, payload_size

__all__ = ["Fanout", "Member", "Shared", "running_loop"]

T = TypeVar("T")

logger = logging.getLogger("chatserver")

#: Bytes handed to one loop's members at most before its writers get a turn.
TURN_BYTES = 256 * 1024
#: Members written to before others get a turn.
TURN_WRITES = 1000
#: Publications waiting for another thread's loop beyond which publishers are held back.
INBOX_SIZE = 1024


class Shared:
    """A publication on its way to many: encoded once per wire format, when first needed."""

    __slots__ = ("_frames", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self._frames: dict[Encoder, Frame | None] = {}

    def frame(self, encoder: Encoder) -> Frame | None:
        """The publication in a wire format; None when its encoder failed, which is logged."""
        # Should two loops come here at the same time, either one's frame will do.
        if encoder not in self._frames:
            self._frames[encoder] = self._encode(encoder)
        return self._frames[encoder]

    def _encode(self, encoder: Encoder) -> Frame | None:
        try:
            return encoder(self.publication)
        except Exception:
            logger.exception(
                "The publication at offset %d of channel %r could not be encoded",
                self.publication.offset,
                self.publication.channel,
            )
            return None


class Group(NamedTuple):
    """Members of a channel who get the same bytes, and whose sockets take them."""

    format: Format
    connections: tuple[Connection, ...]
    writes: tuple[Callable[[bytes], None], ...]


class Plan(NamedTuple):
    """How a channel's members are written to, until one joins, leaves, or changes its pace.

    Attributes:
        groups: Those to whom the joined bytes can be handed.
        others: Those who are written to frame by frame: still subscribing, full, or on a
            server that is not ours.
        exclusive: Whether nobody among them is in another channel, too.
    """

    groups: tuple[Group, ...]
    others: tuple[Connection, ...]
    exclusive: bool


class Member:
    """A connection's place in a channel.

    Attributes:
        live: Whether every publication is simply written.
        held: What was published while the connection was still subscribing.
        present: Whether it was entered into the channel's presence.
    """

    __slots__ = ("_after", "held", "live", "present")

    def __init__(self) -> None:
        self.live = False
        self.held: list[Publication] = []
        self.present = False
        self._after: Position | None = None

    def go_live(self, after: Position) -> None:
        """Hold back no longer; what comes up to `after` the client has had already."""
        self._after = after
        self.held = []

    def admits(self, publication: Publication) -> bool:
        """Whether a publication is to be written, for a member that is not live yet."""
        if self._after is None:
            self.held.append(publication)
        else:
            known = publication.epoch == self._after.epoch
            self.live = not (known and publication.offset <= self._after.offset)
        return self.live


class Fanout:
    """The members of all channels that live on one event loop.

    Only `deliver`, `mark` and `behind` may be called on another thread than that loop's.

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
        self._work: Iterator[int] | None = None
        self._working = 0
        self._taken = 0
        self._scheduled = False

    def add(self, connection: Connection) -> None:
        """Count a connection, and be told of its pace."""
        self.connections.add(connection)
        connection.on_pace = self._replan

    def remove(self, connection: Connection) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        connection.on_pace = None

    def join(self, channel: str, connection: Connection) -> Member:
        """Put a connection into a channel; what is published is held until it is live."""
        member = Member()
        self.members.setdefault(channel, {})[connection] = member
        connection.channels.add(channel)
        self._replan(connection)
        return member

    def leave(self, channel: str, connection: Connection) -> Member | None:
        """Take a connection out of a channel; None when it isn't in it."""
        member = self.members.get(channel, {}).pop(connection, None)
        if member is not None:
            self._replan(connection)
            connection.channels.discard(channel)
            if not self.members[channel]:
                del self.members[channel]
        return member

    @property
    def subscriptions(self) -> int:
        """Pairs of a connection and its channel, now."""
        return sum(len(members) for members in self.members.values())

    def mark(self, here: asyncio.AbstractEventLoop) -> int:
        """How far this must have come before a publisher on the loop `here` publishes on.

        What others publish later doesn't count, so that none can keep another waiting.
        """
        slack = 0 if self.loop is here else INBOX_SIZE
        return self._taken + self._working + len(self._inbox) - slack

    def behind(self, mark: int) -> bool:
        """Whether this has not come to a `mark` yet."""
        return self._taken < mark and not self.loop.is_closed()

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
            self._work = self._write_batches(self._take())
        written = 0
        for writes in self._work:
            written += writes
            if written >= TURN_WRITES:
                break
        else:
            self._work = None
            self._taken += self._working
            self._working = 0
        if (self._work is not None or self._inbox) and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._drain)

    def _take(self) -> list[tuple[str, list[Shared]]]:
        """What was published, joined by channel as far as no member sees another order."""
        batches: list[tuple[str, list[Shared]]] = []
        latest: dict[str, list[Shared]] = {}
        budget = self._turn_bytes
        while self._inbox and budget > 0:
            shared = self._inbox.popleft()
            self._working += 1
            budget -= payload_size(shared.publication.data) + MESSAGE_OVERHEAD
            channel = shared.publication.channel
            batch = latest.get(channel)
            if batch is not None and (batch is batches[-1][1] or self._plan(channel).exclusive):
                batch.append(shared)
            else:
                latest[channel] = batch = [shared]
                batches.append((channel, batch))
        return batches

    def _write_batches(self, batches: list[tuple[str, list[Shared]]]) -> Iterator[int]:
        """Write, and say from time to time to how many members."""
        for channel, batch in batches:
            plan = self._plan(channel)
            for some in _slices(plan.others):
                yield self._write_singly(channel, batch, some)
            for group in plan.groups:
                yield from self._write_group(channel, batch, plan, group)

    def _write_group(
        self, channel: str, batch: list[Shared], plan: Plan, group: Group
    ) -> Iterator[int]:
        joined = _join(batch, group.format)
        start = 0
        for writes in _slices(group.writes):
            connections = group.connections[start : start + len(writes)]
            start += len(writes)
            if joined is None:
                yield self._write_singly(channel, batch, connections)
                continue
            if self._plans.get(channel) is not plan:
                # Somebody joined, left or fell behind since the plan was made.
                writes = self._still_fast(channel, batch, connections)
            _write_each(writes, joined)
            self.delivered += len(batch) * len(writes)
            yield len(connections)

    def _still_fast(
        self, channel: str, batch: list[Shared], connections: Sequence[Connection]
    ) -> tuple[Callable[[bytes], None], ...]:
        """Sort out again who can be handed the joined bytes; the others are written to."""
        writes: list[Callable[[bytes], None]] = []
        for connection in connections:
            member = self.members.get(channel, {}).get(connection)
            write = connection.fast if member is not None and member.live else None
            if write is None:
                self._write_singly(channel, batch, (connection,))
            else:
                writes.append(write)
        return tuple(writes)

    def _write_singly(
        self, channel: str, batch: list[Shared], connections: Sequence[Connection]
    ) -> int:
        """Write frame by frame to those who are still in the channel."""
        for connection in connections:
            for shared in batch:
                member = self.members.get(channel, {}).get(connection)
                if member is not None and self._admits(member, connection, shared):
                    self._write_frame(connection, shared)
        return len(connections) * len(batch)

    def _admits(self, member: Member, connection: Connection, shared: Shared) -> bool:
        if member.live:
            return True
        if member.admits(shared.publication):
            self._replan(connection)
        return member.live

    def _write_frame(self, connection: Connection, shared: Shared) -> None:
        frame = shared.frame(connection.encoder)
        if frame is None:
            connection.close(1011, "a publication could not be encoded")
        else:
            connection.write(frame)
            self.delivered += 1

    # The plans

    def _plan(self, channel: str) -> Plan:
        plan = self._plans.get(channel)
        if plan is None:
            plan = _make_plan(self.members.get(channel, {}))
            if channel in self.members:
                self._plans[channel] = plan
        return plan

    def _replan(self, connection: Connection) -> None:
        """Forget how the channels of a connection are written to."""
        for channel in connection.channels:
            self._plans.pop(channel, None)


def _make_plan(members: dict[Connection, Member]) -> Plan:
    others: list[Connection] = []
    groups: dict[Format, tuple[list[Connection], list[Callable[[bytes], None]]]] = {}
    exclusive = True
    for connection, member in members.items():
        exclusive = exclusive and len(connection.channels) == 1
        write = connection.fast if member.live else None
        if write is None:
            others.append(connection)
        else:
            connections, writes = groups.setdefault(connection.format, ([], []))
            connections.append(connection)
            writes.append(write)
    made = (Group(key, tuple(who), tuple(how)) for key, (who, how) in groups.items())
    return Plan(tuple(made), tuple(others), exclusive)


def _slices(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(items), TURN_WRITES):
        yield items[start : start + TURN_WRITES]


def _join(batch: list[Shared], format: Format) -> bytes | None:
    """The bytes of a batch; None when one of its publications can't be encoded."""
    encoder, window_bits = format
    frames = [shared.frame(encoder) for shared in batch]
    wires = [frame.wire(window_bits) for frame in frames if frame is not None]
    return b"".join(wires) if len(wires) == len(batch) else None


def _write_each(writes: Sequence[Callable[[bytes], None]], data: bytes) -> None:
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
