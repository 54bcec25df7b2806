"""The exceptions of the package, and the one table of close codes.

    ChatServerError
    ├── PeerError               the client's fault: a close code or HTTP status, one log line
    │   ├── InvalidHandshake    a handshake value or origin that is not valid
    │   ├── InvalidFrame        a frame that breaks the WebSocket protocol
    │   ├── InvalidMessage      a message that can't be decoded
    │   ├── InvalidToken        a token that is missing, invalid, expired or for other channels
    │   ├── TooManyChannels     of one connection: HTTP 429
    │   └── TooManyConnections  of one user: HTTP 429
    ├── BrokerUnavailable       it is not certain that the broker has a publication
    ├── KeysUnavailable         the keys that verify tokens can't be fetched: HTTP 503
    ├── VerifierMissing         the application has no verifier for tokens: HTTP 503
    └── InvalidSetting          a setting that can't be used; the sentence names it

The type says whose fault it is. A `PeerError` never prints a traceback.
"""

from typing import Literal, NamedTuple

__all__ = [
    "CLOSE_CODES",
    "BrokerUnavailable",
    "ChatServerError",
    "CloseCode",
    "InvalidFrame",
    "InvalidHandshake",
    "InvalidMessage",
    "InvalidSetting",
    "InvalidToken",
    "KeysUnavailable",
    "PeerError",
    "TooManyChannels",
    "TooManyConnections",
    "VerifierMissing",
    "can_be_sent",
    "close_code_for_status",
    "close_reason",
]


class ChatServerError(Exception):
    """The root of every exception that this package raises on purpose."""


class PeerError(ChatServerError):
    """The client did something wrong; the reason is sent to it.

    Attributes:
        reason: What was expected and what came, in words for the client.
        code: The close code, after the connection is accepted.
        status: The HTTP status, before it is accepted.
    """

    code: int = 1008
    status: int = 403

    def __init__(self, reason: str, *, code: int | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class InvalidHandshake(PeerError):
    """A value of the handshake (path, query, header, cookie) could not be used."""

    code = 4422
    status = 422


class InvalidFrame(PeerError):
    """A frame breaks the protocol (1002), is not UTF-8 (1007), or exceeds a limit (1008, 1009)."""

    code = 1002


class InvalidMessage(PeerError):
    """A message can't be decoded: wrong frame type (1003), bad UTF-8, JSON or shape (1007).

    Attributes:
        id: The id that the client gave its message, for the answer; None without one.
    """

    code = 1007
    id: str | int | None = None


class InvalidToken(PeerError):
    """A token was refused; `reason` says why and never holds the token itself."""

    code = 4401
    status = 401


class TooManyChannels(PeerError):
    """One connection asked for more channels than the limits allow."""

    code = 4429
    status = 429


class TooManyConnections(PeerError):
    """A user has reached the limit of connections."""

    code = 4429
    status = 429


class BrokerUnavailable(ChatServerError):
    """It is not certain that the broker has stored a publication; it was not acknowledged."""


class KeysUnavailable(ChatServerError):
    """The keys that verify tokens could not be fetched; the client may try again later."""


class VerifierMissing(ChatServerError):
    """An endpoint asks for a token, and its application has no verifier."""


class InvalidSetting(ChatServerError):
    """A setting can't be used; the message is one sentence that names it and says what to do."""


class CloseCode(NamedTuple):
    """One row of the table of close codes.

    Attributes:
        code: The number on the wire (RFC 6455, section 7.4).
        meaning: What happened, in words for a person.
        retry: Whether a client should connect again by itself.
        sender: The sides that send it; "nobody" for codes that stand for a missing code.
    """

    code: int
    meaning: str
    retry: bool
    sender: Literal["both", "server", "nobody"]


CLOSE_CODES: dict[int, CloseCode] = {
    row.code: row
    for row in (
        CloseCode(1000, "Closed normally.", False, "both"),
        CloseCode(1001, "The other side is going away.", True, "both"),
        CloseCode(1002, "The other side broke the WebSocket protocol.", False, "both"),
        CloseCode(1003, "That type of frame is not accepted here.", False, "server"),
        CloseCode(1005, "Closed without saying why.", True, "nobody"),
        CloseCode(1006, "The connection was lost or refused.", True, "nobody"),
        CloseCode(1007, "The message could not be read.", False, "server"),
        CloseCode(1008, "Not allowed.", False, "server"),
        CloseCode(1009, "The message is too big.", False, "server"),
        CloseCode(1011, "The server ran into an error.", True, "server"),
        CloseCode(1012, "The server is restarting.", True, "server"),
        CloseCode(
            1013,
            "This client read too slowly, or the server can't serve it now: try again.",
            True,
            "server",
        ),
        CloseCode(4401, "The token is missing, wrong or expired.", False, "server"),
        CloseCode(4403, "This origin or token may not do that.", False, "server"),
        CloseCode(4408, "The handshake took too long.", True, "server"),
        CloseCode(4422, "A value of the address can't be used.", False, "server"),
        CloseCode(
            4429,
            "There are too many connections of this user, or channels of this client.",
            True,
            "server",
        ),
        CloseCode(4503, "The server can't let anybody in now: try again.", True, "server"),
    )
}


def close_code_for_status(status: int) -> int:
    """The close code that stands for an HTTP status once the connection is accepted.

    >>> close_code_for_status(401)
    4401
    """
    return 4000 + status


def close_reason(text: object) -> str:
    """Cut a reason to the 123 bytes of UTF-8 that a close frame can hold (RFC 6455, 5.5).

    A reason that is not a text is converted by `str`: an `HTTPException` may have a dict.

    >>> len(close_reason("é" * 100).encode())
    122
    """
    return str(text).encode("utf-8", "replace")[:123].decode("utf-8", "ignore")


def can_be_sent(code: int) -> bool:
    """Whether a close frame may hold this code (RFC 6455, 7.4; the registry up to 1014).

    >>> can_be_sent(1000), can_be_sent(1006)
    (True, False)
    """
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
