"""What our pages have in common: templates, static files, and headers that protect the reader."""

from collections.abc import Awaitable
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined
from starlette.datastructures import MutableHeaders
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["STATIC", "SecurityHeaders", "templates"]

PACKAGE = Path(__file__).resolve().parent
INSTALLED, CHECKOUT = PACKAGE / "templates", PACKAGE.parent / "templates"
STATIC = PACKAGE / "static"
TEMPLATES = INSTALLED if INSTALLED.is_dir() else CHECKOUT

# A page needs no script, style, font or frame but its own. `connect-src 'self'` covers the
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


def templates(own: Path | None) -> Jinja2Templates:
    """Our templates, and before them those of the user's own folder.

    Ours are always available under "chatserver/", so that a page can extend the one it replaces.
    """
    ours = FileSystemLoader(TEMPLATES)
    front = [] if own is None else [FileSystemLoader(own)]
    loader = ChoiceLoader([*front, ours, PrefixLoader({"chatserver": ours})])
    return Jinja2Templates(
        env=Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    )
