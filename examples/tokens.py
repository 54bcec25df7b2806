"""Tokens: each user has a private channel, which only the user's own token opens.

    export CHATSERVER_TOKEN_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    uvicorn examples.tokens:app

and in a second terminal, with the same variable:

    TOKEN=$(chatserver token --sub ann --channel user:ann)
    python -m websockets "ws://127.0.0.1:8000/users/ann?token=$TOKEN"

Write to ann from a third: `curl -d hello http://127.0.0.1:8000/users/ann`. Without a token the
handshake is refused with HTTP 401; for another user's channel, ann's token gets a 403.
"""

import secrets

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint, FromPath, lifespan
from chatserver.auth import Identity, Verifier
from chatserver.settings import Settings


class Inbox(Endpoint):
    encoding = "text"
    name: FromPath[str]
    channels = ("user:{name}",)  # checked against the token's claim `channels`

    async def authenticate(self, websocket: WebSocket) -> Identity:
        return await self.identify(websocket)

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(f"Welcome, {self.user.user}")


async def write(request: Request) -> Response:
    """Anyone may write; only a client with the token can read."""
    text = (await request.body()).decode(errors="replace")
    await request.app.state.hub.publish(f"user:{request.path_params['name']}", text)
    return Response(status_code=202)


app = Starlette(
    routes=[
        Route("/users/{name}", write, methods=["POST"]),
        WebSocketRoute("/users/{name}", Inbox),
    ],
    lifespan=lifespan,
)
# Without a secret in the environment a random one is used, so that no token passes.
secret = Settings.from_env().token_secret or secrets.token_urlsafe(32)
app.state.verifier = Verifier(secret=secret)
