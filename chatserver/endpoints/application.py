"""What endpoints find in the application that they are part of: in `app.state`.

hub                 the hub; set up on first use, or at the start by `lifespan`
verifier            verifies tokens; without one any non-empty token passes
allowed_origins     foreign origins whose pages may connect
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.types import Scope

from chatserver.endpoints.origin import check_allowed_origins
from chatserver.endpoints.params import check_routes
from chatserver.hub import ADMISSION, Hub

__all__ = ["ENDING", "hub_of", "lifespan", "setting_of"]

#: The state of endpoints that are served by themselves, or by a router without application.
_WITHOUT_APPLICATION = State()
_lock = threading.Lock()

#: Connections that have left the hub, and whose `on_disconnect` has not returned yet.
ENDING: set[object] = set()
#: Seconds for which an application that stops waits for these.
LAST_WORDS = 1.0


def _state_of(app: Any) -> Any:
    """The state of an application, or that of all endpoints which have none."""
    return getattr(app, "state", _WITHOUT_APPLICATION)


def setting_of(scope: Scope, name: str, default: Any) -> Any:
    """What stands under a name in the state of the application that a connection came to."""
    return getattr(_state_of(scope.get("app")), name, default)


def hub_of(app: Any) -> Hub:
    """The hub of an application: its `app.state.hub`.

    An application that has set none up gets one of its own in memory, on first use.
    """
    state = _state_of(app)
    hub: Hub | None = getattr(state, "hub", None)
    if hub is None:
        with _lock:
            # Another thread may have been quicker.
            hub = getattr(state, "hub", None) or Hub()
            state.hub = hub
    return hub


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """The lifespan of an application with endpoints: `Starlette(..., lifespan=lifespan)`.

    Checks at the start that each `FromPath` stands in its route, sets up `app.state.hub` where
    there is none, and connects its broker; at the end it lets the broker go. What it yields tells
    the server of the hub's limits; a lifespan of your own hands it on:
    `async with lifespan(app) as state: yield state`.

    Raises:
        TypeError: A `FromPath` is absent from its route, or `app.state.allowed_origins` is a str.
        BrokerUnavailable: The broker can't be had; one sentence says why.
    """
    check_routes(app.routes)
    check_allowed_origins(getattr(app.state, "allowed_origins", ()), "app.state.allowed_origins")
    hub = hub_of(app)
    await hub.start()
    try:
        yield {ADMISSION: hub.admission}
    finally:
        await _last_words(hub)
        await hub.stop()


async def _last_words(hub: Hub) -> None:
    """Wait for connections to end that the server has cancelled when its grace was over.

    uvicorn doesn't wait for them, and closes the event loop as soon as the application has
    stopped.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LAST_WORDS
    # Each end would have to set an event; this is the last second of a process.
    while (ENDING or hub.statistics().connections) and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
