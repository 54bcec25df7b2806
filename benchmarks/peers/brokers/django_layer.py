"""Django Channels: a group of its Redis layers, with one channel in it."""

# mypy: disable-error-code="import-not-found, import-untyped"

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer


def _layer(url: str, kind: str) -> Any:
    hosts = [{"address": url, "max_connections": 1000}]
    return {"core": RedisChannelLayer, "pubsub": RedisPubSubChannelLayer}[kind](hosts=hosts)


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    layer = _layer(url, kind)
    yield lambda text: layer.group_send("room", {"type": "chat.message", "text": text})


async def subscribe(url: str, kind: str, heard: Callable[[str], None]) -> None:
    layer = _layer(url, kind)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    while True:
        heard((await layer.receive(channel))["text"])
