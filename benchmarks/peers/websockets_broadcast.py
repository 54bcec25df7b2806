"""The `websockets` library's own server with its `broadcast()`, on uvloop; `/ws` echoes."""

# mypy: disable-error-code="import-not-found, import-untyped"

import sys

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: set[ServerConnection] = set()


async def handler(websocket: ServerConnection) -> None:
    if websocket.request is not None and websocket.request.path == "/ws":
        async for message in websocket:
            await websocket.send(message)
        return
    members.add(websocket)
    try:
        async for message in websocket:
            broadcast(members, message)
    finally:
        members.remove(websocket)


async def main(port: int) -> None:
    async with serve(handler, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
