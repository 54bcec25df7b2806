"""What the hub and the endpoint know of a connection, whatever the server.

`write` takes publications and never waits; `on_gone` reports the end, also when the buffer was
full. The end is decided once: the first to set `close_code` decides, and it never changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from secrets import token_hex
from typing import Any, ClassVar, Final, Protocol, TypeAlias
from weakref import WeakValueDictionary

from chatserver.limits import Limits
from chatserver.publication import Frame

__all__ = [
    "MESSAGE_OVERHEAD",
    "NO_MEMBERS",
    "Connection",
    "Source",
    "Wire",
    "Write",
    "connection_of",
]

#: Bytes that a waiting message counts for besides its payload, so that empty ones count, too.
MESSAGE_OVERHEAD = 64

#: For all connections in no channel, and never changed: an empty dict takes 64 bytes.
NO_MEMBERS: Final[dict[str, Any]] = {}

#: Publications in the form that a connection takes: the bytes of their frames if `window_bits` is a
#: number, else the frames themselves.
Wire: TypeAlias = bytes | tuple[Frame, ...]
Write: TypeAlias = Callable[[Any], None]

# The connections of this process that were asked for their identifier.
_by_id: "WeakValueDictionary[str, Connection]" = WeakValueDictionary()


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
        members: Its memberships, by channel; set by the hub.
        source: Told when `writer` changes, and called before something else is sent, to write
            earlier publications first; set by the hub.
        accepted: Whether the handshake was completed.
        close_code: Why it ended, as in the table of close codes; None while it is open.
        slow: Whether it ended as a slow consumer.
        user: Its user, as the hub was told; empty if unknown.
        on_gone: Called once, with the close code, when it has ended for whatever reason.
        window_bits: The form of publications that it takes: with a number, the bytes of frames,
            compressed for a window of so many bits, or plain for 0; with None, `Frame`s.
    """

    __slots__ = (
        "__weakref__",
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

    #: Whether the server may cancel the application's task at any time, repeatedly or by anyio
    #: scopes, as Starlette's TestClient does.
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
        """Identifies the connection among all processes."""
        # Made on first use, because most connections never need it; at random, because processes
        # that were forked would count alike.
        if not self._id:
            self._id = token_hex(10)
            _by_id[self._id] = self
        return self._id

    @property
    @abstractmethod
    def writer(self) -> Write:
        """What takes publications now: `write`, or something faster while the socket has room."""

    @property
    @abstractmethod
    def unhandled(self) -> int:
        """How many messages were received that the application has not taken yet."""

    @abstractmethod
    def start(self) -> None:
        """Begin to read; from now on the end of the connection is noticed."""

    @abstractmethod
    async def push(self, frame: Frame) -> None:
        """Send a frame in its turn, and wait until the server has taken it.

        Earlier publications go first. For a client that is gone it does nothing and raises
        nothing.
        """

    @abstractmethod
    def write(self, wire: Any) -> None:
        """Append publications, as a `Wire`, to the outgoing buffer. Never waits.

        When they don't fit, the client is a slow consumer: its buffer is discarded, it is
        closed with 1013, and if it doesn't take that in time either, its socket is aborted.
        """

    @abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection after everything that was sent before. Never waits.

        Messages that were received and not handled are discarded.

        Args:
            code: The close code; one that can't be sent is replaced by 1011.
            reason: Why, in words; cut to what a close frame can hold.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop the socket and what it has not sent, if the server lets us."""

    @abstractmethod
    async def departure(self) -> None:
        """Wait until the server has noticed the end of a connection that was denied."""

    @abstractmethod
    async def finish(self) -> None:
        """Let the connection go: its buffer is still written, or the socket aborted in time."""

    def catch_up(self) -> None:
        """Write all that was published to the connection before now, ahead of its turn."""
        if self.source is not None:
            self.source.catch_up(self)

    def _gone(self, code: int) -> None:
        """Note the end, the first time, and report it to `on_gone`."""
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


def connection_of(id: str) -> Connection | None:
    """The connection of this process with an identifier, if it is still there."""
    return _by_id.get(id)
