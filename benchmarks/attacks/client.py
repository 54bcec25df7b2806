"""An attacker's client: a connection that does only what it is told.

It neither reads ahead nor answers pings, which a library would do by itself. Frames are those of
the tests' client, `tests/raw.py`.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

from tests.raw import CLOSE, FIN, PING, PONG, REQUEST, TEXT, frame

__all__ = ["MOST_STUFFED", "Frame", "Peer", "split"]

READ = 1 << 18  # bytes
FULL = 0.3  # seconds without progress from which a socket counts as full
MOST_STUFFED = 1000  # messages after which a server that still takes them gets no more


class Frame(NamedTuple):
    """A whole frame from the server."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int:
        """The code of a close frame; 1005 if it has none."""
        return int.from_bytes(self.payload[:2]) if self.payload else 1005


def split(data: bytearray) -> list[Frame]:
    """Remove the whole frames from the front; the beginning of the next one may be left."""
    found, at = [], 0
    while len(data) >= at + 2:
        size, start = data[at + 1] & 0x7F, at + 2
        if size > 125:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start])
        if len(data) < start + size:
            break
        found.append(Frame(data[at] & 0x0F, bytes(data[start : start + size])))
        at = start + size
    del data[:at]
    return found


class Peer:
    """A TCP connection to a server on this machine; a context that closes it at its end.

    Args:
        buffer: Unread bytes that the kernel may hold for it; with 0 the kernel decides.
        source: The address of the client: any of 127.0.0.0/8.

    Attributes:
        head: Status line and headers of the response to its request.
    """

    def __init__(self, *, buffer: int = 0, source: str = "127.0.0.1") -> None:
        self.head = ""
        self._data = bytearray()
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.bind((source, 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def connect(self, port: int) -> None:
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", port))

    async def join(self, port: int, path: str, headers: str = "") -> int:
        """Connect, send the handshake, and return the status of the response."""
        await self.connect(port)
        await self.send(REQUEST.format(path=path, headers=headers).encode())
        return await self.answer()

    async def answer(self) -> int:
        """The status of the response to a request; `head` has the rest."""
        while b"\r\n\r\n" not in self._data:
            await self._receive()
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data[:] = rest
        self.head = head.decode("latin-1")
        return int(self.head.split()[1])

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def say(self, text: str) -> None:
        await self.send(frame(FIN | TEXT, text.encode()))

    async def stuff(self) -> None:
        """Send messages, without reading, until the server takes no more."""
        message = frame(FIN | TEXT, b"x" * 60_000)
        with suppress(TimeoutError):
            for _ in range(MOST_STUFFED):
                async with asyncio.timeout(FULL):
                    await self.send(message)

    async def frames(self) -> list[Frame]:
        """The frames that have come, at least one.

        Raises:
            EOFError: The server has ended the connection; an `OSError` means the same.
        """
        while not (found := split(self._data)):
            await self._receive()
        return found

    async def obey(self) -> list[Frame]:
        """The same for a correct client: it answers pings and a close.

        Raises:
            EOFError: As above.
        """
        found = await self.frames()
        for each in found:
            if each.opcode == PING:
                await self.send(frame(FIN | PONG, each.payload))
            elif each.opcode == CLOSE:
                with suppress(OSError):
                    await self.send(frame(FIN | CLOSE, each.payload[:2]))
        return found

    async def hear(self, text: str) -> None:
        """Return when this text has come.

        Raises:
            EOFError: The connection is ended before, or closed.
        """
        while True:
            for opcode, payload in await self.obey():
                if opcode == TEXT and payload == text.encode():
                    return
                if opcode == CLOSE:
                    raise EOFError

    async def end(self) -> int:
        """The code with which the server closes; 1006 if it only drops the connection."""
        with suppress(EOFError, OSError):
            while True:
                for each in await self.frames():
                    if each.opcode == CLOSE:
                        return each.code
        return 1006

    async def gone(self) -> None:
        """Return when the server has ended the connection; ignore what it sends before."""
        with suppress(EOFError, OSError):
            while True:
                await self._receive()
                self._data.clear()

    async def leave(self) -> None:
        """Close correctly."""
        with suppress(OSError):
            await self.send(frame(FIN | CLOSE, b"\x03\xe8"))
        await self.end()
        self.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Reset the connection, as a machine that was switched off and on does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    @asynccontextmanager
    async def dripping(self, data: bytes, every: float = 1.0) -> AsyncIterator[None]:
        """While the context is open, send this again and again; nothing if it is empty."""

        async def drip() -> None:
            with suppress(OSError):
                while data:
                    await asyncio.sleep(every)
                    await self.send(data)

        task = asyncio.create_task(drip())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._socket, READ)
        if not data:
            raise EOFError
        self._data += data
