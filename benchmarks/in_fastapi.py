"""What an open connection costs inside FastAPI, by the kind of route that the class stands in.

    python -m benchmarks.in_fastapi

Prints for each the memory of one idle connection, without the server's part and the client's. All
connections are in this process, without sockets.
"""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from chatserver import EchoEndpoint
from chatserver.testing import open_session

CONNECTIONS = 500


def starlette() -> ASGIApp:
    return Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])


def websocket_route() -> ASGIApp:
    return FastAPI(routes=[WebSocketRoute("/ws", EchoEndpoint)])


def app_websocket() -> ASGIApp:
    app = FastAPI()
    app.websocket("/ws")(EchoEndpoint)
    return app


def included_router() -> ASGIApp:
    router, app = APIRouter(), FastAPI()
    router.websocket("/ws")(EchoEndpoint)
    app.include_router(router)
    return app


async def memory(app: ASGIApp) -> float:
    """Bytes per connection."""
    async with AsyncExitStack() as sessions:
        for n in range(CONNECTIONS + 20):
            if n == 20:  # by then all that is made once is made
                gc.collect()
                tracemalloc.start()
            await sessions.enter_async_context(open_session(app, "/ws"))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return grown / CONNECTIONS


def main() -> None:
    """Print the figures."""
    alone = asyncio.run(memory(EchoEndpoint))
    kinds: tuple[Callable[[], ASGIApp], ...]
    kinds = (starlette, websocket_route, app_websocket, included_router)
    for kind in kinds:
        kib = (asyncio.run(memory(kind())) - alone) / 1024
        print(f"{kind.__name__.replace('_', ' '):16} {kib:5.1f} KiB")


if __name__ == "__main__":
    main()
