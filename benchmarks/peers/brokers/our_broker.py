"""Our brokers, as a hub uses them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from chatserver.brokers import Broker, broker_from_url
from chatserver.publication import Delivery, Publication


@asynccontextmanager
async def _started(url: str) -> AsyncIterator[Broker]:
    broker = broker_from_url(url)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    async with _started(url) as broker:
        yield lambda text: broker.publish("room", text)


async def subscribe(url: str, kind: str, heard: Callable[[str], None]) -> None:
    async with _started(url) as broker:

        def deliver(delivery: Delivery) -> None:
            if isinstance(delivery, Publication) and isinstance(delivery.data, str):
                heard(delivery.data)

        broker.deliver = deliver
        await broker.subscribe("room")
        await asyncio.Event().wait()
