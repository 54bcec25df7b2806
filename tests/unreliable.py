"""A broker that behaves as one behind a network does: late, in another order, and failing.

It stands before a real one. Each call takes some turns of the event loop before it gets there,
and its answer takes some on the way back, so that answers overtake each other. Deliveries of one
channel stay in order; a test may have them dropped, repeated, or held back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, TypeVar

from chatserver.brokers import Broker, Control, Health
from chatserver.errors import BrokerUnavailable
from chatserver.publication import (
    ClientInfo,
    Delivery,
    History,
    Payload,
    Position,
)

__all__ = ["Unreliable"]

T = TypeVar("T")


class Unreliable(Broker):
    """Wraps a broker.

    Args:
        inner: The broker.
        seed: Of the delays and failures.

    Attributes:
        failing: The share of calls that raise `BrokerUnavailable`, half of them having been
            carried out.
        fate: What becomes of a delivery: how many times it arrives.
        held: Deliveries that have not arrived, while `holding`.
        reads: How often history was read.
    """

    def __init__(self, inner: Broker, seed: int = 0) -> None:
        super().__init__()
        self.rules, inner.rules = inner.rules, lambda channel: self.rules(channel)
        self.inner = inner
        self.random = Random(seed)
        self.failing = 0.0
        self.fate: Callable[[Delivery], int] = lambda delivery: 1
        self.holding = False
        self.held: list[Delivery] = []
        self.reads = 0
        inner.attach(
            self._deliver,
            lambda control: self.control(control),
            lambda: self.check(),
            lambda channel: self.written(channel),
        )

    def let_go(self) -> None:
        """Let what was held back arrive."""
        self.holding = False
        held, self.held = self.held, []
        for delivery in held:
            self.deliver(delivery)

    def _deliver(self, delivery: Delivery) -> None:
        for _ in range(self.fate(delivery)):
            if self.holding:
                self.held.append(delivery)
            else:
                self.deliver(delivery)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        fails = self.random.random() < self.failing
        await self._on_the_way()
        if fails and self.random.random() < 0.5:
            raise BrokerUnavailable("it did not get there")
        answer = await call()
        await self._on_the_way()
        if fails:
            raise BrokerUnavailable("the answer was lost")
        return answer

    async def _on_the_way(self) -> None:
        for _ in range(self.random.randint(0, 5)):
            await asyncio.sleep(0)

    async def start(self) -> None:
        await self._call(self.inner.start)

    async def stop(self) -> None:
        await self._call(self.inner.stop)

    @property
    def health(self) -> Health:
        return self.inner.health

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
        options: dict[str, Any] = {"id": id, "info": info, "keep": keep, "skip": skip}
        return await self._call(lambda: self.inner.publish(channel, data, **options))

    async def subscribe(self, channel: str) -> Position:
        return await self._call(lambda: self.inner.subscribe(channel))

    async def unsubscribe(self, channel: str) -> None:
        await self._call(lambda: self.inner.unsubscribe(channel))

    async def tops(self, known: Mapping[str, Position]) -> Mapping[str, Position]:
        return await self._call(lambda: self.inner.tops(known))

    async def history(
        self,
        channel: str,
        *,
        since: Position | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        self.reads += 1
        return await self._call(
            lambda: self.inner.history(channel, since=since, limit=limit, reverse=reverse)
        )

    async def enter(
        self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
    ) -> None:
        await self._call(lambda: self.inner.enter(channel, info, last_will=last_will))

    async def leave(self, channel: str, client: str) -> None:
        await self._call(lambda: self.inner.leave(channel, client))

    async def lapse(self, channel: str, client: str) -> None:
        await self._call(lambda: self.inner.lapse(channel, client))

    async def present(self, channel: str) -> dict[str, ClientInfo]:
        return await self._call(lambda: self.inner.present(channel))

    async def tell(self, control: Control) -> None:
        await self._call(lambda: self.inner.tell(control))
