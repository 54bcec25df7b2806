"""Keys that verify and can't sign: a public key, or a key set behind a URL (RFC 7517).

They need the package cryptography, which comes with the extra `jwt`.
"""

import time
from collections.abc import Sequence
from typing import Any

import anyio
import jwt
from anyio.lowlevel import RunVar
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from chatserver.errors import InvalidSetting, InvalidToken, KeysUnavailable

__all__ = ["KeySet", "load_public_key"]

FETCH_TIMEOUT = 5.0  # seconds for each read from the key server
FETCH_PAUSE = 30.0  # seconds after a fetch in which an unknown key causes no further fetch
RETRY_PAUSE = 5.0  # seconds after a failed fetch in which there is no further fetch

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ELLIPTIC = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ASYMMETRIC = frozenset((*RSA, *ELLIPTIC.values(), "EdDSA"))


def load_public_key(pem: str) -> tuple[Any, Sequence[str]]:
    """The key, and the algorithms that are allowed for its type."""
    try:
        key = load_pem_public_key(pem.encode())
    except Exception:  # cryptography raises several types, and quotes what it read
        raise InvalidSetting("Expected a public key as PEM text, but got something else.") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:  # RFC 7518, section 3.3
        return key, RSA
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ELLIPTIC:
        return key, (ELLIPTIC[key.curve.name],)
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return key, ("EdDSA",)
    raise InvalidSetting(
        "Expected the token's public key to be RSA (2048 bits or more), P-256, P-384, P-521 or "
        f"Ed25519, but got {type(key).__name__} of {getattr(key, 'key_size', 0)} bits."
    )


# One fetch at a time per event loop, so that waiting tasks don't use up its worker threads.
_fetching: RunVar[anyio.CapacityLimiter] = RunVar("chatserver-key-fetching")


class KeySet(jwt.PyJWKClient):
    """A key set behind a URL. A flood of tokens causes no flood of fetches.

    PyJWKClient caches the set for 300 s, and pauses after a fetch that succeeded. This class adds
    a pause after a fetch that failed, uses no worker thread for cached keys, and raises
    exceptions that say whose fault it is.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=FETCH_TIMEOUT, cooldown_duration=FETCH_PAUSE)
        self._no_fetch_before = 0.0  # on the monotonic clock

    async def find(self, kid: str | None) -> jwt.PyJWK:
        """The key with this id.

        Raises:
            InvalidToken: There is no such key.
            InvalidAlgorithmError: Its algorithm would let clients forge tokens.
            KeysUnavailable: The set could not be fetched.
        """
        if not kid:
            raise InvalidToken("The token does not say which key (kid) signed it.")
        key = self._at_hand(kid) or await self._looked_up(kid)
        if key.algorithm_name not in ASYMMETRIC:
            raise jwt.InvalidAlgorithmError
        return key

    def _at_hand(self, kid: str) -> jwt.PyJWK | None:
        cached = self.jwk_set_cache.get() if self.jwk_set_cache else None
        signing = [key for key in cached or () if key.public_key_use in ("sig", None)]
        return self.match_kid(signing, kid)

    async def _looked_up(self, kid: str) -> jwt.PyJWK:
        try:
            limiter = _fetching.get()
        except LookupError:
            _fetching.set(limiter := anyio.CapacityLimiter(1))
        try:
            return await anyio.to_thread.run_sync(
                self.get_signing_key, kid, abandon_on_cancel=True, limiter=limiter
            )
        except jwt.PyJWKClientError:
            raise InvalidToken("The token was signed with a key that is not known here.") from None

    def fetch_data(self) -> Any:
        """Fetch the set, unless a fetch failed less than `RETRY_PAUSE` ago.

        Raises:
            KeysUnavailable: It could not be fetched.
        """
        if time.monotonic() < self._no_fetch_before:
            raise KeysUnavailable("The key set could not be fetched a moment ago.")
        try:
            return super().fetch_data()
        except Exception as error:  # no answer, no JSON, no keys: the same for the client
            self._no_fetch_before = time.monotonic() + RETRY_PAUSE
            raise KeysUnavailable(f"The key set could not be fetched: {error}") from error
