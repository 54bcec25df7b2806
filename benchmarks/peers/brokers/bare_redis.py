"""Redis through its own client: what can be had of it, without what a broker promises.

`pipelined` writes what all publishers have to say in one pipeline: into a stream of 100 entries, as
our history is by default, and to the subscribers. `plain` only publishes, one call for each.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis

HISTORY = 100


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[..., Awaitable[object]]]:
    async with Redis.from_url(url, max_connections=1000) as client:

        async def pipelined(*texts: str) -> None:
            pipeline = client.pipeline(transaction=False)
            for text in texts:
                pipeline.xadd("stream", {"e": text}, maxlen=HISTORY, approximate=False)
                pipeline.publish("room", text)
            await pipeline.execute()

        async def plain(text: str) -> None:
            await client.publish("room", text)

        yield pipelined if kind == "pipelined" else plain


async def subscribe(url: str, kind: str, heard: Callable[[bytes], None]) -> None:
    async with Redis.from_url(url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("room")
        async for message in pubsub.listen():
            if message["type"] == "message":
                heard(message["data"])
