"""The credentials of a handshake."""

import base64
import time

import jwt
import pytest
from starlette.requests import HTTPConnection

from chatserver.auth.credentials import Credential, Source, credential, credentials

SECRET = "correct-horse-battery-staple-0123456789"


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def connection(
    query: bytes = b"", subprotocols: list[str] | None = None, **headers: str
) -> HTTPConnection:
    return HTTPConnection(
        {
            "type": "websocket",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": query,
            "subprotocols": subprotocols or [],
        }
    )


BOTH = {"cookie": "session=b", "authorization": "Bearer a"}
EMPTY = {"cookie": "session=", "authorization": "Bearer "}


@pytest.mark.parametrize(
    ("came", "value", "source"),
    [
        (connection(authorization="Bearer a"), "a", "authorization"),
        (connection(authorization="bearer  a "), "a", "authorization"),
        (connection(cookie="theme=dark; session=b"), "b", "cookie"),
        (connection(subprotocols=["bearer", "c"]), "c", "subprotocol"),
        (connection(subprotocols=["centrifuge-json", "bearer", "c"]), "c", "subprotocol"),
        (connection(b"q=1&token=d"), "d", "query"),
        (connection(b"%74oken=d%20e"), "d e", "query"),
        (connection(b"token=d", ["bearer", "c"], **BOTH), "a", "authorization"),
        (connection(b"token=d", ["bearer", "c"], cookie="session=b"), "b", "cookie"),
        (connection(b"token=d", ["bearer", "c"]), "c", "subprotocol"),
        (connection(b"token=d", ["bearer", ""], **EMPTY), "d", "query"),
        (connection(b"token=d", ["bearer"], authorization="Basic a"), "d", "query"),
    ],
)
def test_credential_is_the_first_that_is_not_empty(
    came: HTTPConnection, value: str, source: Source
) -> None:
    assert credential(came) == Credential(value, source)


@pytest.mark.parametrize(
    "came",
    [
        connection(),
        connection(b"token="),
        connection(b"Token=a"),
        connection(subprotocols=["a", "bearer"]),
        connection(authorization="Bearer"),
        connection(cookie="session"),
    ],
)
def test_no_credential(came: HTTPConnection) -> None:
    assert credential(came) is None


def test_every_credential_is_found_the_best_first() -> None:
    came = connection(b"token=d", ["bearer", "c"], **BOTH)
    assert [found.value for found in credentials(came)] == ["a", "b", "c", "d"]
    foreign = connection(b"token=d", ["bearer", "c"], cookie="session=of-somebody-else")
    assert [found.source for found in credentials(foreign)] == ["cookie", "subprotocol", "query"]


def test_a_cookie_of_escaped_quotes_takes_no_time() -> None:
    """Half a megabyte; by `http.cookies` of Python 3.11.7 60 KB take four seconds."""
    begun = time.process_time()
    quotes = '\\"' * 250_000
    (found,) = credentials(connection(cookie=f'session="{quotes}"'))
    assert found.value == '"' * 250_000
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (jwt.encode({"sub": "ann"}, SECRET), True),
        (jwt.encode({"sub": "ann"}, SECRET)[:-4], True),
        ("eyJ1c2VyIjogImFubiJ9.aSXKdw.Wn4zv2hUsB1mJ1cJ8n1kF0m3vXo", False),  # SessionMiddleware's
        (b64(b'{"alg":"none"}').decode() + "..", True),
        ("fake-super-secret-token", False),
        ("", False),
        ("..", False),
        (b64(b'{"alg":"HS256"}').decode(), False),
        (b64(b'{"typ":"JWT"}').decode() + ".e30.x", False),
        (b64(b"[" * 5000).decode() + ".e30.x", False),
        ("a" * 9000, False),
        ("t\xf6k.\xe9.n", False),
        ("\ud800.e30.x", False),
    ],
)
def test_what_looks_like_a_token(value: str, answer: bool) -> None:
    assert Credential(value, "cookie").looks_like_token is answer


def test_credential_of_a_plain_request() -> None:
    scope = {"type": "http", "headers": [], "query_string": b"token=a"}
    assert credential(HTTPConnection(scope)) == Credential("a", "query")


def test_credential_does_not_show_itself() -> None:
    assert "hunter2" not in repr(Credential("hunter2", "query"))
