"""FastAPI's tutorial with rooms, by the smallest change: a `ConnectionManager` for each."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    def __init__(self) -> None:
        self.active_connections: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.active_connections.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.active_connections.remove(websocket)

    async def broadcast(self, message: str) -> None:
        for connection in self.active_connections:
            await connection.send_text(message)


rooms: defaultdict[str, ConnectionManager] = defaultdict(ConnectionManager)


@app.websocket("/rooms/{room}/{client_id}")
async def chat(websocket: WebSocket, room: str, client_id: int) -> None:
    manager = rooms[room]
    await manager.connect(websocket)
    try:
        while True:
            data = await websocket.receive_text()
            await manager.broadcast(f"Client #{client_id} says: {data}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
