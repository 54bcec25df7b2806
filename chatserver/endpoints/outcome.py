"""What an exception means for a connection: how it ends, and whose fault it is."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from chatserver.endpoints.internals import DEPARTURES
from chatserver.errors import (
    BrokerUnavailable,
    InvalidToken,
    KeysUnavailable,
    PeerError,
    VerifierMissing,
    close_code_for_status,
)

__all__ = [
    "OutageLog",
    "as_refusal",
    "close_for",
    "fault_of",
    "is_departure",
    "is_expected",
    "is_ours",
    "is_outage",
    "one_line",
    "root_of",
]

logger: logging.Logger = logging.getLogger("chatserver")

#: What a client is told of an outage. The exception's own text may reveal our network.
TRY_AGAIN = "the server is not available right now, try again later"

OUTAGES = (BrokerUnavailable, KeysUnavailable, VerifierMissing)


def fault_of(error: BaseException, task: asyncio.Task[Any] | None) -> BaseException:
    """The fault that a cancellation is if it was not this task that was cancelled.

    Args:
        error: What the task's code has raised.
        task: The task.

    Returns:
        The error itself, or for a `CancelledError` that came of what the task awaited, such as a
        future that others have cancelled, a `RuntimeError` that says so.
    """
    if not isinstance(error, asyncio.CancelledError) or task is None or task.cancelling():
        return error
    fault = RuntimeError("what it awaited was cancelled")
    fault.__cause__ = error
    return fault


def is_departure(error: BaseException) -> bool:
    """Whether the error only says that the client is gone: the normal end of a busy handler."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_departure(inner) for inner in error.exceptions)
    return isinstance(error, DEPARTURES)


def is_expected(error: BaseException) -> bool:
    """Whether a handler may end like this after its connection has ended, or `linger` is over."""
    return is_departure(error) or isinstance(error, asyncio.CancelledError)


def is_ours(error: BaseException) -> bool:
    """Whether it is a fault of the server's side, to be raised and logged with a traceback."""
    peer = (PeerError, HTTPException, WebSocketException, WebSocketDisconnect)
    return not isinstance(error, peer) and not is_outage(error)


def root_of(error: BaseException) -> BaseException:
    """The exception that counts: where task groups wrap a single exception, that one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def is_outage(error: BaseException) -> bool:
    """Whether something that we depend on is unavailable: temporary, and no client's fault."""
    return isinstance(error, OUTAGES)


def close_for(error: BaseException) -> tuple[int, str]:
    """The close code and reason with which this exception ends an accepted connection."""
    match error:
        case PeerError() | WebSocketException() | WebSocketDisconnect():
            return error.code, error.reason
        case HTTPException():
            return close_code_for_status(error.status_code), error.detail
        case asyncio.CancelledError():
            return 1012, "the server is stopping"
        case _ if is_outage(error):
            return 1013, TRY_AGAIN
        case _:
            return 1011, "internal error"


def as_refusal(error: BaseException | None) -> HTTPException | WebSocketException | None:
    """The refusal of a handshake that this exception asks for; None if it is a fault."""
    match error:
        case HTTPException() | WebSocketException():
            return error
        case InvalidToken(status=401):
            return HTTPException(401, error.reason, headers={"WWW-Authenticate": "Bearer"})
        case PeerError():
            return HTTPException(error.status, error.reason)
        case BaseException() if is_outage(error):
            return HTTPException(503, TRY_AGAIN)
        case _:
            return None


def one_line(text: object) -> str:
    """A text for the log: line breaks and other controls escaped, 300 characters at most."""
    shown = str(text)[:300]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


class OutageLog:
    """Logs outages, which thousands of connections notice at once: one line a minute per kind.

    Args:
        interval: Seconds between two lines.
        clock: Returns the time in seconds.
    """

    def __init__(self, interval: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        # Per kind: when its last line was written, and how many were left out since.
        self._told: dict[type, tuple[float, int]] = {}

    def log(self, error: BaseException) -> None:
        """Log an outage, unless one of its kind was logged less than `interval` ago."""
        kind, now = type(error), self._clock()
        last, left_out = self._told.get(kind, (-math.inf, 0))
        if now - last < self._interval:
            self._told[kind] = last, left_out + 1
            return
        self._told[kind] = now, 0
        more = f" ({left_out} times more since the last line)" if left_out else ""
        logger.error("%s: %s%s", kind.__name__, error, more)
