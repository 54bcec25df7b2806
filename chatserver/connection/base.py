"""What every connection is to the hub and to the endpoint, whatever the server below.

A place to `write` encoded frames to, which never waits, and which says by `on_gone` when it has
ended, also because it was full. The end is decided once: `close_code` is set by whoever is first,
and stays.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from secrets import token_hex
from typing import ClassVar, TypeAlias

from starlette.types import Message

from chatserver.limits import Limits
from chatserver.publication import Encoder, Frame

__all__ = ["MESSAGE_OVERHEAD", "NO_CHANNELS", "Connection", "Format"]

#: Bytes for which a waiting message counts besides its payload, so that empty ones count too.
MESSAGE_OVERHEAD = 64

#: One for all who are in none yet: an empty set takes 216 bytes.
NO_CHANNELS: frozenset[str] = frozenset()

#: What decides a publication's bytes for a client: the encoder, and the window for compressed
#: messages, 9 to 15, or 0 without compression.
Format: TypeAlias = tuple[Encoder, int]


class Connection(ABC):
    """A client's socket with its bounded outgoing buffer.

    Belongs to one event loop; nothing here may be called from another thread.

    Args:
        encoder: Turns a publication into what this client gets.
        limits: What it may take.

    Attributes:
        channels: Those it is in; kept by the hub.
        accepted: Whether the handshake was completed.
        close_code: Why it ended, as in the table of close codes; None while it is open.
        slow: Whether it ended as a slow consumer.
        on_gone: Called once, with the close code, when it has ended for whatever reason.
        on_pace: Called with the connection whenever `fast` has changed.
        before_send: Called with the connection before it is sent something by itself; returns
            the bytes of what was published before, which `fast` has to take first.
    """

    __slots__ = (
        "_id",
        "accepted",
        "before_send",
        "channels",
        "close_code",
        "encoder",
        "limits",
        "on_gone",
        "on_pace",
        "slow",
    )

    #: Whether the server may be one that cancels by anyio's scopes, as Starlette's TestClient.
    in_scopes: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, limits: Limits) -> None:
        self._id = ""
        self.encoder = encoder
        self.limits = limits
        self.channels: AbstractSet[str] = NO_CHANNELS
        self.accepted = False
        self.close_code: int | None = None
        self.slow = False
        self.on_gone: Callable[[int], None] | None = None
        self.on_pace: Callable[[Connection], None] | None = None
        self.before_send: Callable[[Connection], bytes] | None = None

    def __repr__(self) -> str:
        state = "open" if self.close_code is None else f"closed {self.close_code}"
        return f"<{type(self).__name__} {self.id[:8]} {state}>"

    @property
    def id(self) -> str:
        """Names the connection among all processes."""
        # Made when it is first asked for, which most connections are not.
        self._id = self._id or token_hex(16)
        return self._id

    @property
    def format(self) -> Format:
        """What its frames have in common with those of others."""
        return self.encoder, 0

    @property
    def fast(self) -> Callable[[bytes], None] | None:
        """Takes the bytes of frames in place of `write`, as long as the socket takes them too."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Begin to listen; from here on the end of the connection is noticed."""

    @abstractmethod
    def receive(self) -> Awaitable[Message]:
        """The next ASGI event for the application, in order; the last one is the disconnect."""

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send an ASGI event in its turn, and wait until the server has taken it.

        Raises:
            OSError: The client is gone; Starlette makes a `WebSocketDisconnect` of it.
        """

    @abstractmethod
    async def push(self, frame: Frame) -> None:
        """Send a frame in its turn, and wait until the server has taken it.

        To a client that is gone nothing is sent, and that is no error.
        """

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Append a frame to the outgoing buffer. Never waits.

        When the frame doesn't fit, the client is a slow consumer: what it has not been sent
        is discarded, it is closed with 1013, and its socket is aborted when it doesn't take
        that in time either.
        """

    @abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection, behind what is already on its way out. Never waits.

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

    def _gone(self, code: int) -> None:
        """Note the end, the first time, and tell who asked to be told."""
        if self.close_code is not None:
            return
        self.close_code = code
        if self.on_pace is not None:
            self.on_pace(self)
        if self.on_gone is not None:
            self.on_gone(code)

    def _published_before(self) -> bytes:
        return b"" if self.before_send is None else self.before_send(self)

    def _catch_up(self) -> None:
        if (published := self._published_before()) and self.fast is not None:
            self.fast(published)

    def _check_accepted(self) -> None:
        if not self.accepted:
            raise RuntimeError("nothing can be sent before the connection is accepted")
