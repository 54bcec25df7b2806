"""Cookies: what Starlette reads in ordinary ones, bounded, and in linear time."""

import random
import time
from http.cookies import SimpleCookie

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from chatserver import OPEN_MODE, Endpoint, FromCookie, Hub, Limits
from chatserver.cookies import check_cookies, cookie
from chatserver.errors import InvalidHandshake

QUOTES = '\\"'  # escaped, as in `a="\"\"\""`: costly for Python before 3.11.10 and 3.12.6


def scope(*headers: str) -> dict[str, object]:
    return {
        "type": "websocket",
        "headers": [(b"host", b"a"), *((b"cookie", each.encode("latin-1")) for each in headers)],
    }


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ((), None),
        (("",), None),
        (("b=1",), None),
        (("A=1",), None),
        (("a=1",), "1"),
        (("b=2; a=1",), "1"),
        (("b=2;a=1;",), "1"),
        (("  a  =  1  ",), "1"),
        (("a=",), ""),
        (("a=1; a=2",), "2"),
        (("a=1", "a=2"), "2"),
        (("a=1", "b=2"), "1"),
        (("a=b=c==",), "b=c=="),
        (("a",), None),
        (("=a",), None),
        (('a="1"',), "1"),
        (('a="1',), '"1'),
        (('a="',), '"'),
        (('a=""',), ""),
        ((r'a="x\"y"',), 'x"y'),
        ((r'a="x\\y"',), r"x\y"),
        ((r'a="\073\054"',), ";,"),
        ((r'a="\400\08\9"',), "400089"),
        ((r'a="\"',), "\\"),
        (('a="\\\\"',), "\\"),
        (('a="b;c"',), '"b'),
        (("a=\xe9",), "\xe9"),
        (('a="\xe9\\351"',), "\xe9\xe9"),
        ((" ; ; a=1 ;",), "1"),
    ],
)
def test_value(headers: tuple[str, ...], value: str | None) -> None:
    assert cookie(scope(*headers), "a") == value
    assert HTTPConnection(scope(*headers)).cookies.get("a") == value


def test_cookie_without_a_name() -> None:
    assert cookie(scope("a=1; b; =c"), "") == "c"
    assert cookie(scope("a=1;"), "") is None


def test_what_python_quotes_is_read_again() -> None:
    made = SimpleCookie({"a": ' "x", y; \\z \n\x7f'}).output(header="").strip()
    assert cookie(scope(made), "a") == ' "x", y; \\z \n\x7f'


def test_read_as_by_starlette() -> None:
    """Two thousand headers of the characters that mean something, from a seed."""
    chance = random.Random(29)
    for _ in range(2_000):
        header = "".join(chance.choices('ab=;" \\0173\t\n,\xa0', k=chance.randint(0, 40)))
        expected = HTTPConnection(scope(header)).cookies
        assert {name: cookie(scope(header), name) for name in expected} == expected


def test_cookies_are_bounded_together() -> None:
    check_cookies(scope(), 1)
    check_cookies(scope("a=1234", "b=1234"), 12)
    with pytest.raises(InvalidHandshake, match="cookies of 12 bytes exceed the limit of 11") as no:
        check_cookies(scope("a=1234", "b=1234"), 11)
    assert (no.value.status, no.value.code) == (431, 4431)


@pytest.mark.parametrize("part", [QUOTES, "\\", "\\0", "\\012", '"', "=", ";", "a=;", " ", "a;"])
def test_time_is_linear(part: str) -> None:
    """A megabyte takes about ten times as long as a tenth; a square, a hundred times."""

    def seconds(size: int) -> float:
        came = scope(f'a="{part * (size // len(part))}"')
        begun = time.process_time()
        cookie(came, "a")
        return time.process_time() - begun

    assert seconds(1_000_000) < 40 * max(seconds(100_000), seconds(100_000), 0.005)


class Show(Endpoint):
    """Looks at cookies in every way there is."""

    a: FromCookie[str | None] = None

    async def authenticate(self, websocket: WebSocket) -> object:
        return await self.identify(websocket)

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(str(self.a))


def test_more_cookies_than_allowed_are_refused_before_they_are_read() -> None:
    app = Starlette(routes=[WebSocketRoute("/", Show)])
    app.state.hub = hub = Hub(limits=Limits(max_cookie_size=100))
    client = TestClient(app)
    begun = time.process_time()
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client.websocket_connect("/", headers={"cookie": f'session="{QUOTES * 250_000}"'}),
    ):
        pass
    assert refusal.value.status_code == 431
    assert refusal.value.text == "cookies of 500010 bytes exceed the limit of 100"
    assert time.process_time() - begun < 2
    assert hub.statistics().connections == 0


def test_costly_cookies_within_the_limit_are_read_quickly() -> None:
    app = Starlette(routes=[WebSocketRoute("/", Show)])
    app.state.hub = Hub(limits=Limits(max_cookie_size=2**20))
    app.state.verifier = OPEN_MODE
    size = 30_000  # two seconds by `http.cookies` of Python 3.11.7
    begun = time.process_time()
    headers = {"cookie": f'session=x; a="{QUOTES * size}"'}
    with TestClient(app).websocket_connect("/", headers=headers) as session:
        assert session.receive_text() == '"' * size
    assert time.process_time() - begun < 1
