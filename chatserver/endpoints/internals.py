"""All that is taken from the insides of Starlette, which an upgrade may change without a word.

`tests/test_internals.py` tries each by its name, so that an upgrade that breaks one says which.
"""

import sys
from types import FrameType

from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

__all__ = ["DEPARTURES", "answer_by_handlers", "has_handlers", "outer_applications"]

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


def outer_applications(scope: Scope) -> tuple[Starlette, ...]:
    """The applications in which the one of this scope is mounted, the innermost first.

    Each that a handshake passes takes the place of the last in `scope["app"]`, and nothing else
    leads back to it. But all of them wait for the endpoint now: they stand on the stack.

    Args:
        scope: Of the endpoint that calls this, in the task in which the application was called.
    """
    app = scope.get("app")
    if getattr(app, "router", None) is scope.get("router"):
        return ()  # it is the outermost: "router" is that of the first application
    found: list[Starlette] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is Starlette.__call__.__code__:
            called = frame.f_locals
            # The same handshake, though a middleware may have copied the scope.
            if called["self"] is not app and called["scope"]["headers"] is scope["headers"]:
                found.append(called["self"])
        frame = frame.f_back
    return tuple(found)
