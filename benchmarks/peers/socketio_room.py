"""python-socketio as an ASGI application: an event is emitted to everyone in a room."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator"

from typing import Any

import socketio

server = socketio.AsyncServer(async_mode="asgi")


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await server.enter_room(sid, "chat")


@server.event
async def m(sid: str, text: str) -> None:
    await server.emit("m", text, room="chat")


app = socketio.ASGIApp(server)
