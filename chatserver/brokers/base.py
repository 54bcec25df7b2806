"""The broker's contract, and what brokers have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct

from chatserver.publication import ClientInfo, Delivery, History, Payload, Position

__all__ = ["Broker", "Control", "Disconnect", "Health", "Rules", "RulesFor", "Unsubscribe"]


class Rules(Struct, frozen=True, kw_only=True, gc=False):
    """What is kept of a channel.

    Attributes:
        history_size: Publications kept at most; 0 keeps none.
        history_ttl: Seconds for which a publication is kept at most.
        join_leave: Whether subscribers are told who enters and leaves.
    """

    history_size: int = 100
    history_ttl: float = 300.0
    join_leave: bool = False


#: The rules of a channel, by its name. Called often: it answers from memory.
RulesFor: TypeAlias = Callable[[str], Rules]


class Health(Struct, frozen=True):
    """Whether a broker can be relied upon.

    Attributes:
        state: "up", or "down" while publications can't be stored or are not delivered.
        since: Unix time in seconds at which that began.
        why: The reason, for a person; empty where it is up.
    """

    state: Literal["up", "down"]
    since: float
    why: str = ""


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close the connections of a user, or one client's, in every process.

    Attributes:
        user: Whose connections; empty where one client is meant.
        client: Whose connection; empty where a user is meant.
        code: The close code.
        reason: Why, in words.
    """

    user: str = ""
    client: str = ""
    code: int = 1008
    reason: str = ""


class Unsubscribe(Struct, frozen=True, tag="unsubscribe"):
    """Let the connections of a user, or one client's, leave a channel, in every process."""

    channel: str
    user: str = ""
    client: str = ""


#: What processes tell each other.
Control: TypeAlias = Disconnect | Unsubscribe


def _nowhere(*_: object) -> None:
    """Where deliveries go before a hub is attached: nobody is there to get them."""


class Broker(ABC):
    """Carries publications to every process, and keeps each channel's history and presence.

    Delivery: every publication of a subscribed channel is handed to `deliver` in every
    process, the publisher's own included, in the order of its offsets and once.

    Order: a channel has one stream. Its offsets count up by one; its epoch changes when the
    stream was lost and begun anew.

    Atomicity: appending to the stream and announcing it are one step per channel. What was
    acknowledged is stored.

    Continuity: a broker whose engine was away reads what was missed and delivers it in order.
    Where that is impossible it calls `lost`; the hub finds out by itself, too, by the offsets.

    Presence: an entry counts as long as the process that made it holds its lease. One that
    notices an expired lease takes it, removes that process's entries, and publishes each one's
    last will, with the client's identifier as the publication's, so that it comes once.

    The methods may be awaited on any event loop of the process.

    Attributes:
        deliver: Where publications, joins and leaves go. It never blocks, and may be called
            on any thread, as may the other two.
        lost: Called with a channel and the position behind which its deliveries go on.
        control: Where control messages go.
    """

    def __init__(self) -> None:
        self.deliver: Callable[[Delivery], None] = _nowhere
        self.lost: Callable[[str, Position], None] = _nowhere
        self.control: Callable[[Control], None] = _nowhere
        self._attached = False

    def attach(
        self,
        deliver: Callable[[Delivery], None],
        lost: Callable[[str, Position], None],
        control: Callable[[Control], None],
    ) -> None:
        """Set where everything goes; called once, by the hub that uses the broker.

        Raises:
            ValueError: Another hub uses it. That one would get nothing any more.
        """
        if self._attached:
            raise ValueError(
                f"this {type(self).__name__} belongs to another Hub; "
                "give each Hub a broker of its own"
            )
        self._attached = True
        self.deliver, self.lost, self.control = deliver, lost, control

    @abstractmethod
    async def start(self) -> None:
        """Connect to the engine; called when the application starts.

        Raises:
            BrokerUnavailable: It can't be had; one sentence says why, and what to do.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Give up the lease and the connection; called when the application stops."""

    @property
    @abstractmethod
    def health(self) -> Health:
        """Whether it can be relied upon now."""

    @abstractmethod
    async def publish(
        self,
        channel: str,
        data: Payload,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
        keep: bool = True,
        skip: str = "",
    ) -> Position:
        """Append a publication to a channel's stream and announce it.

        Args:
            channel: The channel's name.
            data: What to publish.
            id: Chosen by the publisher. A second publish with the same id within five
                minutes is answered with the first one's position and delivers nothing.
            info: Who publishes.
            keep: If False, it is announced only: it gets no offset, and is not in the history.
            skip: The identifier of a client that does not get it.

        Returns:
            The publication's position; the position of the stream's top if it is not kept.

        Raises:
            BrokerUnavailable: It can't be told for certain that the publication is stored.
        """

    @abstractmethod
    async def subscribe(self, channel: str) -> Position:
        """Begin to deliver a channel; called for this process's first subscriber.

        Returns:
            The top of the stream at a moment after which everything is delivered. What was
            published before may be delivered as well.

        Raises:
            BrokerUnavailable: It can't be told for certain that the channel is delivered.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Stop delivering a channel; called after this process's last subscriber left."""

    @abstractmethod
    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """Read the retained part of a channel's stream.

        Args:
            channel: The channel's name.
            since: Only what came after this position (before it, when `reverse`). Where
                its epoch is not the stream's, there is nothing to return.
            limit: At most so many publications; 0 asks for the position alone, None for all.
            reverse: Newest first.

        Returns:
            The publications and the position of the stream's top. Whether they join on to
            `since` without a gap is told by `publication.continues`.
        """

    @abstractmethod
    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        """Note that a client is in a channel.

        Args:
            channel: The channel's name.
            info: The client.
            last_will: Published to the channel if the client's process ends without having
                said that the client has left.
        """

    @abstractmethod
    async def leave(self, channel: str, client: str) -> None:
        """Note that a client left a channel, and discard its last will.

        Clients that are not there are ignored.
        """

    @abstractmethod
    async def lapse(self, channel: str, client: str) -> None:
        """Note that a client is gone without having left: publish its last will, once."""

    @abstractmethod
    async def present(self, channel: str) -> dict[str, ClientInfo]:
        """Who is in a channel now, by client identifier. No ghosts of killed processes."""

    @abstractmethod
    async def tell(self, control: Control) -> None:
        """Hand a control message to every process, this one included."""
