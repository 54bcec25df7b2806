"""The fan-out of one event loop: its members by channel, written to without waiting for any.

What is published is put into the inbox, by whatever thread; the first in a turn of the event
loop schedules `_drain`, which writes to the members. So members are only ever touched by their
own loop's thread, and however much is published, the writers below get their turn in between.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress

from chatserver.connection import MESSAGE_OVERHEAD, Connection, Limits
from chatserver.publication import Encoder, Frame, Position, Publication

__all__ = ["Fanout", "Member", "Shared", "running_loop"]

logger = logging.getLogger("chatserver")

#: Bytes handed to one loop's members at most before its writers get a turn.
TURN_BYTES = 256 * 1024
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
        self._inbox: deque[Shared] = deque()
        self._taken = 0
        self._scheduled = False

    def join(self, channel: str, connection: Connection) -> Member:
        """Put a connection into a channel; what is published is held until it is live."""
        member = Member()
        self.members.setdefault(channel, {})[connection] = member
        connection.channels.add(channel)
        return member

    def leave(self, channel: str, connection: Connection) -> Member | None:
        """Take a connection out of a channel; None when it isn't in it."""
        member = self.members.get(channel, {}).pop(connection, None)
        if member is not None:
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
        return self._taken + len(self._inbox) - slack

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

    def _drain(self) -> None:
        self._scheduled = False
        budget = self._turn_bytes
        while self._inbox and budget > 0:
            shared = self._inbox.popleft()
            self._taken += 1
            budget -= self._write_all(shared)
        if self._inbox and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._drain)

    def _write_all(self, shared: Shared) -> int:
        """Write one publication to its members; returns what it takes of a buffer."""
        size = 0
        for connection, member in self.members.get(shared.publication.channel, {}).items():
            if member.live or member.admits(shared.publication):
                frame = shared.frame(connection.encoder)
                if frame is None:
                    connection.close(1011, "a publication could not be encoded")
                    continue
                connection.write(frame)
                size = max(size, frame.size)
                self.delivered += 1
        return size + MESSAGE_OVERHEAD


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if it runs one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
