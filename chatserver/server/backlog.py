"""What waits for a client whose transport is full."""

import asyncio
from collections import deque
from typing import NamedTuple

from uvicorn.protocols.utils import ClientDisconnected

__all__ = ["Backlog"]

#: Bytes for which a waiting message counts besides its size, so that empty ones count too.
OVERHEAD = 64


class _Waiting(NamedTuple):
    """A frame's bytes; their size is 0 where they don't count."""

    wire: bytes
    size: int
    written: asyncio.Future[None] | None


class Backlog:
    """Frames in their order, from when a transport is full until it has taken them all.

    Attributes:
        size: Bytes in it, and OVERHEAD for each frame, without those that somebody waits for.
        pong: The payload of the ping to answer when all is taken. Only the latest is, as
            section 5.5.3 allows, so that pongs which nobody reads don't pile up.
    """

    __slots__ = ("_frames", "_idle_since", "_unsent", "pong", "size")

    def __init__(self) -> None:
        self._frames: deque[_Waiting] = deque()
        self.size = 0
        self.pong: bytes | None = None
        self._unsent = -1
        self._idle_since = 0.0

    def __len__(self) -> int:
        """How many frames."""
        return len(self._frames)

    def append(self, wire: bytes) -> None:
        """Queue a frame."""
        size = self.size_of(wire)
        self.size += size
        self._frames.append(_Waiting(wire, size, None))

    def append_last(self, wire: bytes) -> None:
        """Queue the close frame, for which there is always room."""
        self._frames.append(_Waiting(wire, 0, None))

    async def wait(self, wire: bytes) -> None:
        """Queue a frame and wait until it is taken; when cancelled, take it out again.

        So it needs no room: there is at most one for each who waits.

        Raises:
            ClientDisconnected: It was discarded.
        """
        written = asyncio.get_running_loop().create_future()
        waiting = _Waiting(wire, 0, written)
        self._frames.append(waiting)
        try:
            await written
        except asyncio.CancelledError:
            if waiting in self._frames:
                self._frames.remove(waiting)
            raise

    def pop(self) -> bytes:
        """The next frame, for the transport."""
        wire, size, written = self._frames.popleft()
        self.size -= size
        self._unsent = -1  # whatever the transport holds from now on, it has taken something
        if written is not None and not written.done():
            written.set_result(None)
        return wire

    def discard(self) -> None:
        """Drop all; whoever waits learns that the client is gone."""
        for waiting in self._frames:
            if waiting.written is not None and not waiting.written.done():
                waiting.written.set_exception(ClientDisconnected())
        self._frames.clear()
        self.size = 0

    def idle(self, unsent: int, now: float) -> float:
        """For how many seconds the client has taken nothing, as far as was looked.

        Args:
            unsent: Bytes that the transport holds.
            now: The event loop's time.
        """
        if unsent != self._unsent:
            self._unsent, self._idle_since = unsent, now
        return now - self._idle_since

    @staticmethod
    def size_of(wire: bytes) -> int:
        """What a frame counts for."""
        return len(wire) + OVERHEAD
