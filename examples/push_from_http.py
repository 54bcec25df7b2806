"""Publish from HTTP: clients that follow an item over WebSocket get what is posted to it.

    uvicorn examples.push_from_http:app

Follow an item in a second terminal, and change it from a third:

    python -m websockets ws://127.0.0.1:8000/items/lamp
    curl -d '{"colour": "red"}' http://127.0.0.1:8000/items/lamp
    curl -X DELETE http://127.0.0.1:8000/items/lamp

The answer to the post is the publication's position: its offset and epoch in the item's stream.
"""

from json import JSONDecodeError

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from chatserver import Endpoint, FromPath, lifespan


class Follow(Endpoint):
    """Sends everything that is published to `item:{item_id}` to the client, as JSON."""

    encoding = "json"
    item_id: FromPath[str]
    channels = ("item:{item_id}",)


async def change(request: Request) -> Response:
    """A coroutine publishes with `await`."""
    try:
        changes = await request.json()
    except JSONDecodeError:
        raise HTTPException(400, "expected JSON") from None
    channel = f"item:{request.path_params['item_id']}"
    position = await request.app.state.hub.publish(channel, changes)
    return JSONResponse({"offset": position.offset, "epoch": position.epoch})


def remove(request: Request) -> Response:
    """A plain function, which Starlette runs in a thread, uses `publish_from_thread`."""
    channel = f"item:{request.path_params['item_id']}"
    request.app.state.hub.publish_from_thread(channel, {"removed": True})
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/items/{item_id}", change, methods=["POST"]),
        Route("/items/{item_id}", remove, methods=["DELETE"]),
        WebSocketRoute("/items/{item_id}", Follow),
    ],
    lifespan=lifespan,  # sets up app.state.hub
)
