"""socketify (uWebSockets for Python): publish/subscribe as its documentation shows it.

`/ws` echoes.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

import sys
from typing import Any

from socketify import App, AppListenOptions, OpCode

app = App()


def join(websocket: Any) -> None:
    websocket.subscribe("chat")


def say(websocket: Any, message: str | bytes, opcode: OpCode) -> None:
    app.publish("chat", message, opcode)  # `websocket.publish` would leave the publisher out


def echo(websocket: Any, message: str | bytes, opcode: OpCode) -> None:
    websocket.send(message, opcode)


app.ws("/ws", {"message": echo})
app.ws("/ws/:client_id", {"open": join, "message": say})
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"))
app.run()
