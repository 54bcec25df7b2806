"""Who is there: where a token may stand, and whom it stands for.

    verifier = Verifier(secret=settings.token_secret)
    for found in credentials(websocket):                # header, cookie, subprotocol, query
        identity = await verifier.verify(found.value)   # or InvalidToken
    identity.may("item:foo")

Other software has a cookie `session` too, so the first credential need not be the token: whoever
asks for one tries each in order.

A token is a JSON Web Token (RFC 7519). It must name a user (`sub`) and an end (`exp`); the claim
`channels` lists what it opens, and without that claim it opens everything. Nothing in a token
chooses how it is verified: the kind of our key does, so `none` and a public key used as an HMAC
secret (RFC 8725, section 2.1) have no way in.
"""

import base64
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import anyio
import jwt
import msgspec
from anyio.lowlevel import RunVar
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.requests import HTTPConnection

from chatserver.cookies import cookie
from chatserver.errors import InvalidSetting, InvalidToken, KeysUnavailable

__all__ = ["ANONYMOUS", "Credential", "Identity", "Verifier", "credential", "credentials", "mint"]

MIN_SECRET_BYTES = 32  # a key at least as long as its hash: RFC 7518, section 3.2
MAX_TOKEN_LENGTH = 8192  # characters; what a cookie or header may hold in most servers
MAX_EXPIRY = 253402300799  # the last second of the year 9999, as datetime can tell it
MAX_LEEWAY = 300  # seconds: "usually no more than a few minutes", RFC 7519, section 4.1.4
FETCH_TIMEOUT = 5.0  # seconds for each read from the key server
FETCH_PAUSE = 30.0  # seconds after a fetch in which an unknown key causes no other
RETRY_PAUSE = 5.0  # seconds after a failed fetch in which none is tried

SURROGATE = re.compile("[\ud800-\udfff]")
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ELLIPTIC = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ASYMMETRIC = frozenset((*RSA, *ELLIPTIC.values(), "EdDSA"))

REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidAudienceError, "The token is meant for another audience."),
    (jwt.InvalidIssuerError, "The token comes from another issuer."),
    (jwt.InvalidAlgorithmError, "The token is signed with an algorithm that is not used here."),
    (jwt.InvalidSignatureError, "The token's signature does not fit."),
)
"""Our own words: PyJWT's may quote the token."""


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

Source = Literal["authorization", "cookie", "subprotocol", "query"]


class _Header(msgspec.Struct):
    """The header of a token (RFC 7515, section 4.1.1), as far as it tells one from other texts."""

    alg: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A token as it came, not verified; its `repr` does not show it."""

    value: str = field(repr=False)
    source: Source

    @property
    def looks_like_token(self) -> bool:
        """Whether it begins with a header that names an algorithm, as a JSON Web Token does.

        The cookie of Starlette's `SessionMiddleware` does not, though it is JSON in base64 with
        two dots. Says nothing of whether the token is good.
        """
        header, dot, _ = self.value[:MAX_TOKEN_LENGTH].partition(".")
        try:
            # The standard library wants the "=" that a token goes without, and ignores too many.
            msgspec.json.decode(base64.urlsafe_b64decode(header + "=="), type=_Header)
        except (ValueError, RecursionError, msgspec.DecodeError):
            return False
        return bool(dot)


def credentials(connection: HTTPConnection) -> tuple[Credential, ...]:
    """The tokens that are not empty, the best first: header, cookie, subprotocol, query last.

    A query stands in histories and in other people's logs, so it is only used where nothing
    better came.
    """
    scope = connection.scope
    # Most come without any: what Starlette makes of headers and query would stay as long as they.
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    candidates: tuple[tuple[Source, str], ...] = (
        ("authorization", _bearer(headers[0].decode("latin-1")) if headers else ""),
        ("cookie", cookie(scope, "session") or ""),
        ("subprotocol", _after_marker(scope.get("subprotocols", ()))),
        ("query", connection.query_params.get("token", "") if scope["query_string"] else ""),
    )
    return tuple(Credential(value, source) for source, value in candidates if value)


def credential(connection: HTTPConnection) -> Credential | None:
    """The token that counts: the first of `credentials`, None without any."""
    return next(iter(credentials(connection)), None)


def _bearer(header: str) -> str:
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _after_marker(subprotocols: Sequence[str]) -> str:
    """The subprotocol after `bearer`: browsers can set no header, but may offer protocols."""
    offered = pairwise(subprotocols)
    return next((value for marker, value in offered if marker == "bearer"), "")


class Verifier:
    """Tells whom a token stands for, by exactly one of three kinds of key.

    Args:
        secret: Shared secret of at least 32 bytes; tokens are HS256.
        public_key: PEM text; its type settles the algorithms (RS*, PS*, ES* of its curve, EdDSA).
        jwks_url: Where a key set (RFC 7517) is fetched, in a worker thread and at most every
            30 s for keys not seen before; each key settles its algorithm, never HS*.
        audience: What `aud` must name. If None, a token made for any audience is refused, for it
            is meant for someone else.
        issuer: What `iss` must be; None takes any.
        claim: The claim that lists the channels.
        leeway: Seconds by which `exp` may lie behind us and `nbf` and `iat` ahead, since clocks
            differ; at most 300.

    Raises:
        InvalidSetting: There is not exactly one key, or it or the leeway can't be used.
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
        self._keys = _KeySet(jwks_url) if jwks_url is not None else None
        self._key: Any = None
        self._algorithms: Sequence[str] = ()
        if secret is not None:
            self._key, self._algorithms = _checked_secret(secret), ("HS256",)
        elif public_key is not None:
            self._key, self._algorithms = _load_public_key(public_key)

    async def verify(self, token: str) -> Identity:
        """Verify a token of any shape and provenance.

        Whatever else is raised is a fault of ours, such as a key that is too short for its
        algorithm, and is not told to the client.

        Raises:
            InvalidToken: It will not do; the reason never quotes it.
            KeysUnavailable: The key server can't be asked, which is not the client's fault.
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
    """Whether it can be sent on: JSON lets in halves of surrogate pairs, UTF-8 does not."""
    return isinstance(value, str) and bool(value) and not SURROGATE.search(value)


def _expiry(value: Any) -> float:
    """PyJWT takes the text "99" and the number 1e400 too; RFC 7519 has a number of seconds."""
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


def _load_public_key(pem: str) -> tuple[Any, Sequence[str]]:
    """The key, and the algorithms that its type allows."""
    try:
        key = load_pem_public_key(pem.encode())
    except Exception:  # cryptography raises half a dozen types, and quotes what it read
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


# One fetch at a time per event loop: waiting for it must not use up the threads of others.
_fetching: RunVar[anyio.CapacityLimiter] = RunVar("chatserver-key-fetching")


class _KeySet(jwt.PyJWKClient):
    """A key set behind a URL that a flood of tokens can't turn into a flood of fetches.

    PyJWKClient caches the set for 300 s and pauses after a fetch that succeeded. What is added:
    a pause after one that failed, a way around the worker thread for keys already here, and the
    word for whose fault it is.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=FETCH_TIMEOUT, cooldown_duration=FETCH_PAUSE)
        self._no_fetch_before = 0.0  # on the monotonic clock

    async def find(self, kid: str | None) -> jwt.PyJWK:
        """The key of that id.

        Raises:
            InvalidToken: There is no such key, or it is one that a client could forge with.
            KeysUnavailable: The set could not be had.
        """
        if not kid:
            raise InvalidToken("The token does not say which key (kid) signed it.")
        key = self._at_hand(kid) or await self._looked_up(kid)
        if key.algorithm_name not in ASYMMETRIC:
            raise InvalidToken(_reason(jwt.InvalidAlgorithmError()))
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
        if time.monotonic() < self._no_fetch_before:
            raise KeysUnavailable("The key set could not be fetched a moment ago.")
        try:
            return super().fetch_data()
        except Exception as error:  # no answer, no JSON, no keys: all the same to the client
            self._no_fetch_before = time.monotonic() + RETRY_PAUSE
            raise KeysUnavailable(f"The key set could not be fetched: {error}") from error


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
    """Make a token that a `Verifier` of the same values takes.

    Args:
        secret: At least 32 bytes.
        user: Whom it stands for (`sub`).
        ttl_seconds: How long it lives, counted from now; more than 0.
        channels: What it opens; None is everything, an empty list nothing.
        audience: Its `aud`, if any.
        issuer: Its `iss`, if any.
        claim: The name under which the channels stand.

    Raises:
        InvalidSetting: The secret is too short.
        ValueError: The user is empty, or the end lies behind us or beyond the year 9999.
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
