"""The fan-out of one event loop: its members by channel, written to without waiting for any.

What is published is put into the inbox, by whatever thread; the first in a turn of the event
loop schedules `_drain`, which writes to the members. So members are only ever touched by their
own loop's thread, and however much is published, the writers below get their turn in between.
"""

import asyncio
from collections import deque

from chatserver.connection import Connection
from chatserver.publication import Encoder, Frame, Position, Publication

__all__ = ["Fanout", "Member", "Shared", "running_loop"]

#: Bytes handed to one loop's members before its writers get a turn.
TURN_BYTES = 256 * 1024
#: Publications waiting for another thread's loop beyond which publishers are held back.
INBOX_SIZE = 1024


class Shared:
    """A publication on its way to many: encoded once per wire format, when first needed."""

    __slots__ = ("_frames", "publication")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self._frames: dict[Encoder, Frame] = {}

    def frame(self, encoder: Encoder) -> Frame:
        frame = self._frames.get(encoder)
        if frame is None:
            frame = self._frames[encoder] = encoder(self.publication)
        return frame


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

    Only `deliver` may be called on another thread than that loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.connections: set[Connection] = set()
        self.members: dict[str, dict[Connection, Member]] = {}
        self.delivered = 0
        self._inbox: deque[Shared] = deque()
        self._scheduled = False

    def join(self, channel: str, connection: Connection) -> Member:
        member = Member()
        self.members.setdefault(channel, {})[connection] = member
        connection.channels.add(channel)
        return member

    def leave(self, channel: str, connection: Connection) -> Member | None:
        member = self.members.get(channel, {}).pop(connection, None)
        if member is not None:
            connection.channels.discard(channel)
            if not self.members[channel]:
                del self.members[channel]
        return member

    @property
    def subscriptions(self) -> int:
        return sum(len(members) for members in self.members.values())

    def behind(self, here: asyncio.AbstractEventLoop) -> bool:
        """Whether a publisher on the loop `here` should wait for this one."""
        return len(self._inbox) > (0 if self.loop is here else INBOX_SIZE)

    def deliver(self, shared: Shared) -> None:
        self._inbox.append(shared)
        if self._scheduled:
            return
        self._scheduled = True
        if running_loop() is self.loop:
            self.loop.call_soon(self._drain)
            return
        try:
            self.loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            # That loop was closed, and its connections with it.
            self._inbox.clear()

    def _drain(self) -> None:
        self._scheduled = False
        budget = TURN_BYTES
        while self._inbox and budget > 0:
            budget -= self._write_all(self._inbox.popleft())
        if self._inbox and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._drain)

    def _write_all(self, shared: Shared) -> int:
        """Write one publication to its members; returns the size of the largest frame."""
        size = 1
        for connection, member in self.members.get(shared.publication.channel, {}).items():
            if member.live or member.admits(shared.publication):
                frame = shared.frame(connection.encoder)
                connection.write(frame)
                size = max(size, frame.size)
                self.delivered += 1
        return size


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
