"""The route that serves the description of its application."""

from functools import cache

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from chatserver.asyncapi.document import describe, server_object

__all__ = ["asyncapi_route"]


def asyncapi_route(path: str = "/asyncapi.json") -> Route:
    """A route that answers with the AsyncAPI document of the application that it is in.

    The document is made at the first request, and kept. Its server is the one that the request
    was sent to.
    """
    described = cache(describe)

    async def asyncapi(request: Request) -> Response:
        url = request.url
        base = f"{url.scheme}://{url.netloc}{request.scope.get('root_path', '')}"
        return JSONResponse({**described(request.app), "servers": server_object(base)})

    return Route(path, asyncapi, name="asyncapi", include_in_schema=False)
