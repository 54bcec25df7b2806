"""The ready application: the page, its static files, and the three endpoints.

    uvicorn chatserver.app:app

`create_app` makes another one, to be mounted in an application of your own.
"""

import logging
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
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
from chatserver.endpoints.plain import answer_plain_requests
from chatserver.errors import CLOSE_CODES, ChatServerError, InvalidSetting, VerifierMissing
from chatserver.server.uvicorn_ import host_of_server
from chatserver.settings import EXPOSED, Settings, is_loopback

__all__ = ["app", "create_app"]

logger = logging.getLogger("chatserver")

app: Starlette
"""Made on first use, with the settings from the environment."""

PACKAGE = Path(__file__).resolve().parent
INSTALLED, CHECKOUT = PACKAGE / "templates", PACKAGE.parent / "templates"
TEMPLATES = INSTALLED if INSTALLED.is_dir() else CHECKOUT

#: What the AsyncAPI document says of the application.
INFO = {
    "title": "chatserver",
    "version": __version__,
    "description": "Real-time channels over WebSocket.",
    "license": {"name": "BSD-3-Clause"},
}

# The page needs no script, style, font or frame but its own. `connect-src 'self'` covers the
# WebSocket of the same host (CSP level 3).
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
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
            Mount("/static", StaticFiles(directory=PACKAGE / "static"), name="static"),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(StartInOneSentence)],
        lifespan=_ready_lifespan,
    )
    app.router.default = unknown_path
    answer_plain_requests(app)
    app.state.templates = _templates(settings.templates)
    app.state.asyncapi_info = INFO
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
        "max_message_size": request.app.state.hub.limits.max_message_size,
        "close_codes": [
            {"code": row.code, "meaning": row.meaning, "retry": row.retry}
            for row in CLOSE_CODES.values()
        ],
    }
    templates: Jinja2Templates = request.app.state.templates
    return templates.TemplateResponse(request, "index.html", context)


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


class SecurityHeaders:
    """Adds the headers that keep a page from running or showing content of others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve the inner application. A WebSocket handshake needs no such headers."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return self.app(scope, receive, send_with_headers)


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


def _templates(own: Path | None) -> Jinja2Templates:
    """Our templates, and before them those of the user's own folder.

    Ours are always available under "chatserver/", so that a page can extend the one it replaces.
    """
    ours = FileSystemLoader(TEMPLATES)
    front = [] if own is None else [FileSystemLoader(own)]
    loader = ChoiceLoader([*front, ours, PrefixLoader({"chatserver": ours})])
    return Jinja2Templates(
        env=Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    )


@cache
def _default_app() -> Starlette:
    return create_app()


def __getattr__(name: str) -> Any:
    # Importing `app` reads the environment; importing `create_app` doesn't.
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
