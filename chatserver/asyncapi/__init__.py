"""The AsyncAPI 3 description of an application, made from its endpoint classes.

    app = Starlette(routes=[WebSocketRoute("/rooms/{room}", Room), asyncapi_route()])

`GET /asyncapi.json` then answers with what `describe(app)` makes, and `chatserver asyncapi
module:app` prints it. Each route to an endpoint is a channel of AsyncAPI, and each handler an
operation. What stands in `chatserver.asyncapi` is imported by those who use it only.
"""

from chatserver.asyncapi.document import describe
from chatserver.asyncapi.route import asyncapi_route

__all__ = ["asyncapi_route", "describe"]
