"""The broker's contract."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from chatserver.publication import ClientInfo, History, Payload, Position, Publication

__all__ = ["Broker"]


def _nowhere(publication: Publication) -> None:
    """Where publications go before a hub is attached: nobody is there to get them."""


class Broker(ABC):
    """Carries publications to every process, and keeps each channel's history and presence.

    Delivery: every publication of a subscribed channel is handed to `deliver` in every
    process, the publisher's own included, in the order of its offsets and once.

    Order: a channel has one stream. Its offsets count up by one; its epoch changes when the
    stream was lost and begun anew.

    Atomicity: appending to the stream and announcing it are one step per channel. What was
    acknowledged is stored.

    The methods may be awaited on any event loop of the process.

    Attributes:
        deliver: Where publications go; set by the hub that uses the broker. It never
            blocks, and may be called on any thread.
    """

    def __init__(self) -> None:
        self.deliver: Callable[[Publication], None] = _nowhere

    @abstractmethod
    async def publish(
        self,
        channel: str,
        data: Payload,
        *,
        id: str | None = None,
        info: ClientInfo | None = None,
    ) -> Position:
        """Append a publication to a channel's stream and announce it.

        Args:
            channel: The channel's name.
            data: What to publish.
            id: Chosen by the publisher. A second publish with the same id within five
                minutes at least is answered with the first one's position and delivers
                nothing.
            info: Who publishes.

        Returns:
            The publication's position.

        Raises:
            BrokerUnavailable: It can't be told for certain that the publication is stored.
        """

    @abstractmethod
    async def subscribe(self, channel: str) -> None:
        """Begin to deliver a channel; called for this process's first subscriber."""

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
    async def enter(self, channel: str, info: ClientInfo) -> None:
        """Note that a client is in a channel."""

    @abstractmethod
    async def leave(self, channel: str, client: str) -> None:
        """Note that a client left a channel; unknown ones are ignored."""

    @abstractmethod
    async def present(self, channel: str) -> dict[str, ClientInfo]:
        """Who is in a channel now, by client identifier. No ghosts of killed processes."""
