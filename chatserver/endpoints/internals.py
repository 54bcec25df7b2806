"""All that we use of the internals of Starlette and FastAPI, which may change with any upgrade.

`tests/test_internals.py` tests each of them by name, so that a failure says which one changed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from starlette._exception_handler import wrap_app_handling_exceptions
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Mount, Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

__all__ = [
    "DEPARTURES",
    "answer_by_handlers",
    "applications_within",
    "asgi_of",
    "called_before",
    "each_route",
    "has_handlers",
    "outer_applications",
    "router_within",
]

#: The key under which an application puts its exception handlers into the scope.
HANDLERS = "starlette.exception_handlers"

#: What a `WebSocket` raises when the client, or a close of its own, has ended the connection.
#: It raises the second, undocumented one when it is used again after that.
DEPARTURES = (WebSocketDisconnect, WebSocketDisconnected)


def asgi_of(websocket: WebSocket) -> tuple[Scope, Receive, Send]:
    """What an ASGI application in place of this `WebSocket` would be called with.

    Not its own methods `receive` and `send`: they check a state that the application keeps itself.
    """
    return websocket.scope, websocket._receive, websocket._send


def has_handlers(scope: Scope) -> bool:
    """Whether the endpoint is served by an application, with exception handlers of its own."""
    return HANDLERS in scope


async def answer_by_handlers(websocket: WebSocket, error: Exception, send: Send) -> None:
    """Let the application's handler for this exception answer the handshake.

    Args:
        websocket: Not accepted yet.
        error: The exception whose handler is looked up.
        send: Sends the answer.

    Raises:
        Exception: The error itself, where there is no handler for it.
    """

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    scope = websocket.scope
    await wrap_app_handling_exceptions(fail, websocket)(scope, websocket.receive, send)


def outer_applications(scope: Scope) -> tuple[Starlette, ...] | None:
    """The applications in which the one of this scope is mounted, the innermost first.

    Each application that a handshake passes replaces the one before in `scope["app"]`, and no
    other reference leads back. But all of them await the endpoint now, so they are on the stack,
    unless a middleware called the next one in a task of its own.

    Args:
        scope: The calling endpoint's, in the task in which the application was called.

    Returns:
        The applications; None where the outermost can't be found.
    """
    app, outermost = scope.get("app"), scope.get("router")
    if app is None or getattr(app, "router", None) is outermost:
        return ()  # it is the outermost: the first application sets "router"
    found: list[Starlette] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is Starlette.__call__.__code__ and frame.f_locals["self"] is not app:
            found.append(frame.f_locals["self"])
            if found[-1].router is outermost:
                return tuple(found)
        frame = frame.f_back
    return None


def each_route(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """These routes; in place of a router that FastAPI has included, the routes in it.

    Their paths begin with the router's prefix. FastAPI makes them when it is first asked for them,
    and keeps them. Its older versions copied them among the application's own.
    """
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            # A route for HTTP has no copy.
            yield from (each.starlette_route or each.original_route for each in contexts())


def called_before(route: BaseRoute) -> Iterator[Callable[..., Any]]:
    """What FastAPI calls before a route's endpoint.

    That is: the dependencies of the route, its routers and the application, and theirs.
    """
    pending = [getattr(route, "dependant", None)]
    while pending:
        for each in getattr(pending.pop(), "dependencies", ()):
            yield each.call
            pending.append(each)


def _mounted(route: BaseRoute) -> object:
    """What is mounted at a route, without the middleware around it; None where it is no mount."""
    if isinstance(route, Mount):
        return route._base_app
    return route.app if isinstance(route, Host) else None


def router_within(route: BaseRoute) -> Router | None:
    """The router of what is mounted at a route, if it has one."""
    app = _mounted(route)
    router = app if isinstance(app, Router) else getattr(app, "router", None)
    return router if isinstance(router, Router) else None


def applications_within(routes: Iterable[BaseRoute]) -> Iterator[Starlette]:
    """The applications mounted at these routes, and those mounted in them."""
    for route in each_route(routes):
        if isinstance(app := _mounted(route), Starlette):
            yield app
        if router := router_within(route):
            yield from applications_within(router.routes)
