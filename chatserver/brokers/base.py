"""The contract of a broker, and the types that brokers share."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from chatserver.publication import ClientInfo, Delivery, History, Payload, Position
from chatserver.rules import Rules, RulesFor

__all__ = ["Broker", "Control", "Disconnect", "Health", "Unsubscribe"]


class Health(Struct, frozen=True):
    """Whether a broker works.

    Attributes:
        state: "up", or "down" while publications can't be stored or are not delivered.
        since: Unix time in seconds at which that state began.
        why: The reason, for a person; empty if it is up.
    """

    state: Literal["up", "down"]
    since: float
    why: str = ""


class Disconnect(Struct, frozen=True, tag="disconnect"):
    """Close the connections of a user, or of one client, in every process.

    Attributes:
        user: The user; empty if one client is meant.
        client: The client; empty if a user is meant.
        code: The close code.
        reason: Why, in words.
    """

    user: str = ""
    client: str = ""
    code: int = 1008
    reason: str = ""


class Unsubscribe(Struct, frozen=True, tag="unsubscribe"):
    """Unsubscribe the connections of a user, or of one client, from a channel, in every process."""

    channel: str
    user: str = ""
    client: str = ""


#: A message to all processes.
Control: TypeAlias = Disconnect | Unsubscribe


def _nowhere(*_: object) -> None:
    """The target of deliveries before a hub is attached: it drops them."""


async def _at_once(*_: object) -> None:
    """What a broker awaits before a hub is attached."""


class Broker(ABC):
    """Carries publications to every process, and keeps each channel's history and presence.

    Delivery: every publication of a subscribed channel is given to `deliver` in every process,
    including the publisher's, once and in the order of offsets.

    Order: a channel has one stream. Its offsets count up by one; its epoch changes when the
    stream was lost and begun anew.

    Atomicity: appending to the stream and announcing it are one step per channel. What was
    acknowledged is stored.

    Continuity: whenever deliveries may have been missed, because the connection to the engine was
    lost, and every now and then, a broker awaits `check`. Then the hub asks for `tops`, reads
    from the history what it has missed, and tells the subscribers if that is impossible. It
    notices gaps between deliveries as well.

    Presence: an entry counts as long as the process that made it holds its lease. A process that
    notices an expired lease takes it, removes the entries of its process, and publishes the last
    will of each, once for each client. No publisher's id is taken for that of a last will.

    The methods may be awaited on any event loop of the process.

    Attributes:
        deliver: Takes publications, joins and leaves. It never blocks, and may be called on
            any thread, as `control`.
        control: Takes control messages.
        check: Proves that nothing was missed; see above.
        written: Waits while this process is far behind in writing a channel's publications to its
            clients; a broker awaits it before it reads more from its engine.
        rules: Says what is kept of each channel.

    Args:
        rules: What is kept of every channel for which the hub has no rules.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        of_all = rules or Rules()
        self.rules: RulesFor = lambda _: of_all
        self.deliver: Callable[[Delivery], None] = _nowhere
        self.control: Callable[[Control], None] = _nowhere
        self.check: Callable[[], Awaitable[None]] = _at_once
        self.written: Callable[[str], Awaitable[None]] = _at_once
        self._attached = False

    def attach(
        self,
        deliver: Callable[[Delivery], None],
        control: Callable[[Control], None],
        check: Callable[[], Awaitable[None]],
        written: Callable[[str], Awaitable[None]],
    ) -> None:
        """Set the four functions; called once, by the hub that uses the broker.

        Raises:
            ValueError: Another hub uses it, which would get nothing any more.
        """
        if self._attached:
            raise ValueError(
                f"this {type(self).__name__} belongs to another Hub; "
                "give each Hub a broker of its own"
            )
        self._attached = True
        self.deliver, self.control, self.check, self.written = deliver, control, check, written

    @abstractmethod
    async def start(self) -> None:
        """Connect to the engine; called when the application starts.

        Raises:
            BrokerUnavailable: It can't be reached; one sentence says why, and what to do.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Give up the lease and the connection; called when the application stops."""

    @property
    @abstractmethod
    def health(self) -> Health:
        """Whether it works now."""

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
                minutes delivers nothing, and returns the position of the first.
            info: The publisher.
            keep: If False, it is only announced: it gets no offset, and is not in the history.
            skip: The identifier of a client that does not get it.

        Returns:
            The publication's position; the position of the stream's top if it is not kept.

        Raises:
            BrokerUnavailable: It is not certain that the publication is stored.
        """

    @abstractmethod
    async def subscribe(self, channel: str) -> Position:
        """Begin to deliver a channel; called for this process's first subscriber.

        Returns:
            The top of the stream at a moment after which everything is delivered. Earlier
            publications may be delivered as well.

        Raises:
            BrokerUnavailable: It is not certain that the channel is delivered.
        """

    @abstractmethod
    async def unsubscribe(self, channel: str) -> None:
        """Stop delivering a channel; called after this process's last subscriber left."""

    @abstractmethod
    async def tops(self, known: Mapping[str, Position]) -> Mapping[str, Position]:
        """Where the streams of channels stand now.

        Args:
            known: The channels, each with a position of its stream that is known to exist. A
                stream of the same epoch that does not reach so far has gone back (its engine
                was replaced by a copy that lagged behind): it begins a new epoch.

        Returns:
            The position of each stream's top.

        Raises:
            BrokerUnavailable: The engine can't be asked.
        """

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
            since: Only what came after this position (before it, if `reverse`). If its epoch
                is not the stream's, no publication is returned.
            limit: The most publications; 0 for the position alone, None for all.
            reverse: Newest first.

        Returns:
            The publications and the position of the stream's top. `publication.continues` says
            whether they follow `since` without a gap.
        """

    @abstractmethod
    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        """Enter a client into a channel's presence.

        Args:
            channel: The channel's name.
            info: The client.
            last_will: Published to the channel if the client's process ends before it has
                called `leave` for the client.
        """

    @abstractmethod
    async def leave(self, channel: str, client: str) -> None:
        """Remove a client from a channel's presence, and discard its last will.

        Clients that are not present are ignored.
        """

    @abstractmethod
    async def lapse(self, channel: str, client: str) -> None:
        """Remove a client that is gone without having left: publish its last will, once."""

    @abstractmethod
    async def present(self, channel: str) -> dict[str, ClientInfo]:
        """The clients in a channel now, by client identifier, without those of killed processes."""

    @abstractmethod
    async def tell(self, control: Control) -> None:
        """Send a control message to every process, including this one."""
