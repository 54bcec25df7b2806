"""What endpoints find in the application that they are part of: in `app.state`.

hub                 the hub; set up on first use, or at the start by `lifespan`
verifier            verifies tokens; without one any non-empty token passes
allowed_origins     foreign origins whose pages may connect
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import State

from chatserver.endpoints.origin import check_allowed_origins
from chatserver.endpoints.params import check_routes
from chatserver.hub import Hub
from chatserver.limits import COUNTS, LIMITS

__all__ = ["hub_of", "lifespan", "state_of"]

#: The state of endpoints that are served by themselves, or by a router without application.
_WITHOUT_APPLICATION = State()
_lock = threading.Lock()


def state_of(app: Any) -> Any:
    """The state of an application, or that of all endpoints which have none."""
    return getattr(app, "state", _WITHOUT_APPLICATION)


def hub_of(app: Any) -> Hub:
    """The hub of an application: its `app.state.hub`.

    An application that has set none up gets one of its own in memory, on first use.
    """
    state = state_of(app)
    with _lock:
        hub: Hub | None = getattr(state, "hub", None)
        if hub is None:
            hub = state.hub = Hub()
        return hub


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """The lifespan of an application with endpoints: `Starlette(..., lifespan=lifespan)`.

    Checks at the start that each `FromPath` stands in its route, and sets up `app.state.hub`
    where there is none. What it yields tells the server of the hub's limits; a lifespan of your
    own hands it on: `async with lifespan(app) as state: yield state`.

    Raises:
        TypeError: A `FromPath` is absent from its route, or `app.state.allowed_origins` is a str.
    """
    check_routes(app.routes)
    check_allowed_origins(getattr(app.state, "allowed_origins", ()), "app.state.allowed_origins")
    hub = hub_of(app)
    yield {LIMITS: hub.limits, COUNTS: hub.counts}
