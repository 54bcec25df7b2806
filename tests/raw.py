"""A client of bare bytes. By itself it sends no pong and no close, and doesn't read ahead."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # the benchmark's attackers use this module where the package isn't installed
    from chatserver.testing import LiveServer

__all__ = [
    *("CLOSE", "CONTINUATION", "FIN", "PING", "PONG", "RSV1", "TEXT"),
    *("Peer", "frame", "keep_little_in_the_kernel"),
]

FIN, RSV1 = 0x80, 0x40
CONTINUATION, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
#: Seconds after which something that should have come is taken for lost.
PATIENCE = 10.0
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
)


def frame(first: int, payload: bytes = b"", *, size: int | None = None) -> bytes:
    """A client's frame; its mask, 00000000, changes nothing (RFC 6455, section 5.3).

    Args:
        first: FIN, reserved bits and opcode.
        payload: What is in it, or of it so far.
        size: What it says to have in it, when that is more.
    """
    size = len(payload) if size is None else size
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + bytes(4) + payload


def keep_little_in_the_kernel(live: "LiveServer") -> None:
    """So that a client which doesn't read is soon felt; connections inherit it."""
    listener = live.server.servers[0].sockets[0]
    with socket.socket(fileno=os.dup(listener.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)


class Peer:
    """A TCP connection to a server on this machine, used as the test likes.

    Args:
        port: The server's.
        path: Where the handshake goes; with None there is none.
        headers: More of them for the handshake, each with its end of line.
        source: The address it comes from: any of 127.0.0.0/8.
        buffer: Unread bytes that the kernel may hold for it; with 0 the kernel decides.

    Attributes:
        socket: The socket.
        status: That of the answer to the handshake.
        head: The answer's status line and headers.
    """

    def __init__(
        self,
        port: int,
        path: str | None = None,
        *,
        headers: str = "",
        source: str = "127.0.0.1",
        buffer: int = 0,
    ) -> None:
        self._received = b""
        self.status = 0
        self.head = ""
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        # Small packets at once, for what goes out a byte at a time.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        if path is not None:
            self.send(REQUEST.format(path=path, headers=headers).encode())
            self.read_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    # What goes out

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def text(self, text: str) -> None:
        self.send(frame(FIN | TEXT, text.encode()))

    def ping(self, payload: bytes = b"") -> None:
        self.send(frame(FIN | PING, payload))

    def leave(self) -> None:
        """Close as one should: by a close frame that is answered, then the socket."""
        self.send(frame(FIN | CLOSE, b"\x03\xe8"))
        self.close_code()
        self.socket.close()

    def drop(self) -> None:
        """End the connection without a close frame."""
        self.socket.close()

    def reset(self) -> None:
        """End it by a reset, as a machine that was switched off and on does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # What comes in

    def read_head(self) -> None:
        """Take the answer to a request, up to the empty line."""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        self.status = int(self.head.split()[1])

    def take(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._received) < size:
            self._receive()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def rest(self) -> bytes:
        """All that comes up to the end, be that orderly or a reset."""
        with suppress(EOFError, ConnectionResetError, BrokenPipeError):
            while True:
                self._receive()
        data, self._received = self._received, b""
        return data

    def next(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload.

        Raises:
            EOFError: The server has ended the connection; a `ConnectionResetError`, so too.
        """
        while (found := _split(self._received)) is None:
            self._receive()
        opcode, payload, self._received = found
        return opcode, payload

    def message(self) -> str:
        """The next text; pings and pongs before it are passed over."""
        while (found := self.next())[0] in (PING, PONG):
            pass
        assert found[0] == TEXT, f"expected a text, but got {found}"
        return found[1].decode()

    def messages(self, number: int) -> Iterator[str]:
        """The next texts."""
        for _ in range(number):
            yield self.message()

    def close_code(self) -> int:
        """The code with which the server closes; what comes before is passed over."""
        while (found := self.next())[0] != CLOSE:
            pass
        return int.from_bytes(found[1][:2])

    def silent(self, seconds: float) -> bool:
        """Whether for so long neither anything comes nor the connection ends."""
        self.socket.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        except (EOFError, OSError):
            pass
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def ended_within(self, seconds: float) -> bool:
        """Whether the server ends the connection in this time, which is written to meanwhile.

        Nothing is read: only a server that has let its socket go answers by a reset.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.send(frame(FIN | PONG))
            except OSError:
                return True
            time.sleep(0.01)
        return False

    def _receive(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError
        self._received += data


def _split(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Opcode, payload and rest; None when the first frame is not all there."""
    if len(data) < 2:
        return None
    size, start = data[1] & 0x7F, 2
    if size > 125:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start])
    if len(data) < start + size:
        return None
    return data[0] & 0x0F, data[start : start + size], data[start + size :]
