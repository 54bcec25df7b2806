"""The user behind a connection, and open mode, in which any token passes."""

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

import msgspec

__all__ = [
    "ANONYMOUS",
    "OPEN_MODE",
    "OPEN_ON_LOOPBACK",
    "Identity",
    "OpenMode",
    "VerifiesTokens",
    "user_of",
]


class Identity(msgspec.Struct, frozen=True):
    """The user behind a connection, as a token names it.

    Attributes:
        user: The token's `sub`; never empty.
        expires: Unix time in seconds at which the token stops being valid: its `exp` plus the
            verifier's leeway. None for never.
        channels: The channels that the token opens; None for all.
        claims: All claims of the token.
    """

    user: str
    expires: float | None = None
    channels: frozenset[str] | None = None
    claims: dict[str, Any] = {}

    def may(self, channel: str) -> bool:
        """Whether the token opens this channel: names are compared exactly, without patterns."""
        return self.channels is None or channel in self.channels


ANONYMOUS = Identity(user="anonymous")
"""The identity of all clients in open mode, where no token is verified. It is not one user.

Compare with `identity is ANONYMOUS`, because a token may name a user "anonymous".
"""


#: Where the name of a user stands, in a dict or an object; the first one counts.
_NAMES = ("username", "user", "sub", "id", "name")


def user_of(found: Any) -> str:
    """The name of a user, by which its connections are known to be one user's.

    Args:
        found: What a class's `authenticate` has returned: an `Identity`, a text, a number or
            UUID, or a dict or object with one of these as its `username`, `user`, `sub`, `id`
            or `name`, the first that it has.

    Returns:
        The name; empty for `ANONYMOUS`, and where there is none.
    """
    if found is None or found is ANONYMOUS:
        return ""
    if isinstance(found, Identity):
        return found.user
    if name := _as_name(found):
        return name
    candidates = (_read(found, name) for name in _NAMES)
    return next(filter(None, map(_as_name, candidates)), "")


def _as_name(value: Any) -> str:
    is_name = isinstance(value, str | int | UUID) and not isinstance(value, bool)
    return str(value) if is_name else ""


def _read(found: Any, name: str) -> Any:
    if isinstance(found, Mapping):
        return found.get(name)
    try:
        return getattr(found, name, None)
    except Exception:  # a property that fails, as of a database object whose session is closed
        return None


class VerifiesTokens(Protocol):
    """The type of `app.state.verifier`: a `Verifier`, `OPEN_MODE`, or a class of your own."""

    async def verify(self, token: str) -> Identity | None:
        """The identity that a token stands for; None refuses the token.

        Raises:
            InvalidToken: The token is not valid.
            KeysUnavailable: The keys that verify it can't be fetched now.
        """
        ...


class OpenMode:
    """Accepts any token, as `ANONYMOUS`.

    Args:
        loopback_only: Whether only for clients of this machine.
    """

    def __init__(self, *, loopback_only: bool = False) -> None:
        self.loopback_only = loopback_only

    async def verify(self, token: str) -> Identity:
        """Accept it: the client is `ANONYMOUS`."""
        return ANONYMOUS


OPEN_MODE = OpenMode()
"""`app.state.verifier = OPEN_MODE` lets any non-empty token pass."""

OPEN_ON_LOOPBACK = OpenMode(loopback_only=True)
"""What settings without a key for tokens mean: open mode for clients of this machine only."""
