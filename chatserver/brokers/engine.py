"""What a broker asks of its engine: the I/O, and nothing else.

An `Engine` is one way to Redis or PostgreSQL on one event loop. `RemoteBroker` has all the rest:
what is retried, when it connects again, who holds a lease. Every question takes a list, because
what is asked within one turn of the event loop goes to the engine together.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from chatserver.brokers.base import Control
from chatserver.errors import BrokerUnavailable
from chatserver.publication import ClientInfo, Delivery, History, Payload, Position
from chatserver.rules import Rules

__all__ = [
    "UNREADABLE",
    "Answers",
    "Draft",
    "Engine",
    "Enter",
    "Heard",
    "Interrupted",
    "Leave",
    "Read",
    "Receive",
    "read_control",
    "write_control",
]

T = TypeVar("T")


class Interrupted(Exception):
    """The way to the engine broke, or the engine can't serve now: the same is asked again."""


#: The answers to a list of questions, in their order. `Interrupted`: it is asked again, because it
#: is not certain that it was done. `BrokerUnavailable`: it can't be done; the sentence says why.
Answers: TypeAlias = Sequence[T | Interrupted | BrokerUnavailable]
#: What reading raises if it was something else. KeyError: a field is missing. RecursionError: it is
#: nested too deeply. msgspec's errors are ValueErrors since 0.20 only.
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    KeyError,
    RecursionError,
    msgspec.MsgspecError,
)
#: What an engine hears from other processes, or from this one.
Heard: TypeAlias = Delivery | Control
#: Takes what was heard, in order; an engine reads on when it has returned.
Receive: TypeAlias = Callable[[Sequence[Heard]], Awaitable[None]]


class Draft(Struct, frozen=True, gc=False):
    """A publication that has no position yet.

    Attributes:
        channel: The channel's name.
        data: What to publish.
        id: Its identifier; a second one with the same id in the channel changes nothing.
        id_ttl: Seconds for which the id is remembered.
        rules: What is kept of the channel; None if the publisher doesn't know: as before.
        info: The publisher.
        keep: If False, it is only announced, with offset 0.
        skip: The client that does not get it.
    """

    channel: str
    data: Payload
    id: str
    id_ttl: float
    rules: Rules | None = None
    info: ClientInfo | None = None
    keep: bool = True
    skip: str = ""


class Read(Struct, frozen=True, gc=False):
    """A question for a part of a channel's history; see `Broker.history`.

    Attributes:
        ttl: Seconds after which a publication is no part of the history any more.
    """

    channel: str
    ttl: float
    since: Position | None = None
    limit: int | None = None
    reverse: bool = False


class Enter(Struct, frozen=True, gc=False):
    """A client enters a channel's presence; if it is in there already, its entry is replaced.

    Attributes:
        channel: The channel's name.
        info: The client.
        process: The process that holds the entry by its lease.
        announce: Whether a `Joined` is announced if the client was not present.
        last_will: Published if the process's lease expires.
    """

    channel: str
    info: ClientInfo
    process: str
    announce: bool = False
    last_will: Payload | None = None


class Leave(Struct, frozen=True, gc=False):
    """A client leaves a channel's presence; if it is not in there, nothing happens.

    Attributes:
        channel: The channel's name.
        client: The client's identifier.
        rules: The channel's rules: whether a `Left` is announced, and what is kept of its will.
        dead: Whether its last will is published, once for each client.
        process: If not empty, only an entry that this process holds is removed.
    """

    channel: str
    client: str
    rules: Rules
    dead: bool = False
    process: str = ""


class Engine(ABC):
    """A way to an engine, on the event loop that connects it.

    Each method may raise `Interrupted`, for all that was asked. After that, or when `listen`
    has ended, the broker calls `close`, and then `connect` again.

    Attributes:
        address: Where the engine is, for a person: without a password.
        at_once: How many lists of one kind may be on the way at once; they must be carried out
            in the order in which they were given.
        most: Questions in one list at most.
    """

    address: str
    at_once: int = 1
    most: int = 512

    @abstractmethod
    async def connect(self) -> None:
        """Connect, and prepare what is needed: scripts, a schema.

        Raises:
            Interrupted: It can't be reached, or can't serve yet; the message says why.
            BrokerUnavailable: It can't be used as it is: a wrong password, a version too old, a
                read-only copy, a missing right. One sentence says which, and what to do.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give up every connection, without waiting for the other side.

        Calls that are waiting raise `Interrupted`.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return when every connection has answered."""

    @abstractmethod
    async def listen(self, receive: Receive) -> None:
        """Give `receive` what is announced in followed channels, and control messages.

        It runs until the connection is lost, and then raises `Interrupted`. What can't be
        read (foreign bytes) is dropped with a line in the log.
        """

    @abstractmethod
    async def follow(self, channels: Mapping[str, Rules]) -> Answers[Position]:
        """Hear what is announced in channels from now on; answers with their streams' tops.

        The top is that of a moment after which everything is heard.

        Args:
            channels: The channels, with what is kept of each from now on.
        """

    @abstractmethod
    async def unfollow(self, channels: Collection[str]) -> None:
        """Hear no more of channels."""

    @abstractmethod
    async def tops(self, known: Mapping[str, Position]) -> Answers[Position]:
        """See `Broker.tops`."""

    @abstractmethod
    async def append(self, drafts: Sequence[Draft]) -> Answers[Position]:
        """Append publications to their streams and announce them, each in one atomic step."""

    @abstractmethod
    async def read(self, reads: Sequence[Read]) -> Answers[History]:
        """Read from histories."""

    @abstractmethod
    async def tell(self, controls: Sequence[Control]) -> Answers[None]:
        """Announce control messages to every process."""

    # Presence

    @abstractmethod
    async def enter_and_leave(self, changes: Sequence[Enter | Leave]) -> Answers[None]:
        """Change presence, in this order."""

    @abstractmethod
    async def present(self, channels: Sequence[str]) -> Answers[dict[str, ClientInfo]]:
        """Who is in channels: the entries of processes whose lease has not expired."""

    @abstractmethod
    async def renew(self, process: str, ttl: float, *, new: bool) -> bool:
        """Hold a process's lease for `ttl` seconds from now on.

        Args:
            process: The process.
            ttl: In seconds.
            new: Whether the lease begins now.

        Returns:
            Whether the process holds it; False if it is not `new` and was taken or forgotten.
        """

    @abstractmethod
    async def expired(self, ttl: float) -> Sequence[str]:
        """Take the leases that have expired, for `ttl` seconds, and name their processes.

        One caller gets each. If it ends before it has called `end`, another one gets it later.
        """

    @abstractmethod
    async def entries(self, process: str, limit: int) -> Sequence[tuple[str, str]]:
        """Channel and client of at most `limit` entries that a process holds."""

    @abstractmethod
    async def end(self, process: str) -> None:
        """End a process's lease: it is forgotten, or, if entries are left, expires now."""

    async def tidy(self) -> None:
        """Delete some of what is not needed any more; called every now and then."""
        return  # nothing, where the engine does so by itself


_control_decoder: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


def write_control(control: Control) -> bytes:
    """A control message as JSON."""
    return msgspec.json.encode(control)


def read_control(data: bytes | str) -> Control:
    """Read what `write_control` has made.

    Raises:
        ValueError: It is something else.
    """
    return _control_decoder.decode(data)
