"""An echo of your own: it sends JSON back with each text reversed.

    uvicorn examples.custom_echo:app

and in a second terminal:

    python -m websockets ws://127.0.0.1:8000/echo
    > {"say": "desserts", "times": 2}
    < {"say":"stressed","times":2}

A message that is not JSON closes the connection with 1007; your code is not called for it.
"""

from typing import TypeAlias

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from chatserver import Endpoint

JSON: TypeAlias = "str | float | bool | list[JSON] | dict[str, JSON] | None"


class Mirror(Endpoint):
    """Reverses every text in the JSON that it gets."""

    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: JSON) -> None:
        await websocket.send_json(turned(data))


def turned(data: JSON) -> JSON:
    match data:
        case str():
            return data[::-1]
        case list():
            return [turned(item) for item in data]
        case dict():
            return {name: turned(value) for name, value in data.items()}
        case _:
            return data


app = Starlette(routes=[WebSocketRoute("/echo", Mirror)])
