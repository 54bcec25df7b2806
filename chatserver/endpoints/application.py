"""What endpoints find in the application that they are part of: in `app.state`.

hub                 the hub; set up on first use, or at the start by `lifespan`
verifier            verifies tokens, or says that any will do: `OPEN_MODE`
allowed_origins     foreign origins whose pages may connect

What a mounted application does not have, it has from those that it is mounted in.
"""

import asyncio
import ipaddress
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.types import Scope

from chatserver.auth import OpenMode, VerifiesTokens
from chatserver.endpoints.internals import outer_applications
from chatserver.endpoints.origin import check_allowed_origins
from chatserver.endpoints.params import check_routes
from chatserver.endpoints.plain import answer_plain_requests
from chatserver.errors import VerifierMissing
from chatserver.hub import ADMISSION, Hub

__all__ = ["ENDING", "hub_in", "hub_of", "lifespan", "note_outer", "setting_of", "verifier_of"]

#: The state of endpoints that are served by themselves, or by a router without application.
_WITHOUT_APPLICATION = State()
_lock = threading.Lock()

#: Where a handshake's scope keeps the applications around the one in `scope["app"]`.
OUTER = "chatserver.outer"
#: Connections that have left the hub, and whose `on_disconnect` has not returned yet.
ENDING: set[object] = set()
#: Seconds for which an application that stops waits for these.
LAST_WORDS = 1.0

HOW_TO_VERIFY = """\
{name} asks for a token, and its application does not say how tokens are verified. Write
    app.state.verifier = Verifier(...)        or configure(app), with CHATSERVER_TOKEN_SECRET set
or, where any token may pass,
    app.state.verifier = OPEN_MODE"""
ONLY_LOOPBACK = """\
{name} asks for a token, and the settings hold no key that verifies it. That is open mode, but only
for clients of this machine; this one came to {host}. Set
    CHATSERVER_TOKEN_SECRET=...
or, where any token may pass,
    CHATSERVER_OPEN_TO_NETWORK=on"""


def note_outer(scope: Scope) -> None:
    """Note the applications around that of this handshake, for the other functions.

    To be called first, in the task in which the application was called.
    """
    if outer := outer_applications(scope):
        scope[OUTER] = outer


def _states(scope: Scope) -> Iterator[Any]:
    """The states of the applications that a handshake came through, the innermost first."""
    yield _state_of(scope.get("app"))
    yield from (app.state for app in scope.get(OUTER, ()))


def _state_of(app: Any) -> Any:
    """The state of an application, or that of all endpoints which have none."""
    return getattr(app, "state", _WITHOUT_APPLICATION)


def setting_of(scope: Scope, name: str, default: Any) -> Any:
    """What stands under a name in the state of the application that a handshake came to.

    Where there is nothing, or None, that of the application around it counts.
    """
    values = (getattr(state, name, None) for state in _states(scope))
    return next((value for value in values if value is not None), default)


def verifier_of(scope: Scope, name: str) -> VerifiesTokens:
    """What verifies the tokens of a handshake.

    An application that lets any token pass does not do so inside one that verifies them.

    Args:
        scope: The handshake's.
        name: The endpoint's, for the sentence.

    Raises:
        VerifierMissing: No application says how; or the settings let any token pass, but only
            from this machine.
    """
    found: list[VerifiesTokens] = [
        verifier
        for state in _states(scope)
        if (verifier := getattr(state, "verifier", None)) is not None
    ]
    if not found:
        raise VerifierMissing(HOW_TO_VERIFY.format(name=name))
    strict = (verifier for verifier in found if not isinstance(verifier, OpenMode))
    verifier = next(strict, found[0])
    if isinstance(verifier, OpenMode) and verifier.loopback_only:
        host, _port = scope.get("server") or ("", None)
        if not _is_local(host):
            raise VerifierMissing(ONLY_LOOPBACK.format(name=name, host=host))
    return verifier


def _is_local(host: str) -> bool:
    """Whether the address that a client came to can't be reached from other machines."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True  # a socket in the file system, or a test client


def hub_in(scope: Scope) -> Hub:
    """The hub for a handshake: its application's, or else that of those around it.

    Where none has one, the outermost gets one in memory.
    """
    outer = scope.get(OUTER, ())
    hub: Hub | None = setting_of(scope, "hub", None)
    return hub or hub_of(outer[-1] if outer else scope.get("app"))


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
    there is none, and connects its broker; at the end it lets the broker go. A plain request for
    an endpoint's path is answered with 426. What it yields tells
    the server of the hub's limits; a lifespan of your own hands it on:
    `async with lifespan(app) as state: yield state`.

    Raises:
        TypeError: A `FromPath` is absent from its route, or `app.state.allowed_origins` is a str.
        BrokerUnavailable: The broker can't be had; one sentence says why.
    """
    check_routes(app.routes)
    answer_plain_requests(app)
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
