"""Starlette with `broadcaster`, in memory: the example of its README, one task each way.

`/ws` is the echo of Starlette's documentation.
"""

# mypy: disable-error-code="import-not-found, import-untyped, misc"

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from broadcaster import Broadcast
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

broadcast = Broadcast("memory://")


class Echo(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(f"Message text was: {data}")


async def chatroom(websocket: WebSocket) -> None:
    await websocket.accept()
    async with anyio.create_task_group() as task_group:

        async def run_receiver() -> None:
            async for message in websocket.iter_text():
                await broadcast.publish(channel="chatroom", message=message)
            task_group.cancel_scope.cancel()

        task_group.start_soon(run_receiver)
        async with broadcast.subscribe(channel="chatroom") as subscriber:
            async for event in subscriber:
                await websocket.send_text(event.message)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    await broadcast.connect()
    yield
    await broadcast.disconnect()


app = Starlette(
    routes=[WebSocketRoute("/ws", Echo), WebSocketRoute("/ws/{client_id}", chatroom)],
    lifespan=lifespan,
)
