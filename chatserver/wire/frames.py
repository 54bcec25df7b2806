"""Outgoing WebSocket frames (RFC 6455, section 5), without I/O and without an event loop.

    Frame("hi").wire()       a message as the bytes that every client gets
    close_frame(1000)        the control frames that a server sends

`parser` reads the frames of clients, and shares the constants of this module.
"""

from struct import Struct
from typing import Any

from chatserver.errors import close_reason
from chatserver.wire.deflate import MIN_SIZE, deflate

__all__ = [
    "PING",
    "Frame",
    "close_frame",
    "encode",
    "pong_frame",
]

# Section 5.2: the first byte is FIN, three reserved bits and the opcode.
FIN, RSV1 = 0x80, 0x40
CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
CLOSE_OPCODE, PING_OPCODE, PONG_OPCODE = 0x8, 0x9, 0xA
# The second one is MASK and the length, or a value that says where the length is.
TWO_BYTES, EIGHT_BYTES = 126, 127

_SHORT, _MEDIUM, _LONG = Struct("!BB"), Struct("!BBH"), Struct("!BBQ")
_CODE = Struct("!H")

#: The ping for every client. A ping without payload is answered by a pong without payload.
PING = b"\x89\x00"


class Frame:
    """One encoded message to clients, made once and shared by all that get it.

    Args:
        data: Text or bytes.

    Attributes:
        size: Bytes of its payload, uncompressed.

    Raises:
        UnicodeEncodeError: For text with lone surrogates, which UTF-8 can't carry.
    """

    __slots__ = ("_data", "_message", "_wires", "size")

    def __init__(self, data: str | bytes) -> None:
        self._data = data
        payload = data.encode() if isinstance(data, str) and not data.isascii() else data
        self.size: int = len(payload)
        self._message: dict[str, Any] | None = None
        self._wires: dict[int, bytes] = {}

    @property
    def message(self) -> dict[str, Any]:
        """The ASGI event that sends it; not to be changed."""
        if self._message is None:
            key = "text" if isinstance(self._data, str) else "bytes"
            self._message = {"type": "websocket.send", key: self._data}
        return self._message

    def wire(self, window_bits: int = 0) -> bytes:
        """The bytes of the frame.

        Args:
            window_bits: The client's window for compressed messages, 9 to 15; 0 without
                compression.
        """
        wire = self._wires.get(window_bits)
        if wire is None:
            wire = self._wires[window_bits] = encode(self._data, window_bits)
        return wire


def encode(data: str | bytes, window_bits: int = 0) -> bytes:
    """The bytes of a message's frame; arguments and errors as for `Frame`."""
    opcode, payload = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, data)
    if window_bits and len(payload) >= MIN_SIZE:
        deflated = deflate(payload, window_bits)
        if len(deflated) < len(payload):
            return _frame(opcode | RSV1, deflated)
    return _frame(opcode, payload)


def _frame(opcode: int, payload: bytes) -> bytes:
    """One frame with FIN set and no mask, as a server sends (section 5.1)."""
    size = len(payload)
    if size < TWO_BYTES:
        return _SHORT.pack(FIN | opcode, size) + payload
    if size < 1 << 16:
        return _MEDIUM.pack(FIN | opcode, TWO_BYTES, size) + payload
    return _LONG.pack(FIN | opcode, EIGHT_BYTES, size) + payload


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping (section 5.5.3)."""
    return _frame(PONG_OPCODE, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame (section 5.5.1): empty for 1005, which stands for the absence of a code."""
    payload = b"" if code == 1005 else _CODE.pack(code) + close_reason(reason).encode()
    return _frame(CLOSE_OPCODE, payload)
