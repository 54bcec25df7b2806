"""For how long a client has taken nothing off its socket."""

__all__ = ["Stall"]


class Stall:
    """Compares what a transport holds for its client with what it held when last looked at."""

    __slots__ = ("_since", "_unsent")

    def __init__(self) -> None:
        self._unsent = 0
        self._since = 0.0

    def seconds(self, unsent: int, now: float) -> float:
        """Seconds since something was taken, as far as was looked; 0 where nothing waits.

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
