"""What a process follows at its broker, in step with the subscribers that come and go."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, suppress

from chatserver.brokers.base import Broker

__all__ = ["Following"]


class Following:
    """Calls a broker's `subscribe` and `unsubscribe` in turn, one at a time per channel.

    Subscribers come and go on several event loops while such a call is under way. Without
    turns, who comes while the last one leaves would be unsubscribed with it.

    Args:
        broker: Whose channels are followed.
        wanted: Whether a channel has a subscriber in this process now.
    """

    def __init__(self, broker: Broker, wanted: Callable[[str], bool]) -> None:
        self._broker = broker
        self._wanted = wanted
        self._lock = threading.Lock()
        self._turns: dict[str, deque[Future[None]]] = {}
        # The channels that the broker was asked for, and whether it has confirmed them. One
        # it failed to confirm is asked for again by the next subscriber, or given up.
        self._confirmed: dict[str, bool] = {}

    async def settle(self, channel: str) -> None:
        """Follow a channel if it is wanted, else give it up; to be called when that changes.

        Raises:
            BrokerUnavailable: It is not certain that the broker did what was asked.
        """
        with self._lock:
            known = channel not in self._turns and self._confirmed.get(channel)
            if known and self._wanted(channel):
                return  # as for most who come, and nobody is about to change it
        async with self._turn(channel):
            if self._wanted(channel):
                if not self._confirmed.get(channel):
                    self._confirmed[channel] = False
                    await self._broker.subscribe(channel)
                    self._confirmed[channel] = True
            elif self._confirmed.pop(channel, None) is not None:
                await self._broker.unsubscribe(channel)

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
                    # It has its turn already, or was cancelled and is about to pass it on.
                    with suppress(InvalidStateError):
                        queue[0].set_result(None)
