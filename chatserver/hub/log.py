"""Publications that members of a channel still lack, in one wire format.

They are stored in order, as bytes where the members take bytes. A place is a number of
publications: `begin` is the place of the first publication in the log, `end` the place after the
last. So what a row of members lacks is one slice, however many publications that is, and rows at
the same place share the slice.
"""

from bisect import bisect_right
from collections.abc import Sequence

from chatserver.connection import MESSAGE_OVERHEAD, Wire
from chatserver.publication import Frame

__all__ = ["Log", "joined"]


class Log:
    """The frames of one channel in one wire format, from what the slowest row lacks on.

    Args:
        window_bits: As in `Connection`: bytes of frames for a number, frames for None.

    Attributes:
        begin: The place of the first publication in the log.
        end: The place after the last one.
    """

    __slots__ = ("_ends", "_frames", "_slices", "_wire", "begin", "end", "window_bits")

    def __init__(self, window_bits: int | None) -> None:
        self.window_bits: int | None = window_bits
        self.begin: int = 0
        self.end: int = 0
        self._frames: list[Frame] = []  # all frames, where the members take frames
        self._wire = bytearray()  # all frames, where the members take bytes
        # The running total of bytes at the end of each publication; the first entry is the total
        # at the beginning of the first one.
        self._ends: list[int] = [0]
        self._slices: dict[tuple[int, int], Wire] = {}

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return self._ends[-1] - self._ends[0]

    def append(self, frame: Frame) -> int:
        """Append a publication.

        Returns:
            The bytes that it counts for.

        Raises:
            Exception: Whatever compression raises; then nothing is appended.
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
        """The place that `most` bytes from a place reach: at least one publication further."""
        ends, index = self._ends, place - self.begin
        if ends[-1] - ends[index] <= most:
            return self.end
        return max(self.begin + bisect_right(ends, ends[index] + most) - 1, place + 1)

    def slice(self, place: int, until: int) -> Wire:
        """The publications between two places, in the form that the members take."""
        wire = self._slices.get((place, until))
        if wire is None:
            wire = self._slices[place, until] = self._cut(place - self.begin, until - self.begin)
        return wire

    def trim(self, place: int) -> int:
        """Drop the publications before a place.

        Returns:
            The bytes that they counted for.
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
    """Frames in the form that a connection takes."""
    if window_bits is None:
        return tuple(frames)
    return b"".join([frame.wire(window_bits) for frame in frames])
