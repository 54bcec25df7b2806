"""All that is taken from the insides of Starlette, which an upgrade may change without a word.

`tests/test_internals.py` tries each by its name, so that an upgrade that breaks one says which.
"""

from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

__all__ = ["DEPARTURES", "answer_by_handlers", "has_handlers"]

#: Where an application leaves its exception handlers in the scope.
HANDLERS = "starlette.exception_handlers"

#: What a `WebSocket` raises where the client, or its own close, has ended the connection. The
#: second is raised from the second time on, and stands in no documentation.
DEPARTURES = (WebSocketDisconnect, WebSocketDisconnected)


def has_handlers(scope: Scope) -> bool:
    """Whether the endpoint is served by an application, with exception handlers of its own."""
    return HANDLERS in scope


async def answer_by_handlers(websocket: WebSocket, error: Exception, send: Send) -> None:
    """Let the application's handler for this exception answer the handshake.

    Args:
        websocket: Not accepted yet.
        error: Whose handler is looked for.
        send: Takes the answer.

    Raises:
        Exception: The error itself, where no handler is for it.
    """

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    scope = websocket.scope
    await wrap_app_handling_exceptions(fail, websocket)(scope, websocket.receive, send)
