"""Counts connections before they are accepted, and refuses those beyond the limits.

One object per process: the hub has it, and the lifespan passes it to the server.
"""

import threading
from collections import Counter

from chatserver.errors import TooManyConnections
from chatserver.limits import Counts, Limits

__all__ = ["ADMISSION", "Admission"]

#: The key in the lifespan's state under which the server finds it.
ADMISSION = "chatserver.admission"


class Admission:
    """Counts connections by server, address and user, and refuses those beyond the limits.

    Safe to use from every thread.

    Args:
        limits: What clients may take.

    Attributes:
        limits: What clients may take.
        counts: How many clients were refused or closed for going beyond a limit.
        stopping: Whether the server stops, and every client is refused.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits: Limits = limits or Limits()
        self.counts: Counts = Counts()
        self.stopping = False
        self._lock = threading.Lock()
        self._sockets = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def enter(self, address: str) -> tuple[int, str] | None:
        """Count a new WebSocket from an address, empty if the client has none.

        Returns:
            The HTTP status and the reason if it is refused, and so not counted.
        """
        if self.stopping:
            return 503, "The server is restarting."
        limits = self.limits
        with self._lock:
            refusal = None
            if limits.max_connections and self._sockets >= limits.max_connections:
                refusal = 503, "The server has as many connections as it can take. Try again later."
            most = limits.max_address_connections
            if refusal is None and most and address and self._addresses[address] >= most:
                refusal = 429, f"There are {most} connections from your address already."
            if refusal is not None:
                self.counts.refused += 1
                return refusal
            self._sockets += 1
            self._addresses[address] += 1
        return None

    def leave(self, address: str) -> None:
        """Stop counting a WebSocket."""
        with self._lock:
            self._sockets -= 1
            _decrement(self._addresses, address)

    def enter_user(self, user: str) -> None:
        """Count a new connection of a user.

        Raises:
            TooManyConnections: The user has reached the limit in this process.
        """
        most = self.limits.max_user_connections
        with self._lock:
            if most and self._users[user] >= most:
                self.counts.refused += 1
                raise TooManyConnections(f"{most} connections are open already")
            self._users[user] += 1

    def leave_user(self, user: str) -> None:
        """Stop counting a connection of a user."""
        with self._lock:
            _decrement(self._users, user)


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
