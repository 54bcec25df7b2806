"""Item channels `item:{item_id}`: a client joins with a token; any code can publish to them."""

from collections.abc import Sequence
from typing import Any, ClassVar

from starlette.websockets import WebSocket

from chatserver.auth import Identity
from chatserver.endpoints.base import Endpoint, RejectAs
from chatserver.endpoints.params import FromCookie, FromPath, FromQuery
from chatserver.publication import Encoding

__all__ = ["ItemEndpoint"]


class ItemEndpoint(Endpoint):
    """Answers each text with the credential, `q` and the text; joins `item:{item_id}`.

    Without a token, or with one that the application's verifier rejects, the handshake
    is refused with 1008 before accept, which over HTTP is a 403.
    """

    encoding: Encoding = "text"
    reject_as: ClassVar[RejectAs] = "policy"
    channels: ClassVar[Sequence[str]] = ("item:{item_id}",)

    item_id: FromPath[str]
    token: FromQuery[str | None] = None
    session: FromCookie[str | None] = None
    q: FromQuery[int | None] = None

    async def authenticate(self, websocket: WebSocket) -> Identity:
        return await self.identify(websocket)

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await self.push(f"Session cookie or query token value is: {self.credential}")
        if self.q is not None:
            await self.push(f"Query parameter q is: {self.q}")
        await self.push(f"Message text was: {data}, for item ID: {self.item_id}")
