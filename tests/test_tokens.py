"""Tokens: the identity that each stands for, and the many that are refused."""

import base64
import hmac
import json
import math
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from chatserver.auth import ANONYMOUS, Identity, Verifier, mint
from chatserver.auth import keys as keys_module
from chatserver.errors import InvalidSetting, InvalidToken, KeysUnavailable

SECRET = "correct-horse-battery-staple-0123456789"
OTHER = "another-secret-altogether-9876543210-abc"
NOW = int(time.time())
GOOD = {"sub": "ann", "exp": NOW + 3600}


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


# --- keys ----------------------------------------------------------------------------------------


@cache
def private_key(kind: str) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "other RSA": lambda: rsa.generate_private_key(65537, 2048),
        "short RSA": lambda: rsa.generate_private_key(65537, 1024),
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "Ed448": ed448.Ed448PrivateKey.generate,
        "DSA": lambda: dsa.generate_private_key(2048),
    }
    return makers[kind]()


def public_pem(kind: str) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = private_key(kind).public_key()
    return str(key.public_bytes(serialization.Encoding.PEM, form).decode())


def private_pem(kind: str) -> str:
    pem = private_key(kind).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return str(pem.decode())


def signed(claims: dict[str, Any], kind: str, algorithm: str, **headers: Any) -> str:
    return jwt.encode(claims, private_key(kind), algorithm=algorithm, headers=headers)


def hs256(claims: dict[str, Any], secret: str = SECRET, **headers: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", headers=headers)


def raw(header: bytes | str, payload: bytes | str, secret: str = SECRET) -> str:
    """A well-signed token of any bytes at all."""
    parts = [header, payload]
    signing = b".".join(b64(p if isinstance(p, bytes) else p.encode()) for p in parts)
    # PyJWT will not sign with a public key as the secret; an attacker will.
    signature = hmac.digest(secret.encode(), signing, "sha256")
    return (signing + b"." + b64(signature)).decode()


def unsigned(algorithm: str) -> str:
    parts = ({"alg": algorithm, "typ": "JWT"}, GOOD)
    return ".".join(b64(json.dumps(part).encode()).decode() for part in parts) + "."


def verify(verifier: Verifier, token: str) -> Identity:
    return anyio.run(verifier.verify, token)


# --- valid tokens -------------------------------------------------------------------------------


def test_minted_token_is_verified() -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["chat", "item:foo"])
    identity = verify(Verifier(secret=SECRET), token)
    assert identity.user == "ann"
    assert identity.expires == pytest.approx(time.time() + 60 + 10, abs=5)
    assert identity.claims["sub"] == "ann"
    assert identity.may("chat")
    assert identity.may("item:foo")
    assert not identity.may("item:foobar")
    assert not identity.may("item:")


def test_token_without_the_claim_opens_everything_and_an_empty_list_nothing() -> None:
    verifier = Verifier(secret=SECRET)
    assert verify(verifier, mint(SECRET, user="ann", ttl_seconds=60)).may("anything")
    assert not verify(verifier, mint(SECRET, user="ann", ttl_seconds=60, channels=[])).may("chat")


def test_audience_issuer_and_claim() -> None:
    names: dict[str, Any] = {"audience": "chat", "issuer": "us", "claim": "rooms"}
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["a"], **names)
    assert verify(Verifier(secret=SECRET, **names), token).channels == frozenset("a")


def test_anonymous_may_everything() -> None:
    assert Identity("anonymous", None, None, {}) == ANONYMOUS
    assert ANONYMOUS.may("anything")


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("RSA", "RS256"), ("RSA", "RS384"), ("RSA", "RS512"), ("RSA", "PS256"), ("RSA", "PS512"),
        ("P-256", "ES256"), ("P-384", "ES384"), ("P-521", "ES512"),
        ("Ed25519", "EdDSA"), ("Ed448", "EdDSA"),
    ],
)  # fmt: skip
def test_public_keys(kind: str, algorithm: str) -> None:
    verifier = Verifier(public_key=public_pem(kind))
    assert verify(verifier, signed(GOOD, kind, algorithm)).user == "ann"


# --- tokens that won't ---------------------------------------------------------------------------

SHARED = Verifier(secret=SECRET)
NAMED = Verifier(secret=SECRET, audience="chat", issuer="us")
LONG = Verifier(secret=SECRET * 2)
HEADER = '{"alg":"HS256","typ":"JWT"}'
VALID = hs256(GOOD)
HEAD, BODY, SIGNATURE = VALID.split(".")


def payload(**claims: str) -> str:
    """Raw JSON, for values that `json.dumps` would not write."""
    return raw(
        HEADER, json.dumps(GOOD)[:-1] + "".join(f',"{k}":{v}' for k, v in claims.items()) + "}"
    )


BAD: dict[str, tuple[Verifier, str]] = {
    "empty": (SHARED, ""),
    "space": (SHARED, " "),
    "a word": (SHARED, "fake-super-secret-token"),
    "two dots": (SHARED, ".."),
    "one part": (SHARED, HEAD),
    "two parts": (SHARED, f"{HEAD}.{BODY}"),
    "four parts": (SHARED, f"{VALID}.x"),
    "no signature": (SHARED, f"{HEAD}.{BODY}."),
    "cut signature": (SHARED, VALID[:-4]),
    "changed signature": (SHARED, f"{HEAD}.{BODY}.{SIGNATURE[::-1]}"),
    "changed payload": (SHARED, f"{HEAD}.{b64(b'{}').decode()}.{SIGNATURE}"),
    "other secret": (SHARED, hs256(GOOD, OTHER)),
    "trailing space": (SHARED, VALID + " "),
    "trailing newline": (SHARED, VALID + "\n"),
    "NUL": (SHARED, VALID + "\0"),
    "NUL alone": (SHARED, "\0"),
    "non-ASCII": (SHARED, "tökén.ä.ö"),
    "lone surrogate": (SHARED, "\ud800.\udfff.\ud800"),
    "Bearer in front": (SHARED, f"Bearer {VALID}"),
    "over-long": (SHARED, "a" * 9000),
    "over-long but signed": (SHARED, hs256(GOOD | {"pad": "x" * 9000})),
    "alg none": (SHARED, unsigned("none")),
    "alg None": (SHARED, unsigned("None")),
    "alg nOnE": (SHARED, unsigned("nOnE")),
    "alg empty": (SHARED, unsigned("")),
    "alg none with a signature": (SHARED, raw('{"alg":"none"}', json.dumps(GOOD))),
    "alg missing": (SHARED, raw("{}", json.dumps(GOOD))),
    "alg null": (SHARED, raw('{"alg":null}', json.dumps(GOOD))),
    "alg a list": (SHARED, raw('{"alg":["HS256"]}', json.dumps(GOOD))),
    "alg an object": (SHARED, raw('{"alg":{"a":1}}', json.dumps(GOOD))),
    "alg HS512": (LONG, jwt.encode(GOOD, SECRET * 2, algorithm="HS512")),
    "alg unknown": (SHARED, raw('{"alg":"ROT13"}', json.dumps(GOOD))),
    "header a list": (SHARED, raw("[]", json.dumps(GOOD))),
    "header no JSON": (SHARED, raw("nope", json.dumps(GOOD))),
    "header bad UTF-8": (SHARED, raw(b"\xff\xfe", json.dumps(GOOD))),
    "header deep": (SHARED, raw("[" * 5000, json.dumps(GOOD))),
    "header of huge integer": (SHARED, raw('{"alg":' + "9" * 5000 + "}", "{}")),
    "kid a number": (SHARED, raw('{"alg":"HS256","kid":1}', json.dumps(GOOD))),
    "crit unknown": (SHARED, raw('{"alg":"HS256","crit":["x"],"x":1}', json.dumps(GOOD))),
    "b64 false": (SHARED, raw('{"alg":"HS256","b64":false,"crit":["b64"]}', json.dumps(GOOD))),
    "payload a list": (SHARED, raw(HEADER, "[]")),
    "payload a text": (SHARED, raw(HEADER, '"ann"')),
    "payload no JSON": (SHARED, raw(HEADER, "nope")),
    "payload deep": (SHARED, raw(HEADER, '{"a":' + "[" * 5000)),
    "payload bad UTF-8": (SHARED, raw(HEADER, b'{"sub":"\xff"}')),
    "expired": (SHARED, hs256(GOOD | {"exp": NOW - 11})),
    "expired long ago": (SHARED, hs256(GOOD | {"exp": 1})),
    "exp missing": (SHARED, hs256({"sub": "ann"})),
    "exp null": (SHARED, payload(exp="null")),
    "exp 1e400": (SHARED, payload(exp="1e400")),
    "exp -1e400": (SHARED, payload(exp="-1e400")),
    "exp Infinity": (SHARED, payload(exp="Infinity")),
    "exp NaN": (SHARED, payload(exp="NaN")),
    "exp negative": (SHARED, payload(exp="-1")),
    "exp a text": (SHARED, payload(exp=f'"{NOW + 60}"')),
    "exp true": (SHARED, payload(exp="true")),
    "exp a list": (SHARED, payload(exp="[9999999999]")),
    "exp of 400 digits": (SHARED, payload(exp="9" * 400)),
    "exp of 5,000 digits": (SHARED, payload(exp="9" * 5000)),
    "exp in milliseconds": (SHARED, payload(exp=f"{(NOW + 60) * 1000}")),
    "exp 1e300": (SHARED, payload(exp="1e300")),
    "nbf in the future": (SHARED, hs256(GOOD | {"nbf": NOW + 86400})),
    "nbf a text": (SHARED, hs256(GOOD | {"nbf": "soon"})),
    "iat in the future": (SHARED, hs256(GOOD | {"iat": NOW + 86400})),
    "sub missing": (SHARED, hs256({"exp": NOW + 60})),
    "sub null": (SHARED, payload(sub="null")),
    "sub empty": (SHARED, payload(sub='""')),
    "sub a number": (SHARED, payload(sub="7")),
    "sub a list": (SHARED, payload(sub='["ann"]')),
    "sub half a pair": (SHARED, payload(sub='"\\ud800"')),
    "channels a text": (SHARED, payload(channels='"chat"')),
    "channels null": (SHARED, payload(channels="null")),
    "channels an object": (SHARED, payload(channels='{"chat":1}')),
    "channels of numbers": (SHARED, payload(channels='["chat",1]')),
    "channels of lists": (SHARED, payload(channels='[["chat"]]')),
    "channels half a pair": (SHARED, payload(channels='["\\udfff"]')),
    "aud though none is ours": (SHARED, hs256(GOOD | {"aud": "chat"})),
    "aud missing": (NAMED, hs256(GOOD | {"iss": "us"})),
    "aud other": (NAMED, hs256(GOOD | {"iss": "us", "aud": "mail"})),
    "aud list of others": (NAMED, hs256(GOOD | {"iss": "us", "aud": ["mail", "chats"]})),
    "aud object": (NAMED, hs256(GOOD | {"iss": "us", "aud": {"chat": 1}})),
    "iss missing": (NAMED, hs256(GOOD | {"aud": "chat"})),
    "iss other": (NAMED, hs256(GOOD | {"aud": "chat", "iss": "them"})),
    "iss prefix": (NAMED, hs256(GOOD | {"aud": "chat", "iss": "us.example"})),
    "iss list": (NAMED, raw(HEADER, json.dumps(GOOD | {"aud": "chat", "iss": ["us"]}))),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_credential(case: str) -> None:
    verifier, token = BAD[case]
    with pytest.raises(InvalidToken) as caught:
        verify(verifier, token)
    assert caught.value.status == 401
    assert len(token) < 4 or token not in caught.value.reason
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_cases_are_bad_for_their_own_reason() -> None:
    assert verify(SHARED, VALID).user == "ann"
    assert verify(SHARED, payload(channels="[]")).channels == frozenset()
    assert verify(NAMED, hs256(GOOD | {"aud": ["mail", "chat"], "iss": "us"})).user == "ann"
    assert len(BAD) >= 50


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_clocks_may_differ_by_the_leeway(claim: str) -> None:
    late = claim == "exp"

    def token(seconds: int) -> str:
        return hs256(GOOD | {claim: int(time.time()) + (-seconds if late else seconds)})

    assert verify(SHARED, token(3)).user == "ann"
    assert verify(Verifier(secret=SECRET, leeway=60), token(50)).user == "ann"
    for verifier, seconds in ((Verifier(secret=SECRET, leeway=0), 3), (SHARED, 20)):
        with pytest.raises(InvalidToken, match="expired" if late else "not valid yet"):
            verify(verifier, token(seconds))


def test_a_connection_may_live_as_long_as_its_token_and_the_leeway() -> None:
    for leeway in (0, 10, 60):
        assert verify(Verifier(secret=SECRET, leeway=leeway), VALID).expires == NOW + 3600 + leeway


@pytest.mark.parametrize("leeway", [-1, 301, math.inf, math.nan])
def test_a_leeway_out_of_bounds_is_a_bad_setting(leeway: float) -> None:
    with pytest.raises(InvalidSetting, match="Expected a leeway of 0 to 300 seconds, but got"):
        Verifier(secret=SECRET, leeway=leeway)


def test_a_bug_of_ours_is_not_told_as_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    for name in ("_identity", "_decode"):
        with monkeypatch.context() as patch:
            patch.setattr(Verifier, name, broken)
            with pytest.raises(ZeroDivisionError):
                verify(Verifier(secret=SECRET), VALID)


def test_a_broken_key_is_not_told_as_the_clients_fault() -> None:
    verifier = Verifier(secret=SECRET)
    verifier._key = b"cut"
    with pytest.raises(jwt.InvalidKeyError):
        verify(verifier, VALID)


VALUES = ["null", "true", "0", "-1", "1e400", "9" * 400, '""', '"x"', "[]", "[[]]", "[null]"]
VALUES += [
    "{}",
    '{"a":1}',
    '["x"]',
    '"' + "x" * 3000 + '"',
    "[" * 900 + "]" * 900,
    "NaN",
    '"\\ud800"',
]


@pytest.mark.parametrize("name", ["alg", "kid", "typ", "crit", "b64", "cty", "jku", "x5c", "zip"])
@pytest.mark.parametrize("value", VALUES)
def test_no_header_is_taken_for_a_fault_of_ours(name: str, value: str) -> None:
    head = '{"alg":"HS256","kid":"one",' + f'"{name}":{value}}}'
    for verifier in (SHARED, Verifier(public_key=public_pem("RSA"))):
        with suppress(InvalidToken):
            verify(verifier, raw(head, json.dumps(GOOD)))


@pytest.mark.parametrize("name", ["exp", "nbf", "iat", "aud", "iss", "sub", "jti", "channels"])
@pytest.mark.parametrize("value", VALUES)
def test_no_claim_is_taken_for_a_fault_of_ours(name: str, value: str) -> None:
    for verifier in (SHARED, NAMED):
        with suppress(InvalidToken):
            verify(verifier, payload(**{"aud": '"chat"', "iss": '"us"', name: value}))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("empty", "got none"),
        ("expired", "expired"),
        ("exp missing", "lacks the claim exp"),
        ("sub missing", "lacks the claim sub"),
        ("other secret", "signature"),
        ("alg none", "algorithm"),
        ("aud other", "audience"),
        ("iss other", "issuer"),
        ("nbf in the future", "not valid yet"),
        ("sub a number", "user (sub)"),
        ("over-long", "at most 8192"),
        ("a word", "JSON Web Token"),
    ],
)
def test_reasons(case: str, words: str) -> None:
    verifier, token = BAD[case]
    with pytest.raises(InvalidToken) as caught:
        verify(verifier, token)
    assert words in caught.value.reason


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("RSA", lambda: raw(HEADER, json.dumps(GOOD), public_pem("RSA"))),
        ("P-256", lambda: raw(HEADER, json.dumps(GOOD), public_pem("P-256"))),
        ("Ed25519", lambda: raw(HEADER, json.dumps(GOOD), public_pem("Ed25519"))),
        ("RSA", lambda: unsigned("none")),
        ("RSA", lambda: signed(GOOD, "other RSA", "RS256")),
        ("RSA", lambda: signed(GOOD, "P-256", "ES256")),
        ("P-256", lambda: signed(GOOD, "RSA", "RS256")),
        ("P-256", lambda: signed(GOOD, "P-384", "ES384")),
        ("Ed25519", lambda: signed(GOOD, "P-256", "ES256")),
        ("RSA", lambda: signed(GOOD | {"exp": NOW - 15}, "RSA", "RS256")),
        ("RSA", lambda: VALID),
        ("RSA", lambda: signed(GOOD, "RSA", "RS256", jwk={"kty": "oct", "k": "AA"})[:-8]),
    ],
)
def test_key_confusion(kind: str, token: Callable[[], str]) -> None:
    with pytest.raises(InvalidToken):
        verify(Verifier(public_key=public_pem(kind)), token())


def test_key_is_not_taken_from_the_token() -> None:
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(private_key("other RSA").public_key(), as_dict=True)
    token = signed(GOOD, "other RSA", "RS256", jwk=jwk, jku="http://127.0.0.1:1/", x5u="x")
    with pytest.raises(InvalidToken, match="signature"):
        verify(Verifier(public_key=public_pem("RSA")), token)


def test_no_input_raises_anything_else() -> None:
    """Ten thousand mutilated tokens, from a seed, so that a failure comes again."""
    chance = random.Random(20)
    verifiers = [SHARED, NAMED, Verifier(public_key=public_pem("RSA"))]
    alphabet = 'aA0._-={}[]" \n\0\ud800é%' + HEAD[:12]

    def mutilated() -> str:
        token = list(chance.choice([VALID, BAD["exp 1e400"][1], BAD["crit unknown"][1], "..", ""]))
        for _ in range(chance.randint(1, 6)):
            at = chance.randint(0, len(token))
            token[at : at + chance.randint(0, 3)] = chance.choice(alphabet) * chance.randint(0, 3)
        return "".join(token)

    async def storm() -> None:
        for _ in range(10_000):
            token = mutilated()
            try:
                await chance.choice(verifiers).verify(token)
            except InvalidToken:
                continue
            assert token == VALID

    anyio.run(storm)


# --- what a verifier is made of ------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"secret": SECRET, "public_key": "x"},
        {"secret": ""},
        {"secret": "short"},
        {"public_key": ""},
        {"public_key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"},
        {"public_key": private_pem("P-256")},
        {"public_key": public_pem("short RSA")},
        {"public_key": public_pem("DSA")},
        {"public_key": public_pem("secp256k1")},
    ],
)
def test_bad_key_is_a_bad_setting(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Verifier(**given)
    assert not any(len(value) > 4 and value in str(caught.value) for value in given.values())


@pytest.mark.parametrize(
    ("user", "ttl"), [("", 60), ("ann", 0), ("ann", -1), ("ann", 1e300), ("ann", float("nan"))]
)
def test_mint_refuses(user: str, ttl: float) -> None:
    with pytest.raises(ValueError, match="expected a"):
        mint(SECRET, user=user, ttl_seconds=ttl)


def test_mint_wants_a_long_secret() -> None:
    with pytest.raises(InvalidSetting, match="32 bytes"):
        mint("short", user="ann", ttl_seconds=1)


# --- key sets ------------------------------------------------------------------------------------


class KeyServer:
    """A real JWKS endpoint on a port of its own; counts what it is asked."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b'{"keys":[]}', 0
        self.url = ""
        self.awake = threading.Event()
        self.awake.set()

    def publish(self, **keys: str) -> None:
        """Serve these keys: kid=kind."""
        self.body = json.dumps(
            {"keys": [self.jwk(kid, kind) for kid, kind in keys.items()]}
        ).encode()

    @staticmethod
    def jwk(kid: str, kind: str) -> dict[str, Any]:
        if kind == "shared":
            return {"kty": "oct", "kid": kid, "alg": "HS256", "k": b64(SECRET.encode()).decode()}
        if kind == "none":
            return {"kty": "RSA", "kid": kid, "alg": "none"}
        algorithms = {"RSA": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}
        algorithm: Any = jwt.get_algorithm_by_name(algorithms[kind])
        made: dict[str, Any] = algorithm.to_jwk(private_key(kind).public_key(), as_dict=True)
        return made | {"kid": kid, "use": "sig"}


@contextmanager
def serving(keys: KeyServer) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.asked += 1
            keys.awake.wait()
            self.send_response(keys.status)
            self.send_header("Content-Length", str(len(keys.body)))
            self.end_headers()
            self.wfile.write(keys.body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        keys.url = f"http://127.0.0.1:{server.server_port}/keys"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    server = KeyServer()
    with serving(server):
        yield server


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("RSA", "RS256"), ("P-256", "ES256"), ("Ed25519", "EdDSA")]
)
def test_key_set(keys: KeyServer, kind: str, algorithm: str) -> None:
    keys.publish(one="RSA", two="P-256", three="Ed25519")
    kid = {"RSA": "one", "P-256": "two", "Ed25519": "three"}[kind]
    verifier = Verifier(jwks_url=keys.url)
    assert verify(verifier, signed(GOOD, kind, algorithm, kid=kid)).user == "ann"
    assert verify(verifier, signed(GOOD, kind, algorithm, kid=kid)).user == "ann"
    assert keys.asked == 1


@pytest.mark.parametrize(
    "token",
    [
        lambda: signed(GOOD, "RSA", "RS256"),
        lambda: signed(GOOD, "RSA", "RS256", kid=""),
        lambda: signed(GOOD, "RSA", "RS256", kid="elsewhere"),
        lambda: signed(GOOD, "RSA", "RS256", kid="two"),
        lambda: signed(GOOD, "RSA", "PS256", kid="one"),
        lambda: signed(GOOD, "other RSA", "RS256", kid="one"),
        lambda: hs256(GOOD, kid="shared"),
        lambda: hs256(GOOD, kid="one"),
        lambda: raw('{"alg":"none","kid":"one"}', json.dumps(GOOD)),
        lambda: raw('{"alg":"HS256","kid":"one"}', json.dumps(GOOD), public_pem("RSA")),
        lambda: signed(GOOD | {"exp": NOW - 15}, "RSA", "RS256", kid="one"),
        lambda: "nonsense",
        lambda: "",
    ],
)
def test_key_set_refuses(keys: KeyServer, token: Callable[[], str]) -> None:
    keys.publish(one="RSA", two="P-256", shared="shared")
    with pytest.raises(InvalidToken):
        verify(Verifier(jwks_url=keys.url), token())


def test_flood_of_unknown_keys_is_one_fetch(keys: KeyServer) -> None:
    keys.publish(one="RSA")
    verifier = Verifier(jwks_url=keys.url)

    async def refused(number: int) -> None:
        with pytest.raises(InvalidToken, match="not known"):
            await verifier.verify(signed(GOOD, "P-256", "ES256", kid=f"kid-{number}"))

    async def flood() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(refused, number)

    anyio.run(flood)
    assert keys.asked == 1
    assert verify(verifier, signed(GOOD, "RSA", "RS256", kid="one")).user == "ann"
    assert keys.asked == 1


def test_new_key_is_found_after_the_pause(keys: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "FETCH_PAUSE", 0.0)
    keys.publish(one="RSA")
    verifier = Verifier(jwks_url=keys.url)
    assert verify(verifier, signed(GOOD, "RSA", "RS256", kid="one"))
    keys.publish(one="RSA", two="P-256")
    assert verify(verifier, signed(GOOD, "P-256", "ES256", kid="two"))
    assert keys.asked == 2


def test_known_keys_do_not_wait_for_a_slow_server(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "FETCH_PAUSE", 0.0)
    keys.publish(one="RSA")
    verifier = Verifier(jwks_url=keys.url)

    async def unknown() -> None:
        with pytest.raises(InvalidToken):
            await verifier.verify(signed(GOOD, "RSA", "RS256", kid="two"))

    async def both() -> None:
        await verifier.verify(signed(GOOD, "RSA", "RS256", kid="one"))
        keys.awake.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(unknown)
            try:
                with anyio.fail_after(3):  # less than FETCH_TIMEOUT
                    while keys.asked < 2:  # noqa: ASYNC110 - counted in another thread
                        await anyio.sleep(0.01)
                    await verifier.verify(signed(GOOD, "RSA", "RS256", kid="one"))
            finally:
                keys.awake.set()

    anyio.run(both)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"{}"),
        (404, b""),
        (302, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (200, b'{"keys":[]}'),
        (200, b'{"keys":[{"kty":"RSA","kid":"one","alg":"none"}]}'),
    ],
)
def test_broken_key_server_is_not_the_peers_fault(
    keys: KeyServer, status: int, body: bytes
) -> None:
    keys.status, keys.body = status, body
    verifier = Verifier(jwks_url=keys.url)
    for _ in range(10):
        with pytest.raises(KeysUnavailable):
            verify(verifier, signed(GOOD, "RSA", "RS256", kid="one"))
    assert keys.asked == 1  # and a broken server is left in peace


def test_known_keys_outlive_their_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "FETCH_PAUSE", 0.0)
    keys = KeyServer()
    keys.publish(one="RSA")
    with serving(keys):
        verifier = Verifier(jwks_url=keys.url)
        assert verify(verifier, signed(GOOD, "RSA", "RS256", kid="one"))
    with pytest.raises(KeysUnavailable):
        verify(verifier, signed(GOOD, "RSA", "RS256", kid="two"))
    assert verify(verifier, signed(GOOD, "RSA", "RS256", kid="one"))


def test_key_server_that_comes_back_is_asked_again(
    keys: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RETRY_PAUSE", 0.0)
    keys.status = 503
    verifier = Verifier(jwks_url=keys.url)
    with pytest.raises(KeysUnavailable):
        verify(verifier, signed(GOOD, "RSA", "RS256", kid="one"))
    keys.status = 200
    keys.publish(one="RSA")
    assert verify(verifier, signed(GOOD, "RSA", "RS256", kid="one")).user == "ann"


# --- without the extra ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"public_key": "x"}, {"jwks_url": "https://a.example"}])
def test_without_cryptography_one_sentence(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    monkeypatch.delitem(sys.modules, "chatserver.auth.keys")
    monkeypatch.delattr("chatserver.auth.keys")
    with pytest.raises(InvalidSetting, match=r"pip install 'starlette-chatserver\[jwt\]'"):
        Verifier(**given)
    assert verify(Verifier(secret=SECRET), hs256(GOOD)).user == "ann"
