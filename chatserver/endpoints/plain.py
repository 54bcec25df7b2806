"""Answers a plain HTTP request for a WebSocket's path with 426, and says what is missing.

Without this it is a 404, because a router looks only at its HTTP routes.
"""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from chatserver.endpoints.internals import each_route, router_within

__all__ = ["answer_plain_requests"]

NO_UPGRADE = (
    "This path is for WebSocket connections, and the request has no header 'Upgrade: websocket'. "
    "If the client sent it, a proxy has taken it away."
)


def answer_plain_requests(app: Starlette) -> None:
    """Let an application answer plain requests for its WebSocket paths with 426.

    Includes the applications and routers mounted in it. Calling it again changes nothing.
    """
    _prepare(app.router)


def _prepare(router: Router) -> None:
    if not isinstance(router.default, _UpgradeRequired):
        router.default = _UpgradeRequired(router, router.default)
    for route in each_route(router.routes):
        if inner := router_within(route):
            _prepare(inner)


class _UpgradeRequired:
    """Replaces the answer of a router that has no route for a request.

    Args:
        router: The router whose WebSocket routes are searched.
        default: The router's own answer.
    """

    def __init__(self, router: Router, default: ASGIApp) -> None:
        self._router = router
        self._default = default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 426 where a WebSocket would find its route (RFC 9110, section 15.5.22)."""
        if scope["type"] == "http" and self._is_for_websockets(scope):
            headers = {"Upgrade": "websocket"}
            if scope["http_version"].startswith("1"):
                headers["Connection"] = "Upgrade"  # HTTP/2 has no such header
            raise HTTPException(426, NO_UPGRADE, headers)
        await self._default(scope, receive, send)

    def _is_for_websockets(self, scope: Scope) -> bool:
        handshake = {**scope, "type": "websocket"}
        try:
            return any(route.matches(handshake)[0] is Match.FULL for route in self._router.routes)
        except ValueError:
            return False  # of `{n:int}`, for more digits than Python converts
