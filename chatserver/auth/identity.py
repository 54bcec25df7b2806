"""Who a connection belongs to, and whether just any token may say so."""

from typing import Any, Protocol

import msgspec

__all__ = ["ANONYMOUS", "OPEN_MODE", "OPEN_ON_LOOPBACK", "Identity", "OpenMode", "VerifiesTokens"]


class Identity(msgspec.Struct, frozen=True):
    """Who a connection belongs to.

    Attributes:
        user: The token's `sub`; never empty.
        expires: Unix time in seconds after which the token is good for nothing: its `exp` and
            the verifier's leeway. None is never.
        channels: The channels the token opens; None is every one.
        claims: All that the token says.
    """

    user: str
    expires: float | None = None
    channels: frozenset[str] | None = None
    claims: dict[str, Any] = {}

    def may(self, channel: str) -> bool:
        """Whether the token opens this channel (an exact match; there are no patterns)."""
        return self.channels is None or channel in self.channels


ANONYMOUS = Identity(user="anonymous")
"""Everyone in open mode, where no token is verified: nobody in particular, so not one user.

Tell it by `identity is ANONYMOUS`; a token may name a user "anonymous".
"""


class VerifiesTokens(Protocol):
    """What `app.state.verifier` is: a `Verifier`, `OPEN_MODE`, or something of your own."""

    async def verify(self, token: str) -> Identity:
        """Say whom a token stands for.

        Raises:
            InvalidToken: It will not do.
            KeysUnavailable: It can't be verified now.
        """
        ...


class OpenMode:
    """Takes any token for nobody's in particular.

    Args:
        loopback_only: Whether only on addresses that no other machine can reach.
    """

    def __init__(self, *, loopback_only: bool = False) -> None:
        self.loopback_only = loopback_only

    async def verify(self, token: str) -> Identity:
        """Everyone is `ANONYMOUS`."""
        return ANONYMOUS


OPEN_MODE = OpenMode()
"""`app.state.verifier = OPEN_MODE` lets any token pass that is not empty."""

OPEN_ON_LOOPBACK = OpenMode(loopback_only=True)
"""What the settings mean that say nothing of tokens: open to this machine, closed to others."""
