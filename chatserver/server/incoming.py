"""What a client sends, from bytes to messages, within its limits: no transport, no event loop.

    incoming.feed(data); incoming.next()     one message or control frame at a time

`next` returns None for one of four reasons: more bytes are needed, the client has sent as many
messages as it may for now (`held`) or as many bytes (`wait`), or it broke a rule (`violation`). The
owner calls `check` once per interval: that renews how many messages the client may send, and says
when one of its deadlines has passed.
"""

from collections.abc import Callable
from time import monotonic

from chatserver.errors import InvalidFrame
from chatserver.limits import Counts, Limits
from chatserver.wire import Event, Parser

__all__ = ["FLOOD_SECONDS", "Incoming"]

#: Seconds in a row in which a client may send twice as many messages as its limit.
FLOOD_SECONDS = 5.0
#: Shortest time, in seconds, for which a client that sends too many bytes is not read.
SHORTEST_WAIT = 0.01


class Incoming:
    """What one client sends on an open connection.

    Args:
        limits: What the client may send.
        counts: Counts its floods and its unfinished messages.
        interval: Seconds between two calls of `check`.
        max_size: Bytes in one message, if less than the limit.
        compressed: Whether permessage-deflate was agreed on.
        clock: Returns the time in seconds.

    Attributes:
        violation: The rule that the client broke. Bytes after that are ignored.
        held: Whether no message is returned before the next `check`.
        wait: Seconds for which no message is returned because of too many bytes; 0 for no wait.
    """

    __slots__ = (
        "_allowance",
        "_begun",
        "_broken",
        "_burst",
        "_clock",
        "_counts",
        "_credit",
        "_credited",
        "_floods",
        "_interval",
        "_left",
        "_limits",
        "_parser",
        "_renewed",
        "held",
        "violation",
        "wait",
    )

    def __init__(
        self,
        limits: Limits,
        counts: Counts,
        interval: float,
        *,
        max_size: int | None = None,
        compressed: bool = False,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        size = limits.max_message_size
        size = size if max_size is None else min(size, max_size)
        self._parser = Parser(size, limits.max_fragments, compressed)
        self._limits = limits
        self._counts = counts
        self._interval = interval
        self._clock = clock
        # When the unfinished message began, and when a rule was broken.
        self._begun: float | None = None
        self._broken = 0.0
        # Messages per interval, how many of them are left, and since when that counts.
        rate = limits.max_message_rate
        self._allowance = max(rate * interval, 1) if rate else float("inf")
        self._left = self._allowance
        self._renewed = clock()
        # A token bucket of bytes: how many may be taken at once, and when that was computed. The
        # rate fills it; it is computed anew only when it is empty.
        # With a small buffer more than that, or the shortest wait would be slower than the rate.
        self._burst = max(limits.max_buffer, limits.max_byte_rate * SHORTEST_WAIT * 2)
        self._credit = float(self._burst if limits.max_byte_rate else "inf")
        self._credited = self._renewed
        # Intervals in a row in which the client sent at least twice its limit.
        self._floods = 0
        self.violation: InvalidFrame | None = None
        self.held: bool = False
        self.wait: float = 0.0

    @property
    def paused(self) -> bool:
        """Whether the socket should not be read for now."""
        return self.held or self.wait > 0 or self.violation is not None

    def feed(self, data: bytes) -> None:
        """Append bytes from the client."""
        self._parser.feed(data)

    def next(self) -> Event | None:
        """The next message or control frame; None if there is none that may be taken now."""
        if self.held or self.violation is not None:
            return None
        if self._credit <= 0 and self._must_wait():
            return None
        try:
            if self._left <= 0:
                self._hold()
                return None
            event = self._parser.next()
        except InvalidFrame as error:
            self.violation, self._broken = error, self._clock()
            return None
        if event is None:
            self._note_unfinished()
            return None
        self._left -= 1
        if type(event) is str:
            self._begun = None
            self._credit -= len(event) if event.isascii() else len(event.encode())
        elif type(event) is bytes:
            self._begun = None
            self._credit -= len(event)
        return event

    def check(self, now: float) -> InvalidFrame | None:
        """The error that the client must be closed for now, or None; called once per interval.

        A broken rule is returned one interval later, so that the application can first answer
        what came before it.
        """
        if self.violation is not None:
            return self.violation if now - self._broken >= self._interval else None
        if self._begun is not None and now - self._begun > self._limits.message_timeout:
            self._counts.unfinished += 1
            seconds = self._limits.message_timeout
            return InvalidFrame(f"message not complete within {seconds:g} s", code=1008)
        if not self.held:
            self._floods = 0
        self._left, self._renewed, self.held = self._allowance, now, False
        return None

    def _must_wait(self) -> bool:
        """Whether more bytes were taken than the rate allows by now."""
        now, rate = self._clock(), self._limits.max_byte_rate
        earned = rate * (now - self._credited)
        self._credit = min(self._credit + earned, self._burst)
        self._credited = now
        self.wait = max(-self._credit / rate, SHORTEST_WAIT) if self._credit <= 0 else 0.0
        return self.wait > 0

    def _note_unfinished(self) -> None:
        if not self._parser.unfinished:
            self._begun = None
        elif self._begun is None:
            self._begun = self._clock()

    def _hold(self) -> None:
        """Take no more before the next check.

        Raises:
            InvalidFrame: The client has sent far too much for too long.
        """
        self.held = True
        # A client that took longer, or that sent no more and may be waiting for an answer, is
        # slowed down and never closed.
        quick = self._clock() - self._renewed <= self._interval / 2
        self._floods = self._floods + 1 if quick and self._parser.unfinished else 0
        if self._floods * self._interval >= FLOOD_SECONDS:
            self._counts.floods += 1
            most = self._limits.max_message_rate
            raise InvalidFrame(f"more than {most} messages a second", code=1008)
