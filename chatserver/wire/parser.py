"""Incoming WebSocket frames (RFC 6455, section 5), without I/O and without an event loop.

    parser.feed(data); parser.next()     one message or control frame at a time

The parser is strict and fails early: bytes that break a rule raise `InvalidFrame` as soon as they
are here, with the close code that the RFC asks for. At most one unfinished message is held.
"""

import codecs
from struct import Struct
from typing import NamedTuple, TypeAlias

from chatserver.errors import InvalidFrame, can_be_sent
from chatserver.wire.deflate import Inflater
from chatserver.wire.frames import (
    BINARY,
    CLOSE_OPCODE,
    CONTINUATION,
    FIN,
    PING_OPCODE,
    PONG_OPCODE,
    RSV1,
    TEXT,
    TWO_BYTES,
)

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - there is no compiled one everywhere
    from websockets.utils import apply_mask

__all__ = ["Close", "Event", "Parser", "Ping", "Pong"]

# Section 5.2: the first byte is FIN, three reserved bits and the opcode.
RSV, OPCODE = 0x70, 0x0F
KNOWN = frozenset({CONTINUATION, TEXT, BINARY, CLOSE_OPCODE, PING_OPCODE, PONG_OPCODE})
# The second one is MASK and the length, or a value that says where the length is.
MASK, LENGTH = 0x80, 0x7F
MAX_CONTROL = 125
# RFC 3629, section 4: between these are bytes that no character's UTF-8 begins with.
SURROGATES, AFTER_SURROGATES = b"\xed\xa0", b"\xee"

_CODE = Struct("!H")
_decoder = codecs.getincrementaldecoder("utf-8")


class Close(NamedTuple):
    """The client closes. The code is 1005 if it gave none."""

    code: int
    reason: str


class Ping(NamedTuple):
    """A ping, to be answered by a pong with the same payload."""

    payload: bytes


class Pong(NamedTuple):
    """The answer to a ping, or a sign of life."""

    payload: bytes


#: What a client can send: a text or binary message, or a control frame.
Event: TypeAlias = str | bytes | Close | Ping | Pong


class Parser:
    """Parses the bytes of one client.

    Args:
        max_size: Bytes in one message, inflated; beyond, an `InvalidFrame` with 1009.
        max_fragments: Frames in one message; beyond, 1008.
        compressed: Whether permessage-deflate was agreed on.
    """

    __slots__ = (
        "_buffer",
        "_compressed",
        "_final",
        "_mask",
        "_max_fragments",
        "_max_size",
        "_message",
        "_position",
        "_remaining",
    )

    def __init__(self, max_size: int, max_fragments: int, compressed: bool = False) -> None:
        self._max_size = max_size
        self._max_fragments = max_fragments
        self._compressed = compressed
        self._buffer = b""
        self._position = 0
        self._message: _Message | None = None
        # Of an incomplete data frame: the bytes to come, its mask, its FIN.
        self._remaining = 0
        self._mask = b""
        self._final = False

    @property
    def unfinished(self) -> bool:
        """Whether a message or frame has begun and is not complete."""
        return self._message is not None or self._position < len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append bytes from the client."""
        if self._position < len(self._buffer):
            data = self._buffer[self._position :] + data
        self._buffer = data
        self._position = 0

    def next(self) -> Event | None:
        """The next message or control frame; None when more bytes are needed.

        Raises:
            InvalidFrame: The client broke a rule. No more can be read after that.
        """
        while True:
            if self._remaining:
                if not self._take_payload():
                    return None
            elif not isinstance(event := self._next_frame(), _Begun):
                return event
            if not self._remaining and self._final and (message := self._message) is not None:
                self._message = None
                return message.end()

    def _next_frame(self) -> "Event | _Begun | None":
        """The event of a whole frame; `BEGUN` if only a frame of a message has begun."""
        buffer, start = self._buffer, self._position
        available = len(buffer) - start
        if available < 2:
            if not available:
                self._buffer, self._position = b"", 0
            return None
        first, second = buffer[start], buffer[start + 1]
        opcode, size = first & OPCODE, second & LENGTH
        self._check_header(first, second)
        start += 2
        if size > MAX_CONTROL:
            width = 2 if size == TWO_BYTES else 8
            if available < 2 + width:
                return None
            size = self._long_size(buffer[start : start + width])
            start += width
        if opcode < CLOSE_OPCODE:
            self._check_size(first, size)
        payload = start + 4
        end = payload + size
        whole = end <= len(buffer)
        if payload > len(buffer) or (opcode >= CLOSE_OPCODE and not whole):
            return None
        mask = buffer[start:payload]
        if opcode >= CLOSE_OPCODE:
            self._position = end
            return _control(opcode, apply_mask(buffer[payload:end], mask))
        if whole and self._message is None and first & ~OPCODE == FIN:
            self._position = end
            data = apply_mask(buffer[payload:end], mask)
            return _text(data) if opcode == TEXT else data
        self._position = payload
        self._begin_frame(first, size, mask)
        return BEGUN

    def _check_header(self, first: int, second: int) -> None:
        """Check the first two bytes of a frame (sections 5.1 to 5.5)."""
        opcode = first & OPCODE
        if not second & MASK:
            raise InvalidFrame("a client's frames must be masked")
        if opcode not in KNOWN:
            raise InvalidFrame(f"unknown opcode {opcode}")
        if first & RSV and not self._may_be_reserved(first):
            raise InvalidFrame("a reserved bit is set")
        if opcode >= CLOSE_OPCODE:
            if not first & FIN:
                raise InvalidFrame("a control frame can't be fragmented")
            if second & LENGTH > MAX_CONTROL:
                raise InvalidFrame("a control frame has at most 125 bytes")
        elif opcode == CONTINUATION and self._message is None:
            raise InvalidFrame("a continuation without a message")
        elif opcode != CONTINUATION and self._message is not None:
            raise InvalidFrame("a new message before the end of the last one")

    def _may_be_reserved(self, first: int) -> bool:
        """RFC 7692, section 6: RSV1 marks the first frame of a compressed message."""
        is_first = first & OPCODE in (TEXT, BINARY)
        return self._compressed and is_first and first & RSV == RSV1

    def _long_size(self, data: bytes) -> int:
        """Section 5.2: the length in two or eight bytes, as few as possible."""
        size = int.from_bytes(data)
        if size >> 63:
            raise InvalidFrame("the highest bit of a length must be 0")
        if size < (TWO_BYTES if len(data) == 2 else 1 << 16):
            raise InvalidFrame("a length must be written in as few bytes as possible")
        return size

    def _check_size(self, first: int, size: int) -> None:
        message, limit = self._message, self._max_size
        if first & RSV1 if message is None else message.compressed:
            # Compression may enlarge data: by an eighth if every byte takes nine bits.
            limit += limit // 8 + 1024
        if (0 if message is None else message.received) + size > limit:
            raise InvalidFrame(f"message exceeds the limit of {self._max_size} bytes", code=1009)

    def _begin_frame(self, first: int, size: int, mask: bytes) -> None:
        if self._message is None:
            inflater = Inflater(self._max_size) if first & RSV1 else None
            self._message = _Message(first & OPCODE == TEXT, inflater)
        self._message.fragments += 1
        if self._message.fragments > self._max_fragments:
            raise InvalidFrame(f"message in more than {self._max_fragments} frames", code=1008)
        self._remaining, self._mask, self._final = size, mask, bool(first & FIN)

    def _take_payload(self) -> bool:
        """Append the bytes of its frame to the message; False if more are to come."""
        chunk = self._buffer[self._position : self._position + self._remaining]
        self._position += len(chunk)
        self._remaining -= len(chunk)
        if chunk and self._message is not None:
            self._message.append(apply_mask(chunk, self._mask))
            # The mask goes on where this part ended.
            turn = len(chunk) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        return not self._remaining


class _Begun:
    """Says that a frame has begun which is only a part of its message, or isn't complete."""


BEGUN = _Begun()


class _Message:
    """A message in several parts, each checked when it comes."""

    __slots__ = ("_data", "_inflater", "_utf8", "fragments", "received")

    def __init__(self, is_text: bool, inflater: Inflater | None) -> None:
        self.received = 0
        self.fragments = 0
        self._data = bytearray()
        self._utf8 = _decoder() if is_text else None
        self._inflater = inflater

    @property
    def compressed(self) -> bool:
        return self._inflater is not None

    def append(self, data: bytes) -> None:
        self.received += len(data)
        self._append(data if self._inflater is None else self._inflater.feed(data))

    def end(self) -> str | bytes:
        if self._inflater is not None:
            self._append(self._inflater.end())
        if self._utf8 is None:
            return bytes(self._data)
        self._check(b"", final=True)
        return self._data.decode()

    def _append(self, data: bytes) -> None:
        self._check(data)
        self._data += data

    def _check(self, data: bytes, final: bool = False) -> None:
        """Section 8.1, as early as possible."""
        if self._utf8 is None:
            return
        try:
            self._utf8.decode(data, final)
        except UnicodeDecodeError:
            raise _invalid_text() from None
        # The decoder waits for the third byte of a surrogate, which is invalid at its second.
        if SURROGATES <= self._utf8.getstate()[0] < AFTER_SURROGATES:
            raise _invalid_text()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _invalid_text() from None


def _invalid_text() -> InvalidFrame:
    return InvalidFrame("text must be UTF-8", code=1007)


def _control(opcode: int, payload: bytes) -> Close | Ping | Pong:
    if opcode == PING_OPCODE:
        return Ping(payload)
    if opcode == PONG_OPCODE:
        return Pong(payload)
    if not payload:
        return Close(1005, "")
    if len(payload) == 1:
        raise InvalidFrame("a close code has two bytes")
    code: int = _CODE.unpack_from(payload)[0]
    if not can_be_sent(code):
        raise InvalidFrame(f"{code} can't be a close code")
    return Close(code, _text(payload[2:]))
