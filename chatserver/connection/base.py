"""What every connection is to the hub and to the endpoint, whatever the server below.

A place to `write` what was published to, which never waits, and which says by `on_gone` when it
has ended, also because its buffer was full. The end is decided once: `close_code` is set by
whoever is first, and stays.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from secrets import token_hex
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from chatserver.limits import Limits
from chatserver.publication import Frame

__all__ = ["MESSAGE_OVERHEAD", "NO_MEMBERS", "Connection", "Source", "Wire", "Write"]

#: Bytes for which a waiting message counts besides its payload, so that empty ones count too.
MESSAGE_OVERHEAD = 64

#: One for all connections that are in no channel yet, never changed: an empty dict takes 64 bytes.
NO_MEMBERS: Final[dict[str, Any]] = {}

#: Publications as a connection takes them: the bytes of their frames where `window_bits` is a
#: number, else the frames themselves.
Wire: TypeAlias = bytes | tuple[Frame, ...]
Write: TypeAlias = Callable[[Any], None]

_process = token_hex(8)
_number = count(1)


class Source(Protocol):
    """Where publications come from: the fan-out of the connection's event loop."""

    def paced(self, connection: "Connection") -> None:
        """Called when `connection.writer` has changed."""

    def catch_up(self, connection: "Connection") -> None:
        """Write to the connection all that was published to it before now."""


class Connection(ABC):
    """A client's socket with its bounded outgoing buffer.

    Belongs to one event loop; nothing here may be called from another thread.

    Args:
        limits: What the client may take.

    Attributes:
        limits: What the client may take.
        members: Its places in the channels, by channel; kept by the hub.
        source: Told of its pace, and asked for what was published before it is sent something
            by itself; set by the hub.
        accepted: Whether the handshake was completed.
        close_code: Why it ended, as in the table of close codes; None while it is open.
        slow: Whether it ended as a slow consumer.
        user: Whose it is, as the hub was told; empty where nobody asked.
        on_gone: Called once, with the close code, when it has ended for whatever reason.
        window_bits: What form of a publication it takes: the bytes of a frame, compressed for a
            window of so many bits, or plain for 0; with None it takes `Frame`s.
    """

    __slots__ = (
        "_id",
        "accepted",
        "close_code",
        "limits",
        "members",
        "on_gone",
        "slow",
        "source",
        "user",
    )

    #: Whether the server cancels the application's task as it likes, more than once or by the
    #: scopes of anyio, as Starlette's TestClient does.
    cancelled_at_will: ClassVar[bool] = True

    window_bits: int | None

    def __init__(self, limits: Limits) -> None:
        self._id = ""
        self.limits: Limits = limits
        self.members: dict[str, Any] = NO_MEMBERS
        self.source: Source | None = None
        self.accepted: bool = False
        self.close_code: int | None = None
        self.slow: bool = False
        self.user: str = ""
        self.on_gone: Callable[[int], None] | None = None

    def __repr__(self) -> str:
        state = "open" if self.close_code is None else f"closed {self.close_code}"
        return f"<{type(self).__name__} {self.id} {state}>"

    @property
    def id(self) -> str:
        """Names the connection among all processes."""
        # Made when it is first asked for, which most connections are not.
        self._id = self._id or f"{_process}{next(_number):x}"
        return self._id

    @property
    @abstractmethod
    def writer(self) -> Write:
        """What takes publications now: `write`, or something quicker while the socket has room."""

    @property
    @abstractmethod
    def unhandled(self) -> int:
        """How many messages were received that the application has not taken yet."""

    @abstractmethod
    def start(self) -> None:
        """Begin to listen; from here on the end of the connection is noticed."""

    @abstractmethod
    async def push(self, frame: Frame) -> None:
        """Send a frame in its turn, and wait until the server has taken it.

        What was published to the connection before goes first. To a client that is gone nothing
        is sent, and that is no error.
        """

    @abstractmethod
    def write(self, wire: Any) -> None:
        """Append publications, as a `Wire`, to the outgoing buffer. Never waits.

        When they don't fit, the client is a slow consumer: what it has not been sent is
        discarded, it is closed with 1013, and its socket is aborted when it doesn't take that
        in time either.
        """

    @abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, behind what is already on its way out. Never waits.

        What was received and not handled is discarded.

        Args:
            code: The close code; 1011 takes the place of one that can't be sent.
            reason: Why, in words; cut to what a close frame can hold.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop the socket and what is in it, as far as the server lets us."""

    @abstractmethod
    async def departure(self) -> None:
        """Wait until the server has noticed the end of a connection that was denied."""

    @abstractmethod
    async def finish(self) -> None:
        """Let the connection go: whatever it still has to write is written, or aborted in time."""

    def catch_up(self) -> None:
        """Write all that was published to the connection before now, ahead of its turn."""
        if self.source is not None:
            self.source.catch_up(self)

    def _gone(self, code: int) -> None:
        """Note the end, the first time, and tell whoever asked to be told."""
        if self.close_code is not None:
            return
        self.close_code = code
        self._paced()
        if self.on_gone is not None:
            self.on_gone(code)

    def _paced(self) -> None:
        if self.source is not None:
            self.source.paced(self)

    def _check_accepted(self) -> None:
        if not self.accepted:
            raise RuntimeError("nothing can be sent before the connection is accepted")
