"""Closes an HTTP connection whose client may still be sending.

RFC 9112, section 9.6: If a server performs an immediate close of a TCP connection, there is a
significant risk that the client will not be able to read the last HTTP response. [...] To avoid the
TCP reset problem, servers typically close a connection in stages.
"""

import asyncio
from typing import Any

__all__ = ["QUIET", "LingeringTransport"]

#: Seconds without a byte from the client after which it is taken to have read everything.
QUIET = 0.5


class LingeringTransport:
    """A transport whose `close` begins with the first of these stages, for any uvicorn protocol.

    It ends the sending side, and drops what still arrives until the client ends the
    connection, is quiet, or `timeout` is over.

    Args:
        transport: The event loop's transport.
        timeout: Seconds for the client to end the connection.
    """

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self.transport = transport
        self._timeout = timeout
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self.transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more will be sent."""
        return self._closing or self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless `close` was called."""
        if not self._closing:
            self.transport.write(data)

    def close(self) -> None:
        """Send what was written before, and nothing more."""
        if self.is_closing():
            return
        self._closing = True
        transport = self.transport
        if not transport.can_write_eof():
            transport.close()
            return
        transport.set_protocol(_Drain(transport, self._timeout))
        transport.resume_reading()
        try:
            transport.write_eof()
        except OSError:  # the client has closed the connection already
            transport.abort()


class _Drain(asyncio.Protocol):
    """Replaces a protocol that has closed, until the connection ends."""

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._transport = transport
        self._closed: Any = transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout
        self._quiet = True
        self._timer = self._loop.call_later(min(QUIET, timeout), self._check)

    def data_received(self, data: bytes) -> None:
        self._quiet = False

    def pause_writing(self) -> None:
        self._closed.pause_writing()

    def resume_writing(self) -> None:
        self._closed.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._closed.connection_lost(exc)

    def _check(self) -> None:
        now = self._loop.time()
        if self._transport.get_write_buffer_size():
            # The time begins when the response is sent. For a client that doesn't take it there
            # are other deadlines.
            self._deadline = now + self._timeout
        elif self._quiet or now >= self._deadline:
            self._transport.abort()
            return
        self._quiet = True
        self._timer = self._loop.call_later(min(QUIET, self._deadline - now), self._check)
