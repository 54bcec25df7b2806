"""The route that serves the description of its application."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from chatserver.asyncapi.document import describe, server_object

__all__ = ["asyncapi_route"]


def asyncapi_route(path: str = "/asyncapi.json") -> Route:
    """A route that answers with the AsyncAPI document of the application that it is in.

    The document is made at the first request, and kept. Its server is the one that the request
    was sent to, if that is known.
    """
    described = cache(describe)

    async def asyncapi(request: Request) -> Response:
        document = dict(described(request.app))
        with suppress(ValueError):  # a request through a Unix socket may name no host
            url = request.url
            base = f"{url.scheme}://{url.netloc}{_root_path(request, route)}"
            document["servers"] = server_object(base)
        return JSONResponse(document)

    route = Route(path, asyncapi, name="asyncapi", include_in_schema=False)
    return route


def _root_path(request: Request, route: Route) -> str:
    """The path under which the application itself is served, without the mounts in it."""
    within = _mounts_around(route, request.app.routes) or ""
    root_path: str = request.scope.get("root_path", "")
    return root_path.removesuffix(within.format_map(request.path_params))


def _mounts_around(wanted: Route, routes: Iterable[BaseRoute]) -> str | None:
    for route in routes:
        if route is wanted:
            return ""
        if isinstance(route, Mount):
            within = _mounts_around(wanted, route.routes)
            if within is not None:
                return route.path_format.removesuffix("/{path}") + within
    return None
