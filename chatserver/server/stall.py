"""How long a client has taken nothing off its socket."""

__all__ = ["Stall"]


class Stall:
    """Compares how much a transport holds for its client with the last time it was checked."""

    __slots__ = ("_since", "_unsent")

    def __init__(self) -> None:
        self._unsent = 0
        self._since = 0.0

    def seconds(self, unsent: int, now: float) -> float:
        """Seconds since a check first saw nothing taken; 0 if nothing waits.

        Args:
            unsent: Bytes that the transport holds.
            now: The time in seconds.
        """
        if not unsent or unsent != self._unsent:
            self._unsent, self._since = unsent, now
        return now - self._since

    def end(self) -> None:
        """Note that something was taken, though the transport may hold as much as before."""
        self._unsent = 0
