"""How fast one client's messages are handled."""

__all__ = ["Rate"]

#: Seconds on end in which a client may send twice what it should.
FLOOD_SECONDS = 5.0


class Rate:
    """What a client may send until the next sweep; then it is renewed.

    Attributes:
        left: Messages.
        held: Whether nothing more is read until then.
    """

    __slots__ = ("_floods", "held", "left")

    def __init__(self, allowance: float) -> None:
        self.left = allowance
        self.held = False
        self._floods = 0

    def hold(self) -> None:
        """Nothing is left: read no more, for now."""
        self.held = True

    def count_flood(self, flooded: bool) -> None:
        """Whether it was used up in less than half of its time, with more behind."""
        self._floods = self._floods + 1 if flooded else 0

    def is_flood(self, interval: float) -> bool:
        """Whether that has been so for too long, with a sweep every so many seconds."""
        return self._floods * interval >= FLOOD_SECONDS

    def renew(self, allowance: float) -> bool:
        """Let it send again.

        Returns:
            Whether it was held.
        """
        held, self.held = self.held, False
        self.left = allowance
        if not held:
            self._floods = 0
        return held
