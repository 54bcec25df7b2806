"""Subscribes this process to channels at its broker, as subscribers come and go."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress

from chatserver.brokers import Broker
from chatserver.hub.subscription import Continuity
from chatserver.publication import Position

__all__ = ["Following"]


class Following:
    """Calls a broker's `subscribe` and `unsubscribe` in turn, one at a time per channel.

    Subscribers come and go on several event loops during such a call. Without turns, a
    subscriber that comes while the last one leaves would lose the channel with it.

    Args:
        broker: The broker.
        wanted: Whether a channel has a subscriber in this process now.
        started: Called with a channel and its position when the broker has told it.
        most: Bytes of one channel that are held until then.
    """

    def __init__(
        self,
        broker: Broker,
        wanted: Callable[[str], bool],
        started: Callable[[str, Position], None],
        most: int,
    ) -> None:
        self._broker = broker
        self._wanted = wanted
        self._started = started
        self._most = most
        self._lock = threading.Lock()
        self._turns: dict[str, deque[Future[None]]] = {}
        # The channels that were subscribed at the broker. Without a top the broker has not
        # confirmed it, or failed: the next subscriber asks again, or the channel is given up.
        self._channels: dict[str, Continuity] = {}

    def continuity(self, channel: str) -> Continuity | None:
        """The state of a channel's deliveries; None if the channel isn't followed."""
        return self._channels.get(channel)

    def tops(self) -> dict[str, Position]:
        """The channels whose position is known, and the last position that was passed on."""
        with self._lock:
            followed = tuple(self._channels.items())
        return {name: state.top for name, state in followed if state.top is not None}

    async def settle(self, channel: str) -> None:
        """Follow a channel if it is wanted, else give it up; call this when that changes.

        Raises:
            BrokerUnavailable: It is not certain that the broker did what was asked.
        """
        with self._lock:
            known = channel not in self._turns and self._is_confirmed(channel)
            if known and self._wanted(channel):
                return  # the common case: it is followed, and nobody is about to change that
        async with self._turn(channel):
            if not self._wanted(channel):
                with self._lock:
                    followed = self._channels.pop(channel, None)
                if followed is not None:
                    await self._broker.unsubscribe(channel)
            elif not self._is_confirmed(channel):
                with self._lock:
                    self._channels[channel] = Continuity(self._most)
                self._started(channel, await self._broker.subscribe(channel))

    def _is_confirmed(self, channel: str) -> bool:
        continuity = self._channels.get(channel)
        return continuity is not None and continuity.top is not None

    @asynccontextmanager
    async def _turn(self, channel: str) -> AsyncIterator[None]:
        """A lock per channel that can be awaited on every event loop, first come first served."""
        turn: Future[None] = Future()
        with self._lock:
            queue = self._turns.setdefault(channel, deque())
            queue.append(turn)
            if queue[0] is turn:
                turn.set_result(None)
        try:
            if not turn.done():
                await asyncio.wrap_future(turn)
            yield
        finally:
            with self._lock:
                queue.remove(turn)
                if not queue:
                    del self._turns[channel]
                else:
                    # The next one may be done: it was cancelled, and will pass its turn on.
                    with suppress(InvalidStateError):
                        queue[0].set_result(None)
