"""Who is let in: all that is counted and refused before a connection is accepted.

One object for the process: the hub has it, and the lifespan hands it on to the server at the edge.
"""

import threading
from collections import Counter

from chatserver.errors import TooManyConnections
from chatserver.limits import Counts, Limits

__all__ = ["ADMISSION", "Admission"]

#: Where a lifespan leaves it for the server, in its state.
ADMISSION = "chatserver.admission"


class Admission:
    """Counts connections by server, address and user, and refuses those beyond the limits.

    Safe to use from every thread.

    Args:
        limits: What clients may take.

    Attributes:
        limits: What clients may take.
        counts: How many clients went beyond, and were refused or closed for it.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits: Limits = limits or Limits()
        self.counts: Counts = Counts()
        self._lock = threading.Lock()
        self._sockets = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def enter(self, address: str) -> tuple[int, str] | None:
        """Count one more WebSocket from an address; empty where a client has none.

        Returns:
            The HTTP status and the reason where it is one too many, and not counted.
        """
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
        """Count a WebSocket no more."""
        with self._lock:
            self._sockets -= 1
            _decrement(self._addresses, address)

    def enter_user(self, user: str) -> None:
        """Count one more connection of a user.

        Raises:
            TooManyConnections: The user has as many in this process as the limits allow.
        """
        most = self.limits.max_user_connections
        with self._lock:
            if most and self._users[user] >= most:
                self.counts.refused += 1
                raise TooManyConnections(f"{most} connections are open already")
            self._users[user] += 1

    def leave_user(self, user: str) -> None:
        """Count it no more."""
        with self._lock:
            _decrement(self._users, user)


def _decrement(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
