"""Which pages may connect."""

from collections.abc import Collection

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from chatserver import EchoEndpoint, lifespan, settings
from chatserver.endpoints import origin
from chatserver.endpoints.origin import check_origin
from chatserver.errors import InvalidHandshake


def passes(
    *origins: str, host: str | None = "h:8000", scheme: str = "ws", allowed: Collection[str] = ()
) -> bool:
    headers = [(b"origin", origin.encode("latin-1")) for origin in origins]
    headers += [(b"host", host.encode())] if host is not None else []
    try:
        check_origin({"type": "websocket", "scheme": scheme, "headers": headers}, allowed)
    except InvalidHandshake as refusal:
        return (refusal.status, refusal.code) != (403, 4403)
    return True


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://h:8000", "h:8000", "ws"),
        ("http://h", "h", "ws"),
        ("http://h", "h:80", "ws"),
        ("http://h:80", "h", "ws"),
        ("https://h", "h", "wss"),
        ("https://h:443", "h", "wss"),
        ("https://h", "h:443", "wss"),
        ("http://H:8000", "h:8000", "ws"),
        ("HTTP://h:8000", "H:8000", "ws"),
        ("http://[::1]:8000", "[::1]:8000", "ws"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "ws"),
        ("http://my_app:8000", "my_app:8000", "ws"),
        ("https://xn--bcher-kva.example", "xn--bcher-kva.example", "wss"),
    ],
)
def test_same_origin(origin: str, host: str, scheme: str) -> None:
    assert passes(origin, host=host, scheme=scheme)


def test_a_server_may_leave_the_scheme_out() -> None:
    headers = [(b"origin", b"http://h:8000"), (b"host", b"h:8000")]
    check_origin({"type": "websocket", "headers": headers}, ())
    with pytest.raises(InvalidHandshake):
        check_origin({"type": "websocket", "headers": [*headers[:1], (b"host", b"h")]}, ())


def test_no_browser() -> None:
    assert passes()
    assert passes(host=None)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "h:8000",
        "//h:8000",
        "http://h",
        "http://h:80",
        "http://h:8001",
        "https://h:8000",
        "ws://h:8000",
        "http://h:8000/",
        "http://h:8000/x",
        "http://h:8000?x",
        "http://h:8000#x",
        "http://h:8000 ",
        " http://h:8000",
        "http://h:8000\x00",
        "http://h:8000,http://h:8000",
        "http://h:8000 http://h:8000",
        "http://h:8000.evil.com",
        "http://h.evil.com:8000",
        "http://evil.com",
        "http://evilh:8000",
        "http://h:8000@evil.com",
        "http://user@h:8000",
        "http://user:password@h:8000",
        "http://h:08000:1",
        "http://h:",
        "http://h:abc",
        "http://[::1]:8000",
        "http://[h]:8000",
        "http://h%3A8000",
        "http:h:8000",
        "http:///h:8000",
        "file://",
        "chrome-extension://h:8000",
        "http://\xe4:8000",
    ],
)
def test_foreign(origin: str) -> None:
    assert not passes(origin)


def test_two_headers() -> None:
    assert not passes("http://h:8000", "http://h:8000")
    assert not passes("http://h:8000", "http://evil.com")


def test_without_a_usable_host() -> None:
    assert not passes("http://h:8000", host=None)
    assert not passes("http://h:8000", host="")
    assert not passes("http://h:8000", host="user@h:8000")


def test_two_hosts() -> None:
    headers = [(b"origin", b"http://h"), (b"host", b"h"), (b"host", b"evil.com")]
    with pytest.raises(InvalidHandshake):
        check_origin({"type": "websocket", "scheme": "ws", "headers": headers}, ())


@pytest.mark.parametrize(
    ("origin", "allowed", "answer"),
    [
        ("https://app.example", ("https://app.example",), True),
        ("https://app.example:443", ("https://app.example",), True),
        ("http://app.example", ("https://app.example",), False),
        ("https://app.example:8443", ("https://app.example",), False),
        ("https://evil-app.example", ("https://app.example",), False),
        ("https://app.example.evil", ("https://app.example",), False),
        ("capacitor://localhost", ("capacitor://localhost",), True),
        ("https://any.example", ("*",), True),
        ("null", ("https://app.example",), False),
        ("null", ("*",), True),
    ],
)
def test_allowed(origin: str, allowed: tuple[str, ...], answer: bool) -> None:
    assert passes(origin, allowed=allowed) is answer
    assert passes("http://h:8000", allowed=allowed)


def test_a_class_and_its_application_may_widen_it() -> None:
    class Open(EchoEndpoint):
        allowed_origins = ("*",)

    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint), WebSocketRoute("/open", Open)])
    client = TestClient(app)
    foreign = {"origin": "https://app.example"}
    with client.websocket_connect("/open", headers=dict(foreign)):
        pass
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client.websocket_connect("/ws", headers=dict(foreign)),
    ):
        pass
    words = "the origin 'https://app.example' may not connect"
    assert (refusal.value.status_code, refusal.value.text) == (403, words)
    app.state.allowed_origins = ("https://app.example",)
    with client.websocket_connect("/ws", headers=dict(foreign)):
        pass


ONE_TEXT = r"app\.state\.allowed_origins must be a sequence of origins .* not a str"


@pytest.mark.parametrize("origin", ["https://e", "https://example.com", "http://h:8000"])
def test_one_text_is_never_searched_for_an_origin(origin: str) -> None:
    with pytest.raises(TypeError, match=ONE_TEXT):
        passes(origin, allowed="https://example.com")


def test_one_text_in_the_application_is_an_error_at_the_start() -> None:
    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)], lifespan=lifespan)
    app.state.allowed_origins = "https://example.com"
    with pytest.raises(TypeError, match=ONE_TEXT), TestClient(app):
        pass


@pytest.mark.parametrize("headers", [{}, {"origin": "https://e"}])
def test_without_a_lifespan_it_is_an_error_at_the_first_handshake(headers: dict[str, str]) -> None:
    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])
    app.state.allowed_origins = "https://example.com"
    with (
        pytest.raises(TypeError, match=ONE_TEXT),
        TestClient(app).websocket_connect("/ws", headers=headers),
    ):
        pass


def test_a_class_may_allow_what_the_setting_may() -> None:
    assert origin.ALLOWED.pattern == settings.ORIGIN.pattern
