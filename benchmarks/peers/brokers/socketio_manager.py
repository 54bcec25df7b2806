"""python-socketio: an emitting process, as its documentation shows, and a server's manager."""

# mypy: disable-error-code="import-not-found, import-untyped, misc"

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import socketio


@asynccontextmanager
async def publisher(url: str, kind: str) -> AsyncIterator[Callable[[str], Awaitable[object]]]:
    options = {"max_connections": 1000}
    manager = socketio.AsyncRedisManager(url, write_only=True, redis_options=options)
    yield lambda text: manager.emit("message", text, room="room")


async def subscribe(url: str, kind: str, heard: Callable[[str], None]) -> None:
    class Manager(socketio.AsyncRedisManager):
        async def _handle_emit(self, message: dict[str, Any]) -> None:
            """Here a server begins to send to its clients, of which there are none."""
            heard(message["data"][0])

    manager = Manager(url)
    socketio.AsyncServer(async_mode="asgi", client_manager=manager)
    manager.initialize()
    await asyncio.Event().wait()
