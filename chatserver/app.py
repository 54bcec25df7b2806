"""The ready application: the page, its static files, three endpoints, and health.

    uvicorn chatserver.app:app

`create_app` makes another one, to be mounted in an application of your own.
"""

import logging
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from chatserver import __version__
from chatserver.asyncapi import asyncapi_route
from chatserver.auth import OpenMode
from chatserver.configuration import configure
from chatserver.endpoints import BroadcastEndpoint, EchoEndpoint, Endpoint, ItemEndpoint
from chatserver.endpoints.application import lifespan, note_outer, verifier_of
from chatserver.endpoints.local import why_not_local
from chatserver.endpoints.plain import answer_plain_requests
from chatserver.errors import CLOSE_CODES, ChatServerError, InvalidSetting, VerifierMissing
from chatserver.health import health_routes
from chatserver.pages import STATIC, SecurityHeaders, templates
from chatserver.server.uvicorn_ import host_of_server
from chatserver.settings import EXPOSED, Settings, is_loopback
from chatserver.tryit import docs_routes

__all__ = ["app", "create_app"]

logger: logging.Logger = logging.getLogger("chatserver")

app: Starlette
"""Made on first use, with the settings from the environment."""

#: What the AsyncAPI document says of the application.
INFO = {
    "title": "chatserver",
    "version": __version__,
    "description": "Real-time channels over WebSocket.",
    "license": {"name": "BSD-3-Clause"},
}


def create_app(settings: Settings | None = None) -> Starlette:
    """Make the application.

    Args:
        settings: The settings; read from the environment if left out.

    Raises:
        InvalidSetting: A setting can't be used.
    """
    settings = settings or Settings.from_env()
    app = Starlette(
        routes=[
            Route("/", page, name="page"),
            WebSocketRoute("/ws", EchoEndpoint, name="echo"),
            WebSocketRoute("/ws/{client_id}", BroadcastEndpoint, name="chat"),
            WebSocketRoute("/items/{item_id}/ws", ItemEndpoint, name="item"),
            asyncapi_route(),
            *health_routes(),
            Mount("/static", StaticFiles(directory=STATIC), name="static"),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(StartInOneSentence)],
        lifespan=_ready_lifespan,
    )
    app.router.default = unknown_path
    answer_plain_requests(app)
    app.state.templates = templates(settings.templates)
    app.state.asyncapi_info = INFO
    app.state.docs = settings.docs
    if settings.docs != "off":
        is_public = settings.docs == "on"
        routes = docs_routes(app, public=is_public, templates=app.state.templates)
        app.router.routes.extend(routes)
    configure(app, settings)
    return app


async def page(request: Request) -> Response:
    """The page on which a person tries the three endpoints."""
    prefix = request.scope.get("root_path", "").rstrip("/")
    paths = {
        route.name: prefix + route.path
        for route in request.app.routes
        if isinstance(route, WebSocketRoute)
    }
    context = {
        "version": __version__,
        "open_mode": _is_open(request.scope),
        "static": f"{prefix}/static",
        "paths": paths,
        "docs": f"{prefix}/docs" if _shows_docs(request) else None,
        "max_message_size": request.app.state.hub.limits.max_message_size,
        "close_codes": [
            {"code": row.code, "meaning": row.meaning, "retry": row.retry}
            for row in CLOSE_CODES.values()
        ],
    }
    pages: Jinja2Templates = request.app.state.templates
    return pages.TemplateResponse(request, "index.html", context)


def _shows_docs(request: Request) -> bool:
    """Whether this client may see the page that `docs_routes` makes."""
    docs = request.app.state.docs
    return docs == "on" or (docs == "local" and not why_not_local(request.scope))


def _is_open(scope: Scope) -> bool:
    """Whether any token passes here. It doesn't if an outer application verifies tokens."""
    note_outer(scope)
    try:
        return isinstance(verifier_of(scope, "page"), OpenMode)
    except VerifierMissing:
        return False


class UnknownPath(Endpoint):
    """Refuses a WebSocket for an unknown path with a 404, as a page would be."""

    allowed_origins: ClassVar[tuple[str, ...]] = ("*",)

    async def authenticate(self, websocket: WebSocket) -> None:
        raise HTTPException(404, "There is nothing at this path.")


async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for an unknown path with a 404, a WebSocket handshake as well."""
    if scope["type"] == "websocket":
        await UnknownPath(scope, receive, send)
    else:
        raise HTTPException(404, "There is nothing at this path.")


class StartInOneSentence:
    """Lets a server print why the application can't start: one sentence for an error of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve the inner application; replace the traceback of a failed start by its sentence."""
        if scope["type"] != "lifespan":
            return self.app(scope, receive, send)

        async def send_sentence(message: Message) -> None:
            # Starlette sends this while it handles the exception.
            error = sys.exc_info()[1]
            if message["type"].endswith(".failed") and isinstance(error, ChatServerError):
                message = {**message, "message": str(error)}
            await send(message)

        return self.app(scope, receive, send_sentence)


@asynccontextmanager
async def _ready_lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    if isinstance(verifier := app.state.verifier, OpenMode):
        host = host_of_server()
        if verifier.loopback_only and host is not None and not is_loopback(host):
            raise InvalidSetting(EXPOSED.format(host=host))
        logger.warning(
            "Open mode: any non-empty token passes; set CHATSERVER_TOKEN_SECRET to verify tokens."
        )
    async with lifespan(app) as state:
        yield state


@cache
def _default_app() -> Starlette:
    return create_app()


def __getattr__(name: str) -> Any:
    # Importing `app` reads the environment; importing `create_app` doesn't.
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
