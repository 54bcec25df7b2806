"""Authentication: the credentials of a handshake, and the identity that a token stands for.

    verifier = Verifier(secret=settings.token_secret)
    for found in credentials(websocket):                # header, cookie, subprotocol, query
        identity = await verifier.verify(found.value)   # or InvalidToken
    identity.may("item:foo")

`Verifier` and `mint` are imported on first use, so that an application without tokens doesn't wait
for the packages that they import.
"""

from typing import TYPE_CHECKING, Any

from chatserver.auth.credentials import Credential, credential, credentials
from chatserver.auth.identity import (
    ANONYMOUS,
    OPEN_MODE,
    OPEN_ON_LOOPBACK,
    Identity,
    OpenMode,
    VerifiesTokens,
    user_of,
)

if TYPE_CHECKING:
    from chatserver.auth.tokens import Verifier, mint

__all__ = [
    "ANONYMOUS",
    "OPEN_MODE",
    "OPEN_ON_LOOPBACK",
    "Credential",
    "Identity",
    "OpenMode",
    "Verifier",
    "VerifiesTokens",
    "credential",
    "credentials",
    "mint",
    "user_of",
]


def __getattr__(name: str) -> Any:
    if name in ("Verifier", "mint"):
        from chatserver.auth import tokens

        return getattr(tokens, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
