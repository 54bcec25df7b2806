"""Compression of messages by permessage-deflate (RFC 7692), without context takeover.

No message refers to an earlier one, so a message is compressed once for all clients, and one
compressor serves the whole process. There is no I/O.
"""

import threading
import zlib
from functools import cache
from typing import TYPE_CHECKING

from chatserver.errors import InvalidFrame

if TYPE_CHECKING:
    from zlib import _Compress

__all__ = ["MIN_SIZE", "Inflater", "deflate"]

#: Messages with fewer bytes are not compressed.
MIN_SIZE = 256
#: The end of a flush: removed after compressing, and added before inflating (7.2.1, 7.2.2).
TAIL = b"\x00\x00\xff\xff"
#: Bytes that are inflated at once. After each last block zlib copies the rest of them, and a
#: message may consist of such blocks: all at once would take time that grows by the square.
STEP = 1024

#: Blocks in one message that may be marked as the last. No client needs more than one, but a
#: message of many would take a hundred times as long to inflate as another of its size.
MAX_ENDS = 16

_lock = threading.Lock()


@cache
def _compressor(window_bits: int) -> "_Compress":
    return zlib.compressobj(wbits=-window_bits)


def deflate(payload: bytes, window_bits: int) -> bytes:
    """Compress a message so that it can be inflated alone (RFC 7692, section 7.2.1).

    Args:
        payload: The message.
        window_bits: The client's window, 9 to 15.
    """
    with _lock:  # all threads share the compressor
        compressor = _compressor(window_bits)
        data = compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH)
    return data[: -len(TAIL)]


class Inflater:
    """Inflates one message, a piece at a time, and never to more than a limit.

    Args:
        limit: Bytes that the message may have.
    """

    __slots__ = ("_ends", "_inflate", "_room")

    def __init__(self, limit: int) -> None:
        self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._room = limit
        self._ends = 0

    def feed(self, data: bytes) -> bytes:
        """Inflate the next piece (RFC 7692, section 7.2.2).

        Raises:
            InvalidFrame: The message is larger than the limit (1009), or can't be inflated
                (1007).
        """
        pieces = []
        for start in range(0, len(data), STEP):
            step = data[start : start + STEP]
            while step:
                pieces.append(self._inflate_step(step))
                step = self._rest()
        return b"".join(pieces)

    def end(self) -> bytes:
        """Inflate the end of the message; returns the last bytes."""
        return self.feed(TAIL)

    def _inflate_step(self, data: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(data, self._room + 1)
        except zlib.error:
            raise InvalidFrame("the message can't be inflated", code=1007) from None
        self._room -= len(piece)
        if self._room < 0:
            raise InvalidFrame("the message is too big once inflated", code=1009)
        return piece

    def _rest(self) -> bytes:
        """The bytes after a block that was marked as the last one (section 7.2.3.4)."""
        if not self._inflate.eof:
            return b""
        self._ends += 1
        if self._ends > MAX_ENDS:
            raise InvalidFrame("message with too many last blocks", code=1008)
        rest = self._inflate.unused_data
        self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        return rest
