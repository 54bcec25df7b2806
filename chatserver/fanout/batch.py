"""What is published, on its way to many: encoded once, and joined where they get the same."""

import logging
from collections.abc import Iterable

from chatserver.connection import MESSAGE_OVERHEAD, Connection, Format
from chatserver.publication import Encoder, Frame, Publication, payload_size

__all__ = ["Batch", "Shared", "join"]

logger = logging.getLogger("chatserver")


class Shared:
    """A publication on its way to many: encoded once per wire format, when first needed.

    Attributes:
        size: Bytes of its payload, and what counts besides for each message.
    """

    __slots__ = ("_frames", "publication", "size")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.size = payload_size(publication.data) + MESSAGE_OVERHEAD
        self._frames: dict[Encoder, Frame | None] = {}

    def frame(self, encoder: Encoder) -> Frame | None:
        """The publication in a wire format; None when its encoder failed, which is logged."""
        # Should two loops come here at the same time, either one's frame will do.
        if encoder not in self._frames:
            self._frames[encoder] = self._encode(encoder)
        return self._frames[encoder]

    def _encode(self, encoder: Encoder) -> Frame | None:
        try:
            return encoder(self.publication)
        except Exception:
            logger.exception(
                "The publication at offset %d of channel %r could not be encoded",
                self.publication.offset,
                self.publication.channel,
            )
            return None


class Batch:
    """Publications of one channel on their way to its members, in one write each.

    Attributes:
        numbers: The number of each, on this loop.
        done: Members who have them, where that takes more than one turn; None where not.
        finished: Whether all have.
    """

    __slots__ = ("channel", "done", "finished", "numbers", "publications")

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.publications: list[Shared] = []
        self.numbers: list[int] = []
        self.done: set[Connection] | None = None
        self.finished = False

    def append(self, number: int, shared: Shared) -> None:
        """Add a publication, and what is counted as its number on this loop."""
        self.numbers.append(number)
        self.publications.append(shared)

    def lacks(self, connection: Connection) -> bool:
        """Whether a member is still to be written to."""
        return not self.finished and (self.done is None or connection not in self.done)

    def mark_done(self, connections: Iterable[Connection]) -> None:
        """Note that these have been written to."""
        self.done = self.done or set()
        self.done.update(connections)

    def since(self, number: int) -> list[Shared]:
        """Those with this number and above."""
        pairs = zip(self.numbers, self.publications, strict=True)
        return [shared for each, shared in pairs if each >= number]


def join(batch: list[Shared], format: Format) -> bytes | None:
    """The bytes of a batch; None when one of its publications can't be encoded."""
    encoder, window_bits = format
    frames = [shared.frame(encoder) for shared in batch]
    wires = [frame.wire(window_bits) for frame in frames if frame is not None]
    return b"".join(wires) if len(wires) == len(batch) else None
