"""Broadcast: all clients in one channel."""

from collections.abc import Sequence
from typing import Any, ClassVar

from starlette.websockets import WebSocket

from chatserver.endpoints.base import Endpoint, RejectAs
from chatserver.endpoints.params import FromPath
from chatserver.publication import Encoding

__all__ = ["BroadcastEndpoint"]


class BroadcastEndpoint(Endpoint):
    """Publishes each text to all members of the channel `chat`, and says when a client left."""

    encoding: Encoding = "text"
    reject_as: ClassVar[RejectAs] = "policy"
    channels: ClassVar[Sequence[str]] = ("chat",)

    client_id: FromPath[int]

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push(f"You wrote: {data}")
        await self.publish(f"Client #{self.client_id} says: {data}")

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        await self.publish(self.last_will())

    def last_will(self) -> str:
        return f"Client #{self.client_id} left the chat"
