"""What an endpoint reads from its application: `app.state`.

hub                 the hub; set up on first use, or at the start by `lifespan`
verifier            verifies tokens, or lets any token pass: `OPEN_MODE`
allowed_origins     foreign origins whose pages may connect

A mounted application uses its own state; what is missing there is taken from the applications
that it is mounted in.
"""

import asyncio
import logging
import threading
from collections import ChainMap
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.types import Scope

from chatserver.auth import OpenMode, VerifiesTokens
from chatserver.connection import CONNECTION
from chatserver.endpoints.internals import applications_within, outer_applications
from chatserver.endpoints.local import why_not_local
from chatserver.endpoints.occupancy import end_all
from chatserver.endpoints.origin import check_origins
from chatserver.endpoints.plain import answer_plain_requests
from chatserver.endpoints.routes import check_routes
from chatserver.errors import VerifierMissing
from chatserver.hub import ADMISSION, Hub
from chatserver.limits import Limits

__all__ = [
    "ENDING",
    "check_server",
    "hub_in",
    "hub_of",
    "lifespan",
    "note_outer",
    "overrides_of",
    "setting_of",
    "verifier_of",
]

logger: logging.Logger = logging.getLogger("chatserver")

#: The state of endpoints that are served without an application: by themselves or by a router.
_WITHOUT_APPLICATION = State()
_lock = threading.Lock()

#: The applications that have begun their lifespan, by the `id` of their routers.
_by_router: WeakValueDictionary[int, Starlette] = WeakValueDictionary()


#: The hubs whose limits the server doesn't know, and the log says so.
_untold: WeakSet[Hub] = WeakSet()


class _Hidden:
    """Stands for an application around the endpoint that can't be found: it may verify tokens."""

    state = State()


_HIDDEN: Any = _Hidden()

#: The key in a handshake's scope for the applications around the one in `scope["app"]`.
OUTER = "chatserver.outer"
#: Connections that have left the hub while their `on_disconnect` has not returned yet.
ENDING: set[object] = set()
#: Seconds for which a stopping application waits for these connections.
LAST_WORDS = 1.0

HOW_TO_VERIFY = """\
{name} asks for a token, and its application does not say how tokens are verified. Write
    app.state.verifier = Verifier(...)        or configure(app), with CHATSERVER_TOKEN_SECRET set
or, where any token may pass,
    app.state.verifier = OPEN_MODE"""
ONLY_LOOPBACK = """\
{name} asks for a token, and the settings hold no key that verifies it. That is open mode, but only
for clients of this machine; here {why}. Set
    CHATSERVER_TOKEN_SECRET=...
or, where any token may pass,
    CHATSERVER_OPEN_TO_NETWORK=on"""


UNTOLD = """\
The server has the default limits, not those of the application's hub, because no lifespan has told
it of them. Write
    app = FastAPI(lifespan=lifespan)             or Starlette(...), with chatserver's lifespan
or, in a lifespan of your own,
    async with chatserver.lifespan(app) as state:
        yield state"""

HIDDEN = """\
{name} is in open mode, and mounted in an application that can't be found from there, because a
middleware between them begins a task. That application may verify tokens. Give it
    lifespan=lifespan                            from chatserver"""


def note_outer(scope: Scope) -> None:
    """Store the applications around that of this handshake in its scope.

    Call it before the other functions, in the task in which the application was called.
    """
    outer = outer_applications(scope)
    if outer is None:
        # Its lifespan may have told us of it.
        known = _by_router.get(id(scope["router"]))
        outer = (known if known and known.router is scope["router"] else _HIDDEN,)
    if outer:
        scope[OUTER] = outer


def _states(scope: Scope) -> Sequence[Any]:
    """The states of the applications that a handshake passed, the innermost first."""
    own = _state_of(scope.get("app"))
    return (own, *(app.state for app in scope[OUTER])) if OUTER in scope else (own,)


def _state_of(app: Any) -> Any:
    """The state of an application, or the one shared by all endpoints without an application."""
    return getattr(app, "state", _WITHOUT_APPLICATION)


def setting_of(scope: Scope, name: str, default: Any) -> Any:
    """The value of a name in the state of the handshake's application.

    Where it is missing or None, the state of the next application outwards is asked.
    """
    for state in _states(scope):
        value = getattr(state, name, None)
        if value is not None:
            return value
    return default


def verifier_of(scope: Scope, name: str) -> VerifiesTokens:
    """The verifier for the tokens of a handshake.

    Where any of the applications around the endpoint verifies tokens, `OPEN_MODE` is ignored.

    Args:
        scope: The handshake's scope.
        name: The endpoint's name, for the error sentence.

    Raises:
        VerifierMissing: No application has a verifier; or the settings mean open mode on
            loopback only, and the client connected to another address.
    """
    found: list[VerifiesTokens] = [
        verifier
        for state in _states(scope)
        if (verifier := getattr(state, "verifier", None)) is not None
    ]
    if not found:
        raise VerifierMissing(HOW_TO_VERIFY.format(name=name))
    for each in found:
        if not hasattr(each, "verify"):
            kind = type(each).__name__
            raise TypeError(
                f"app.state.verifier must be a Verifier, OPEN_MODE or have a verify(), not a {kind}"
            )
    strict = (verifier for verifier in found if not isinstance(verifier, OpenMode))
    verifier = next(strict, found[0])
    if isinstance(verifier, OpenMode):
        if _HIDDEN in scope.get(OUTER, ()):
            raise VerifierMissing(HIDDEN.format(name=name))
        if verifier.loopback_only and (why := why_not_local(scope)):
            raise VerifierMissing(ONLY_LOOPBACK.format(name=name, why=why))
    return verifier


def hub_in(scope: Scope) -> Hub:
    """The hub for a handshake: its application's, else that of the next application outwards.

    Where none has a hub, the outermost application gets one with a memory broker.
    """
    hub: Hub | None = setting_of(scope, "hub", None)
    apps = (scope.get("app"), *scope.get(OUTER, ()))
    return hub or hub_of([app for app in apps if app is not _HIDDEN][-1])


def check_server(scope: Scope, hub: Hub) -> None:
    """Log, once for a hub, that our server has not been told of its limits."""
    if ADMISSION in scope.get("state", ()) or CONNECTION not in scope.get("extensions", ()):
        return
    if hub.limits != Limits() and hub not in _untold:
        _untold.add(hub)
        logger.warning(UNTOLD)


def overrides_of(scope: Scope) -> Mapping[Any, Any]:
    """What replaces dependencies in a handshake: `dependency_overrides` of its applications.

    FastAPI has that dict; a Starlette application may be given one. The innermost counts.
    """
    apps = (scope.get("app"), *scope.get(OUTER, ()))
    return ChainMap(*filter(None, (getattr(app, "dependency_overrides", None) for app in apps)))


def hub_of(app: Any) -> Hub:
    """The hub of an application: its `app.state.hub`.

    An application without a hub gets one with a memory broker, on first use.
    """
    state = _state_of(app)
    hub: Hub | None = getattr(state, "hub", None)
    if hub is None:
        with _lock:
            # Another thread may have set it meanwhile.
            hub = getattr(state, "hub", None) or Hub()
            state.hub = hub
    return hub


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """The lifespan of an application with endpoints: `Starlette(..., lifespan=lifespan)`.

    At the start it checks that each `FromPath` is in its route, sets `app.state.hub` where there
    is none, and starts the hub's broker; at the end it stops the broker. A plain HTTP request for
    an endpoint's path is answered with 426. The state that it yields carries the hub's limits to
    the server; a lifespan of your own passes it on:
    `async with lifespan(app) as state: yield state`. A mounted application that has no hub gets
    this one's, for its own HTTP routes.

    Raises:
        TypeError: A `FromPath` is not in its route, a dependency of a route calls `identify`, or
            `app.state.allowed_origins` is a str.
        BrokerUnavailable: The broker can't be reached; one sentence says why.
    """
    check_routes(app.routes)
    _by_router[id(app.router)] = app
    answer_plain_requests(app)
    check_origins(getattr(app.state, "allowed_origins", ()), "app.state.allowed_origins")
    hub = hub_of(app)
    for inner in applications_within(app.routes):
        if getattr(inner.state, "hub", None) is None:
            inner.state.hub = hub  # for its HTTP routes
    await hub.start()
    try:
        yield {ADMISSION: hub.admission}
    finally:
        try:
            await _last_words(hub)
            await end_all(hub)
        finally:
            await hub.stop()


async def _last_words(hub: Hub) -> None:
    """Wait for connections whose handlers the server cancelled when its grace period ended.

    uvicorn doesn't wait for them, and closes the event loop as soon as the application has
    stopped.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LAST_WORDS
    # Polling, because an event would have to be set at each end, for the last second of a process.
    while (ENDING or hub.statistics().connections) and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
