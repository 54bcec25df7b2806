"""Echo: each message goes back to the client that sent it."""

from typing import Any

from starlette.websockets import WebSocket

from chatserver.endpoints.base import Endpoint
from chatserver.publication import Encoding

__all__ = ["EchoEndpoint"]


class EchoEndpoint(Endpoint):
    """Answers each text with `Message text was: {data}`."""

    encoding: Encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push(f"Message text was: {data}")
