"""What waits for a client whose transport is full."""

import asyncio
from collections import deque
from typing import NamedTuple

from chatserver.connection import MESSAGE_OVERHEAD
from chatserver.server.stall import Stall

__all__ = ["Backlog", "ClientDisconnected"]


class ClientDisconnected(OSError):
    """The client is gone: ASGI lets `send` raise an OSError then."""


class _Waiting(NamedTuple):
    """Bytes to be sent; their size is 0 if they don't count towards the limit."""

    wire: bytes
    size: int
    written: asyncio.Future[None] | None


class Backlog:
    """Frames that wait in order, from when a transport is full until it has taken them all.

    Attributes:
        size: Bytes in it, and MESSAGE_OVERHEAD for each entry, without the entries that a task
            waits for.
        pong: The payload of the ping to answer when all is taken. Only the latest ping is
            answered, as section 5.5.3 allows, so that unread pongs don't pile up.
        stall: How long the client has taken nothing.
    """

    __slots__ = ("_entries", "pong", "size", "stall")

    def __init__(self) -> None:
        self._entries: deque[_Waiting] = deque()
        self.size: int = 0
        self.pong: bytes | None = None
        self.stall: Stall = Stall()

    def __len__(self) -> int:
        """How many entries wait."""
        return len(self._entries)

    def append(self, wire: bytes) -> None:
        """Queue a frame, or several that are written as one."""
        size = self.size_of(wire)
        self.size += size
        self._entries.append(_Waiting(wire, size, None))

    def append_last(self, wire: bytes) -> None:
        """Queue the close frame, for which there is always room."""
        self._entries.append(_Waiting(wire, 0, None))

    async def wait(self, wire: bytes) -> None:
        """Queue a frame and wait until it is taken; when cancelled, take it out again.

        So it needs no room in the buffer: there is at most one per waiting task.

        Raises:
            ClientDisconnected: The frame was discarded.
        """
        written = asyncio.get_running_loop().create_future()
        waiting = _Waiting(wire, 0, written)
        self._entries.append(waiting)
        try:
            await written
        except asyncio.CancelledError:
            if waiting in self._entries:
                self._entries.remove(waiting)
            raise

    def pop(self) -> bytes:
        """Remove the next entry and return it, for the transport."""
        wire, size, written = self._entries.popleft()
        self.size -= size
        self.stall.end()
        if written is not None and not written.done():
            written.set_result(None)
        return wire

    def discard(self) -> None:
        """Drop all entries; tasks that wait for one learn that the client is gone."""
        for waiting in self._entries:
            if waiting.written is not None and not waiting.written.done():
                waiting.written.set_exception(ClientDisconnected())
        self._entries.clear()
        self.size = 0

    @staticmethod
    def size_of(wire: bytes) -> int:
        """The bytes that an entry counts for."""
        return len(wire) + MESSAGE_OVERHEAD
