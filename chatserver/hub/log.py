"""What the members of a channel are still to get, in one wire format.

Publications stand in it one behind the other, as bytes where the members take bytes. A place is
a number of publications: `begin` is that of the first one in the log, `end` is behind the last. So
what a row of members lacks is one slice, whatever number of publications that is, and rows at
the same place share it.
"""

from bisect import bisect_right
from collections.abc import Sequence

from chatserver.connection import MESSAGE_OVERHEAD, Wire
from chatserver.publication import Frame

__all__ = ["Log", "joined"]


class Log:
    """The frames of one channel in one wire format, from the row furthest behind on.

    Args:
        window_bits: As of a `Connection`: bytes of frames for a number, frames for None.

    Attributes:
        begin: The place of the first publication that is here.
        end: The place behind the last one.
    """

    __slots__ = ("_ends", "_frames", "_slices", "_wire", "begin", "end", "window_bits")

    def __init__(self, window_bits: int | None) -> None:
        self.window_bits: int | None = window_bits
        self.begin: int = 0
        self.end: int = 0
        self._frames: list[Frame] = []  # of all that is here, where the members take frames
        self._wire = bytearray()  # the same, where they take bytes
        # Behind each publication, how many bytes it and those before it have, from one position
        # on that is the first one's beginning.
        self._ends: list[int] = [0]
        self._slices: dict[tuple[int, int], Wire] = {}

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self._ends[-1] - self._ends[0]

    def append(self, frame: Frame) -> int:
        """Put a publication behind the others.

        Returns:
            The bytes for which it counts.

        Raises:
            Exception: Whatever its compression raises; nothing is appended then.
        """
        if self.window_bits is None:
            size = frame.size + MESSAGE_OVERHEAD
            self._frames.append(frame)
        else:
            wire = frame.wire(self.window_bits)
            size = len(wire)
            self._wire += wire
        self._ends.append(self._ends[-1] + size)
        self.end += 1
        self._slices.clear()
        return size

    def until(self, place: int, most: int) -> int:
        """How far one may go from a place with so many bytes: one publication further at least."""
        ends, index = self._ends, place - self.begin
        if ends[-1] - ends[index] <= most:
            return self.end
        return max(self.begin + bisect_right(ends, ends[index] + most) - 1, place + 1)

    def slice(self, place: int, until: int) -> Wire:
        """The publications from one place to another, as the members take them."""
        wire = self._slices.get((place, until))
        if wire is None:
            wire = self._slices[place, until] = self._cut(place - self.begin, until - self.begin)
        return wire

    def trim(self, place: int) -> int:
        """Drop what lies before a place.

        Returns:
            The bytes for which that counted.
        """
        index = place - self.begin
        if not index:
            return 0
        size = self._ends[index] - self._ends[0]
        del self._frames[:index]
        if self.window_bits is not None:
            del self._wire[:size]
        del self._ends[:index]
        self.begin = place
        self._slices.clear()
        return size

    def _cut(self, first: int, last: int) -> Wire:
        if self.window_bits is None:
            return tuple(self._frames[first:last])
        base = self._ends[0]
        with memoryview(self._wire) as wire:
            return bytes(wire[self._ends[first] - base : self._ends[last] - base])


def joined(frames: Sequence[Frame], window_bits: int | None) -> Wire:
    """Some frames as a connection takes them."""
    if window_bits is None:
        return tuple(frames)
    return b"".join([frame.wire(window_bits) for frame in frames])
