"""The ready application: page, files, headers, tokens and what it does with the unknown."""

import logging
import time
from pathlib import Path

import jwt
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chatserver import Endpoint, __version__
from chatserver import app as app_module
from chatserver.app import create_app
from chatserver.auth import mint
from chatserver.errors import CLOSE_CODES, InvalidSetting
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests.asgi import Edge

SECRET = "a secret of at least thirty-two bytes"


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(Settings()))


def test_page(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.text.startswith("<!DOCTYPE html>")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "Open mode" in response.text
    assert "localhost:8000" not in response.text
    assert __version__ in response.text
    for row in CLOSE_CODES.values():
        assert str(row.code) in response.text


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/page.css", "/nothing"])
def test_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_a_page_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!DOCTYPE html><p>mine, {{ version }}</p>")
    client = TestClient(create_app(Settings(templates=tmp_path)))
    assert client.get("/").text == f"<!DOCTYPE html><p>mine, {__version__}</p>"


def test_a_page_of_ones_own_that_extends_ours(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '{% extends "chatserver/index.html" %}{% block title %}mine{% endblock %}'
    )
    text = TestClient(create_app(Settings(templates=tmp_path))).get("/").text
    assert "<title>mine</title>" in text
    assert "Open mode" in text


def test_a_folder_without_a_page_of_its_own(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(templates=tmp_path)))
    assert "Open mode" in client.get("/").text


def test_below_a_root_path() -> None:
    client = TestClient(create_app(Settings()), root_path="/below")
    text = client.get("/below/").text
    assert "/below/ws" in text
    assert "/below/static/page.js" in text
    with client.websocket_connect("/below/ws") as session:
        session.send_text("x")
        assert session.receive_text() == "Message text was: x"


def test_mounted() -> None:
    client = TestClient(Starlette(routes=[Mount("/chat", create_app(Settings()))]))
    text = client.get("/chat/").text
    assert "/chat/ws/{client_id}" in text
    assert client.get("/chat/static/page.js").status_code == 200
    with client.websocket_connect("/chat/ws") as session:
        session.send_text("x")
        assert session.receive_text() == "Message text was: x"


def test_unknown_paths(client: TestClient) -> None:
    assert client.get("/nothing").status_code == 404
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client.websocket_connect("/nothing"),
    ):
        pass
    assert refusal.value.status_code == 404
    assert refusal.value.text == "There is nothing at this path."


def test_refusals_of_an_unknown_path_are_no_error(
    caplog: pytest.LogCaptureFixture, edge: Edge
) -> None:
    with live_server(create_app(Settings()), **edge) as server:
        with pytest.raises(InvalidStatus) as refusal, connect(f"{server.ws}/nothing"):
            pass
        assert refusal.value.response.status_code == 404
        assert refusal.value.response.body == b"There is nothing at this path."
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/"])
def test_nothing_but_static_files_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_module_level_application(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(app_module.app, Starlette)
    assert app_module.app is app_module.app
    with pytest.raises(AttributeError):
        app_module.nothing  # noqa: B018
    monkeypatch.setenv("CHATSERVER_PORT", "many")
    with pytest.raises(InvalidSetting, match="CHATSERVER_PORT"):
        create_app()


# With a verifier


@pytest.fixture
def secured() -> TestClient:
    return TestClient(create_app(Settings(token_secret=SECRET)))


def test_the_page_says_nothing_of_open_mode(secured: TestClient) -> None:
    assert "Open mode" not in secured.get("/").text


def test_a_valid_token(secured: TestClient) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60)
    for headers, path in (
        ({}, f"/items/foo/ws?token={token}"),
        ({"cookie": f"session={token}"}, "/items/foo/ws"),
    ):
        with secured.websocket_connect(path, headers=dict(headers)) as session:
            session.send_text("hi")
            assert session.receive_text() == f"Session cookie or query token value is: {token}"
    with secured.websocket_connect(
        "/items/foo/ws", headers={"authorization": f"Bearer {token}"}
    ) as session:
        assert session.accepted_subprotocol is None
    with secured.websocket_connect("/items/foo/ws", subprotocols=["bearer", token]) as session:
        assert session.accepted_subprotocol == "bearer"


def test_no_token_of_several_shows_in_a_traceback(
    caplog: pytest.LogCaptureFixture, edge: Edge
) -> None:
    class Broken(Endpoint):
        async def authenticate(self, websocket: WebSocket) -> None:
            raise ValueError(f"{websocket.headers} {websocket.query_params}")

    app = Starlette(routes=[WebSocketRoute("/", Broken)])
    tokens = {place: f"opaque-{place}-4711" for place in ("header", "cookie", "sub", "query")}
    with (
        live_server(app, **edge) as server,
        pytest.raises(InvalidStatus),
        connect(
            f"{server.ws}/?token={tokens['query']}",
            additional_headers={
                "Authorization": f"Bearer {tokens['header']}",
                "Cookie": f"session={tokens['cookie']}",
            },
            subprotocols=["bearer", tokens["sub"]],  # type: ignore[list-item]
        ),
    ):
        pass
    assert "ValueError" in caplog.text
    assert "4711" not in caplog.text


def test_a_token_for_another_item(secured: TestClient) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["item:foo"])
    with secured.websocket_connect(f"/items/foo/ws?token={token}"):
        pass
    with (
        pytest.raises(WebSocketDisconnect) as refusal,
        secured.websocket_connect(f"/items/bar/ws?token={token}"),
    ):
        pass
    assert (refusal.value.code, refusal.value.reason) == (
        1008,
        "the token doesn't open the channel 'item:bar'",
    )


@pytest.mark.parametrize(
    "token",
    ["", "some-key-token", mint(SECRET + "x", user="ann", ttl_seconds=60)],
    ids=["none", "no token", "other secret"],
)
def test_a_bad_token(secured: TestClient, token: str) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as refusal,
        secured.websocket_connect(f"/items/foo/ws?token={token}"),
    ):
        pass
    assert refusal.value.code == 1008
    assert not token or token not in refusal.value.reason


@pytest.mark.parametrize("leeway", [0, 1])
def test_an_expired_token_closes_the_connection(leeway: float) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=1)
    expires = jwt.decode(token, SECRET, algorithms=["HS256"])["exp"] + leeway
    settings = Settings(token_secret=SECRET, token_leeway=leeway)
    with (
        TestClient(create_app(settings)) as client,
        client.websocket_connect(f"/items/foo/ws?token={token}") as session,
    ):
        event = session.receive()
    assert (event["type"], event["code"]) == ("websocket.close", 4401)
    assert expires <= time.time() < expires + 1


def test_a_cookie_of_somebody_else_hides_no_good_token(secured: TestClient) -> None:
    """Starlette's `SessionMiddleware` has a cookie called `session`, too."""
    token = mint(SECRET, user="ann", ttl_seconds=60)
    cookie = {"cookie": "session=eyJ1c2VyIjogImFubiJ9.aSXKdw.Wn4zv2hUsB1mJ1cJ8n1kF0m3vXo"}
    with secured.websocket_connect(f"/items/foo/ws?token={token}", headers=dict(cookie)) as session:
        session.send_text("hi")
        assert session.receive_text().endswith(f"value is: {token}")
    with secured.websocket_connect(
        "/items/foo/ws", subprotocols=["bearer", token], headers=dict(cookie)
    ) as session:
        session.send_text("hi")
        assert session.receive_text().endswith(f"value is: {token}")


def test_a_fault_of_ours_in_verifying_is_a_500_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60)
    app = create_app(Settings(token_secret=SECRET))
    monkeypatch.setattr(app.state.verifier, "_key", b"cut")
    with live_server(app) as server, pytest.raises(InvalidStatus) as refusal:
        connect(f"{server.ws}/items/foo/ws?token={token}").__enter__()
    assert refusal.value.response.status_code == 500
    assert b"key" not in refusal.value.response.body
    assert "InvalidKeyError" in caplog.text
    assert token not in caplog.text


def test_the_broker_is_told_what_it_may_keep() -> None:
    settings = Settings(history_size=3, history_ttl=4.0, history_memory=5000)
    broker = create_app(settings).state.hub.broker
    assert broker._memory == 5000
    assert (broker.rules("a").history_size, broker.rules("a").history_ttl) == (3, 4.0)


def test_echo_and_chat_ask_for_no_token(secured: TestClient) -> None:
    with secured.websocket_connect("/ws"), secured.websocket_connect("/ws/1"):
        pass
