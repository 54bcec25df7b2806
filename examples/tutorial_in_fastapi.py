"""The three examples of FastAPI's WebSocket tutorial as classes in FastAPI, with one page for all.

    pip install fastapi
    uvicorn examples.tutorial_in_fastapi:app

Open http://127.0.0.1:8000 in two windows. The tutorial's own clients see no difference.
"""

from pathlib import Path

from fastapi import FastAPI, WebSocket, WebSocketException
from fastapi.responses import FileResponse

from chatserver import Endpoint, FromCookie, FromPath, FromQuery, lifespan

app = FastAPI(lifespan=lifespan)


class Tutorial(Endpoint):
    encoding = "text"
    reject_as = "policy"


@app.websocket("/ws")
class Echo(Tutorial):
    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(f"Message text was: {data}")


@app.websocket("/items/{item_id}/ws")
class Item(Tutorial):
    item_id: FromPath[str]
    q: FromQuery[int | None] = None
    token: FromQuery[str | None] = None
    session: FromCookie[str | None] = None

    async def authenticate(self, websocket: WebSocket) -> None:
        if self.session is None and self.token is None:
            raise WebSocketException(code=1008)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        token = self.session or self.token
        await websocket.send_text(f"Session cookie or query token value is: {token}")
        if self.q is not None:
            await websocket.send_text(f"Query parameter q is: {self.q}")
        await websocket.send_text(f"Message text was: {data}, for item ID: {self.item_id}")


@app.websocket("/ws/{client_id}")
class Chat(Tutorial):
    client_id: FromPath[int]
    channels = ("chat",)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(f"You wrote: {data}")
        await self.publish(f"Client #{self.client_id} says: {data}")

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await self.publish(f"Client #{self.client_id} left the chat")


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_suffix(".html"))
