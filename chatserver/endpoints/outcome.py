"""What an exception means for a connection: how it ends, and whose fault that is."""

import asyncio

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from chatserver.errors import InvalidToken, KeysUnavailable, PeerError, close_code_for_status

__all__ = ["as_refusal", "close_for", "is_departure", "is_ours"]


def is_departure(error: BaseException) -> bool:
    """Whether this only says that the client is gone: the normal end of a busy handler."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_departure(inner) for inner in error.exceptions)
    return isinstance(error, WebSocketDisconnect | WebSocketDisconnected)


def is_ours(error: BaseException) -> bool:
    """Whether this is a fault of the server's side, to be raised and logged with a traceback."""
    peer = (PeerError, HTTPException, WebSocketException, WebSocketDisconnect)
    return not isinstance(error, peer)


def close_for(error: BaseException) -> tuple[int, str]:
    """The close code and reason by which an accepted connection ends with this exception."""
    match error:
        case PeerError() | WebSocketException() | WebSocketDisconnect():
            return error.code, error.reason
        case HTTPException():
            return close_code_for_status(error.status_code), error.detail
        case asyncio.CancelledError():
            return 1012, "the server is stopping"
        case _:
            return 1011, "internal error"


def as_refusal(error: BaseException | None) -> HTTPException | WebSocketException | None:
    """The refusal of a handshake that this exception asks for; None where it is a fault."""
    match error:
        case HTTPException() | WebSocketException():
            return error
        case InvalidToken(status=401):
            return HTTPException(401, error.reason, headers={"WWW-Authenticate": "Bearer"})
        case PeerError():
            return HTTPException(error.status, error.reason)
        case KeysUnavailable():
            # Its text is for the log: it may tell of our own network.
            return HTTPException(503, "tokens can't be verified right now, try again later")
        case _:
            return None
