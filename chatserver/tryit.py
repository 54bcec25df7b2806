"""The try-it page: an application's endpoints with a form for each, made from its description.

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room)], lifespan=lifespan)
    app.router.routes.extend(docs_routes(app))

`/docs` then shows the endpoints, and talks to them. The page brings its own scripts and styles.
"""

import posixpath
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from chatserver.endpoints.local import why_not_local

if TYPE_CHECKING:
    from starlette.templating import Jinja2Templates

__all__ = ["docs_routes"]

NOT_LOCAL = (
    "This page is for clients of this machine only. To show it to others, write "
    "docs_routes(app, public=True), or set CHATSERVER_DOCS=on for the ready application.\n"
)


def docs_routes(
    app: Starlette,
    *,
    path: str = "/docs",
    public: bool = False,
    templates: "Jinja2Templates | None" = None,
) -> list[BaseRoute]:
    """The routes of a page that shows the endpoints of an application, and talks to them.

    Below the path are also its scripts, its styles and `asyncapi.json`. They are added to the same
    application: `app.router.routes.extend(docs_routes(app))`. FastAPI has a page at `/docs`
    itself; there choose another path, or `FastAPI(docs_url=None)`.

    Args:
        app: A Starlette or FastAPI application. The page shows the endpoints that it has at the
            first request.
        path: Where the page is.
        public: Whether clients of other machines may see it. They get a 403 if not.
        templates: Has the template `docs.html`; ours if left out.

    Raises:
        ValueError: The path isn't one, or the application has a route for it.
    """
    # Imported here, because Jinja takes a while and most applications have no such page.
    from starlette.staticfiles import StaticFiles

    from chatserver import pages
    from chatserver.asyncapi import asyncapi_route

    _check_path(app, path)
    guards = [Middleware(pages.SecurityHeaders)]
    if not public:
        guards.append(Middleware(_LocalOnly))
    shown = templates or pages.templates(None)
    # All addresses are relative to the page's own, so that any prefix of a proxy or mount is right.
    name = posixpath.basename(path)
    context = {
        "static": f"{name}/static",
        "description": f"{name}/asyncapi.json",
        "root": "../" * (path.count("/") - 1) or "./",
    }

    async def docs(request: Request) -> Response:
        return shown.TemplateResponse(request, "docs.html", context)

    described = asyncapi_route(f"{path}/asyncapi.json").endpoint
    files = StaticFiles(directory=pages.STATIC)
    return [
        Route(path, docs, name="docs", middleware=guards, include_in_schema=False),
        Route(
            f"{path}/asyncapi.json",
            described,
            name="docs_asyncapi",
            middleware=guards,
            include_in_schema=False,
        ),
        Mount(f"{path}/static", files, name="docs_static", middleware=guards),
    ]


def _check_path(app: Starlette, path: str) -> None:
    if not path.startswith("/") or path.endswith("/") or "{" in path:
        raise ValueError(f"docs_routes: expected a path such as '/docs', got {path!r}")
    scope: Scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    for route in app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            raise ValueError(
                f"docs_routes: the path {path!r} is taken by {route!r}; "
                f"choose another, as in docs_routes(app, path='/ws{path}')"
            )


class _LocalOnly:
    """Refuses requests that may come from another machine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if why_not_local(scope):
            # Not why: the address of the server behind its proxy is nobody's business.
            await PlainTextResponse(NOT_LOCAL, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
