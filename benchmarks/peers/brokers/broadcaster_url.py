"""broadcaster with the backend that its URL names."""

# mypy: disable-error-code="import-not-found"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from broadcaster import Broadcast


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    # With PostgreSQL it has one connection, and raises if that is used by two at once.
    one_at_once = asyncio.Semaphore(1 if kind == "postgres" else 1000)
    if kind == "redis":
        url += "?max_connections=1000"
    async with Broadcast(url) as broadcast:

        async def publish(text: str) -> None:
            async with one_at_once:
                await broadcast.publish("room", text)

        yield publish


async def subscribe(url: str, kind: str, heard: Callable[[str], None]) -> None:
    async with Broadcast(url) as broadcast, broadcast.subscribe("room") as subscriber:
        async for event in subscriber:
            heard(event.message)
