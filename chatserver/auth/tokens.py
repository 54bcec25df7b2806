"""Tokens: verifying one, and making one.

    verifier = Verifier(secret=settings.token_secret)
    identity = await verifier.verify(token)             # or InvalidToken
    identity.may("item:foo")

A token is a JSON Web Token (RFC 7519). It must name a user (`sub`) and an end (`exp`); the claim
`channels` lists the channels that it opens, and without that claim it opens all. Nothing in a token
decides how it is verified: the type of our key does, so `none` and a public key used as an HMAC
secret (RFC 8725, section 2.1) are refused.

This module imports PyJWT, and cryptography if it is installed. That takes a while, so nothing
imports this module before a token is verified or made.
"""

import math
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jwt

from chatserver.auth.credentials import MAX_TOKEN_LENGTH
from chatserver.auth.identity import Identity
from chatserver.errors import InvalidSetting, InvalidToken

if TYPE_CHECKING:
    from chatserver.auth.keys import KeySet

__all__ = ["Verifier", "mint"]

MIN_SECRET_BYTES = 32  # a key at least as long as its hash: RFC 7518, section 3.2
MAX_EXPIRY = 253402300799  # the last second of the year 9999, the last that datetime can hold
MAX_LEEWAY = 300  # seconds: "usually no more than a few minutes", RFC 7519, section 4.1.4
NEEDS_EXTRA = (
    "Public keys and key sets need the package cryptography: "
    "pip install 'starlette-chatserver[jwt]'."
)

SURROGATE = re.compile("[\ud800-\udfff]")

REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidAudienceError, "The token is meant for another audience."),
    (jwt.InvalidIssuerError, "The token comes from another issuer."),
    (jwt.InvalidAlgorithmError, "The token is signed with an algorithm that is not used here."),
    (jwt.InvalidSignatureError, "The token's signature does not match."),
)
"""Our own sentences, because PyJWT's may quote the token."""


class Verifier:
    """Verifies tokens with one key: a secret, a public key or a key set.

    Args:
        secret: Shared secret of at least 32 bytes; tokens are HS256.
        public_key: PEM text; its type decides the algorithms (RS*, PS*, ES* of its curve, EdDSA).
        jwks_url: The URL of a key set (RFC 7517). It is fetched in a worker thread, and at most
            every 30 s for unknown keys; each key decides its algorithm, never HS*.
        audience: The audience that `aud` must name. If None, a token with any audience is
            refused, because it was made for another service.
        issuer: The value that `iss` must have; None allows any.
        claim: The claim that lists the channels.
        leeway: Seconds by which `exp` may be past, and `nbf` and `iat` in the future, because
            clocks differ; at most 300.

    Raises:
        InvalidSetting: There is not exactly one key, or the key or the leeway can't be used.
    """

    def __init__(
        self,
        *,
        secret: str | None = None,
        public_key: str | None = None,
        jwks_url: str | None = None,
        audience: str | None = None,
        issuer: str | None = None,
        claim: str = "channels",
        leeway: float = 10.0,
    ) -> None:
        if [secret, public_key, jwks_url].count(None) != 2:
            raise InvalidSetting("A verifier takes one of secret, public_key and jwks_url.")
        if not 0 <= leeway <= MAX_LEEWAY:
            raise InvalidSetting(
                f"Expected a leeway of 0 to {MAX_LEEWAY} seconds, but got {leeway!r}."
            )
        self._audience, self._issuer, self._claim = audience, issuer, claim
        self._leeway = leeway
        self._keys: KeySet | None = None
        self._key: Any = None
        self._algorithms: Sequence[str] = ()
        if secret is not None:
            self._key, self._algorithms = _checked_secret(secret), ("HS256",)
            return
        try:
            from chatserver.auth import keys
        except ImportError:
            raise InvalidSetting(NEEDS_EXTRA) from None
        if public_key is not None:
            self._key, self._algorithms = keys.load_public_key(public_key)
        elif jwks_url is not None:
            self._keys = keys.KeySet(jwks_url)

    async def verify(self, token: str) -> Identity:
        """Verify a token, which may be any text from any client.

        Any other exception is a fault of ours, such as a key that is too short for its
        algorithm; the client isn't told of it.

        Raises:
            InvalidToken: It is not valid; the reason never quotes it.
            KeysUnavailable: The key set can't be fetched, which is not the client's fault.
        """
        if not token:
            raise InvalidToken("Expected a token, but got none.")
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise InvalidToken(f"Expected a token of at most {MAX_TOKEN_LENGTH} ASCII characters.")
        try:
            key, algorithms = await self._key_for(token)
            claims = self._decode(token, key, algorithms)
        except jwt.InvalidTokenError as error:
            raise InvalidToken(_reason(error)) from None
        return self._identity(claims)

    async def _key_for(self, token: str) -> tuple[Any, Sequence[str]]:
        if self._keys is None:
            return self._key, self._algorithms
        key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
        return key, [key.algorithm_name]

    def _decode(self, token: str, key: Any, algorithms: Sequence[str]) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            audience=self._audience,
            issuer=self._issuer,
            leeway=self._leeway,
            # The user is checked in _identity, more strictly.
            options={
                "require": ["exp", "sub"],
                "verify_sub": False,
                "enforce_minimum_key_length": True,
            },
        )

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user, channels = claims["sub"], None
        if not _is_text(user):
            raise InvalidToken("Expected the token's user (sub) to be a text that is not empty.")
        if self._claim in claims:
            listed = claims[self._claim]
            if not (isinstance(listed, list) and all(map(_is_text, listed))):
                raise InvalidToken(f"Expected the token's {self._claim} to be a list of texts.")
            channels = frozenset(listed)
        return Identity(user, _expiry(claims["exp"]) + self._leeway, channels, claims)


def _is_text(value: Any) -> bool:
    """Whether it is a text that can be sent: JSON allows lone surrogates, UTF-8 doesn't."""
    return isinstance(value, str) and bool(value) and not SURROGATE.search(value)


def _expiry(value: Any) -> float:
    """Check `exp`: PyJWT accepts the text "99" and 1e400, too; RFC 7519 asks for seconds."""
    if not (isinstance(value, int | float) and 0 < value <= MAX_EXPIRY):
        raise InvalidToken("Expected the token's end (exp) as a number of seconds.")
    return float(value)


def _reason(error: Exception) -> str:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"The token lacks the claim {error.claim}."
    default = "Expected a JSON Web Token, but got something else."
    return next((words for kind, words in REASONS if isinstance(error, kind)), default)


def _checked_secret(secret: str) -> bytes:
    key = secret.encode("utf-8", "surrogateescape")
    if len(key) < MIN_SECRET_BYTES:
        raise InvalidSetting(
            f"Expected a token secret of at least {MIN_SECRET_BYTES} bytes, but got {len(key)}."
        )
    return key


def mint(
    secret: str,
    *,
    user: str,
    ttl_seconds: float,
    channels: Sequence[str] | None = None,
    audience: str | None = None,
    issuer: str | None = None,
    claim: str = "channels",
) -> str:
    """Make a token that a `Verifier` with the same values accepts.

    Args:
        secret: At least 32 bytes.
        user: The user that it names (`sub`).
        ttl_seconds: How long it is valid from now on; more than 0.
        channels: The channels that it opens; None for all, an empty list for none.
        audience: Its `aud`, if any.
        issuer: Its `iss`, if any.
        claim: The claim that lists the channels.

    Raises:
        InvalidSetting: The secret is too short.
        ValueError: The user is empty, or the end is in the past or after the year 9999.
    """
    now = time.time()
    if not _is_text(user):
        raise ValueError("expected a user that is not empty")
    if not (ttl_seconds > 0 and now + ttl_seconds <= MAX_EXPIRY):
        raise ValueError(f"expected a lifetime of more than 0 s, but got {ttl_seconds} s")
    claims: dict[str, Any] = {"sub": user, "iat": int(now), "exp": math.ceil(now + ttl_seconds)}
    optional = {"aud": audience, "iss": issuer, claim: None if channels is None else list(channels)}
    claims |= {name: value for name, value in optional.items() if value is not None}
    return jwt.encode(claims, _checked_secret(secret), algorithm="HS256")
