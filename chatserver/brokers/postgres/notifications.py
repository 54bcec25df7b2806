"""Notifications of PostgreSQL that were heard and are not yet handed on."""

import asyncio
from collections import deque

from chatserver.brokers.engine import Interrupted

__all__ = ["Notifications"]

#: Characters that wait, at most.
MOST_WAITING = 64 * 1024 * 1024
#: Notifications that are taken together at most, and their characters, about.
MOST_TAKEN, ENOUGH = 32, 64 * 1024


class Notifications:
    """The texts of notifications, in their order.

    If too many wait, all are dropped: the process is too slow. Then it connects again, and reads
    from the history what it has missed, which many clients share.
    """

    def __init__(self) -> None:
        self._texts: deque[str] = deque()
        self._size = 0
        self._reason = ""
        self._something = asyncio.Event()

    def add(self, text: str) -> None:
        """A notification has come."""
        if self._reason:
            return
        self._texts.append(text)
        self._size += len(text)
        if self._size > MOST_WAITING:
            self._texts.clear()
            self.end("this process takes too long over what is announced")
        self._something.set()

    def end(self, reason: str = "the connection was lost") -> None:
        """Nothing comes any more."""
        self._reason = self._reason or reason
        self._something.set()

    async def take(self) -> list[str]:
        """The oldest notifications; waits for one.

        Raises:
            Interrupted: Nothing comes any more.
        """
        while not self._texts:
            self._something.clear()
            if self._reason:
                raise Interrupted(self._reason)
            await self._something.wait()
        taken: list[str] = []
        size = 0
        while self._texts and len(taken) < MOST_TAKEN and size < ENOUGH:
            taken.append(self._texts.popleft())
            size += len(taken[-1])
        self._size -= size
        return taken
