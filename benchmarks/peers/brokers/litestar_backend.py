"""Litestar's channels over its backends for Redis and PostgreSQL."""

# mypy: disable-error-code="import-not-found"

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from litestar.channels import ChannelsPlugin
from litestar.channels.backends.base import ChannelsBackend

HISTORY = 100  # as ours is by default


def _backend(url: str, kind: str) -> ChannelsBackend:
    if kind == "asyncpg":
        from litestar.channels.backends.asyncpg import AsyncPgChannelsBackend

        return AsyncPgChannelsBackend(url)

    from litestar.channels.backends import redis as backends
    from redis.asyncio import Redis

    client = Redis.from_url(url, max_connections=1000)
    if kind == "pubsub":
        return backends.RedisChannelsPubSubBackend(redis=client)
    return backends.RedisChannelsStreamBackend(history=HISTORY, redis=client)


def _plugin(url: str, kind: str) -> ChannelsPlugin:
    return ChannelsPlugin(backend=_backend(url, kind), arbitrary_channels_allowed=True)


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    async with _plugin(url, kind) as channels:
        yield lambda text: channels.wait_published(text, "room")


async def subscribe(url: str, kind: str, heard: Callable[[bytes], None]) -> None:
    async with _plugin(url, kind) as channels, channels.start_subscription("room") as subscriber:
        async for event in subscriber.iter_events():
            heard(event)
