"""What endpoints find in their application, and in those around it."""

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatserver import (
    OPEN_MODE,
    Endpoint,
    FromPath,
    FromQuery,
    Hub,
    Identity,
    ItemEndpoint,
    Limits,
    Verifier,
    lifespan,
)
from chatserver.app import create_app
from chatserver.auth import OPEN_ON_LOOPBACK, mint
from chatserver.endpoints import lifecycle
from chatserver.endpoints.outcome import OutageLog
from chatserver.settings import Settings
from chatserver.testing import receive

SECRET = "correct-horse-battery-staple-0123456789"
TOKEN = mint(SECRET, user="ann", ttl_seconds=600)
APPLICATIONS: list[Callable[..., Starlette]] = [Starlette, FastAPI]


class Whoami(Endpoint):
    """Accepts clients with a valid token, and tells them their user."""

    async def authenticate(self, websocket: WebSocket) -> object:
        return await self.identify(websocket)

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(self.user.user)


ROUTES: list[BaseRoute] = [WebSocketRoute("/who", Whoami)]


@pytest.fixture(autouse=True)
def _outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test's first outage be logged."""
    monkeypatch.setattr(lifecycle, "outages", OutageLog())


def answer(app: ASGIApp, path: str = "/who", token: str = TOKEN) -> str | int:
    """The user that the endpoint sees, or the status of its refusal, 1008 for a 403."""
    try:
        with TestClient(app).websocket_connect(f"{path}?token={token}") as session:
            return session.receive_text()
    except WebSocketDenialResponse as refusal:
        return refusal.status_code
    except WebSocketDisconnect as refusal:
        return refusal.code


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "chatserver"]


# Without a word about tokens


@pytest.mark.parametrize("make", APPLICATIONS)
def test_without_a_verifier_the_handshake_is_refused(
    make: Callable[..., Starlette], caplog: pytest.LogCaptureFixture
) -> None:
    app = make(routes=ROUTES)
    assert [answer(app, token=token) for token in ("x", TOKEN, "")] == [503, 503, 503]
    (line,) = logged(caplog)  # one a minute: they all mean the same
    assert "Whoami asks for a token" in line
    assert "\n    app.state.verifier = Verifier(...)" in line
    assert "\n    app.state.verifier = OPEN_MODE" in line


def test_the_items_are_closed_too_and_say_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", SECRET)  # not read without `configure`
    app = Starlette(routes=[WebSocketRoute("/items/{item_id}", ItemEndpoint)])
    assert answer(app, "/items/foo") == 503


def test_open_mode_is_explicit() -> None:
    app = Starlette(routes=ROUTES)
    app.state.verifier = OPEN_MODE
    assert answer(app, token="x") == "anonymous"
    assert answer(app, token="") == 401


def test_a_verifier_of_ones_own() -> None:
    app = Starlette(routes=ROUTES)
    app.state.verifier = Verifier(secret=SECRET)
    assert answer(app) == "ann"
    assert answer(app, token="x") == 401


class CopyScope:
    """A middleware that hands on another scope than it was given."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(dict(scope), receive, send)


def closed(app: Starlette) -> Starlette:
    app.state.verifier = Verifier(secret=SECRET)
    return app


# Mounted


class Rewrite(CopyScope):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*scope.get("headers", ()), (b"x-request-id", b"1")]
        await self.app({**scope, "headers": headers}, receive, send)


class InATask(CopyScope):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(self._serve(scope, receive, send))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("where", ["outer", "mount"])
@pytest.mark.parametrize("between", [Rewrite, InATask])
def test_no_middleware_between_them_opens_it(
    between: type[CopyScope], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Starlette(routes=ROUTES)
    inner.state.verifier = OPEN_MODE
    layer = [Middleware(between)]
    mount = Mount("/m", inner, middleware=layer if where == "mount" else ())
    app = closed(
        Starlette(routes=[mount], middleware=layer if where == "outer" else (), lifespan=lifespan)
    )
    found = between is Rewrite
    assert answer(app, "/m/who", "x") == (401 if found else 503)
    if not found:
        assert "lifespan=lifespan" in logged(caplog)[0]
    with TestClient(app) as client:  # its lifespan tells of it
        with client.websocket_connect(f"/m/who?token={TOKEN}") as session:
            assert session.receive_text() == "ann"
        with (
            pytest.raises(WebSocketDenialResponse) as refusal,
            client.websocket_connect("/m/who?token=x"),
        ):
            pass
        assert refusal.value.status_code == 401


def mounted(inner: Starlette) -> Iterator[Starlette]:
    for make in APPLICATIONS:
        yield make(routes=[Mount("/m", inner)])
        yield make(routes=[Mount("/m", inner, middleware=[Middleware(CopyScope)])])
        yield make(routes=[Mount("/m", routes=[Host("testserver", inner)])])
        by_method = make()
        by_method.mount("/m", inner)
        yield by_method


@pytest.mark.parametrize("make", APPLICATIONS)
def test_a_mounted_application_has_its_parents_verifier(make: Callable[..., Starlette]) -> None:
    for app in mounted(make(routes=ROUTES)):
        assert answer(app, "/m/who") == 503
        closed(app)
        assert (answer(app, "/m/who"), answer(app, "/m/who", "x")) == ("ann", 401)


def test_and_its_grandparents() -> None:
    inner = Starlette(routes=[Mount("/n", Starlette(routes=ROUTES))])
    app = closed(Starlette(routes=[Mount("/m", inner)]))
    assert (answer(app, "/m/n/who"), answer(app, "/m/n/who", "x")) == ("ann", 401)


@pytest.mark.parametrize("verifier", [OPEN_MODE, OPEN_ON_LOOPBACK])
def test_it_is_never_open_where_a_parent_is_closed(verifier: object) -> None:
    inner = Starlette(routes=ROUTES)
    inner.state.verifier = verifier
    for app in mounted(inner):
        assert answer(app, "/m/who", "x") == "anonymous"
        assert answer(closed(app), "/m/who", "x") == 401


def test_nor_is_the_ready_application() -> None:
    app = closed(Starlette(routes=[Mount("/m", create_app(Settings()))]))
    assert answer(app, "/m/items/foo/ws", "x") == 1008
    assert "Open mode" not in TestClient(app).get("/m/").text
    assert "Open mode" in TestClient(create_app(Settings())).get("/").text


def test_its_own_verifier_counts() -> None:
    inner = closed(Starlette(routes=ROUTES))
    app = Starlette(routes=[Mount("/m", inner)])
    app.state.verifier = OPEN_MODE
    assert (answer(app, "/m/who"), answer(app, "/m/who", "x")) == ("ann", 401)


def test_hub_limits_and_origins_are_its_parents_too() -> None:
    inner = Starlette(routes=[WebSocketRoute("/seen", Seen)])
    app = Starlette(routes=[Mount("/m", inner)])
    app.state.hub = Hub(limits=Limits(max_message_size=1234))
    app.state.allowed_origins = ("https://a.example",)
    headers = {"origin": "https://a.example"}
    with TestClient(app).websocket_connect("/m/seen", headers=headers) as session:
        assert session.receive_json() == [id(app.state.hub), 1234]
    with TestClient(inner).websocket_connect("/seen") as session:
        assert session.receive_json() == [id(inner.state.hub), 64 * 1024]


def test_without_any_hub_the_outermost_application_gets_one() -> None:
    inner = Starlette(routes=[WebSocketRoute("/seen", Seen)])
    app = Starlette(routes=[Mount("/m", inner)], lifespan=lifespan)
    with TestClient(app) as client, client.websocket_connect("/m/seen") as session:
        assert session.receive_json()[0] == id(app.state.hub)
    assert inner.state.hub is app.state.hub


class Seen(Endpoint):
    encoding = "json"

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push([id(self.hub), self.hub.limits.max_message_size])


def test_the_http_routes_of_a_mounted_application_have_the_hub_too() -> None:
    async def post(request: Request) -> Response:
        await request.app.state.hub.publish("news", "posted")
        return Response(status_code=202)

    own = Starlette(routes=[Route("/post", post, methods=["POST"])])
    own.state.hub = its_own = Hub()
    inner = FastAPI(routes=[WebSocketRoute("/news", News), Route("/post", post, methods=["POST"])])
    inner.mount("/own", own)
    app = Starlette(routes=[Mount("/m", inner)], lifespan=lifespan)
    with TestClient(app) as client, client.websocket_connect("/m/news") as session:
        assert client.post("/m/post").status_code == 202
        assert session.receive_text() == "posted"
        assert client.post("/m/own/post").status_code == 202
        assert inner.state.hub is app.state.hub
        assert own.state.hub is its_own


class News(Endpoint):
    encoding = "text"
    channels = ("news",)


def test_a_verifier_that_can_not_verify() -> None:
    app = Starlette(routes=ROUTES)
    app.state.verifier = "my secret"
    with pytest.raises(TypeError, match=r"app.state.verifier must be a Verifier, .* not a str"):
        answer(app)


class Careless(Endpoint):
    """Returns something else than what it has found out."""

    channels = ("mine:{room}",)
    room: FromPath[str]
    what: FromQuery[str] = ""

    async def authenticate(self, websocket: WebSocket) -> object:
        if self.what == "coroutine":
            return self.identify(websocket)
        identity = await self.identify(websocket)
        return {"login": identity.user} if self.what == "dict" else None

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(repr(self.user))


@pytest.mark.parametrize(("what", "user"), [("dict", "{'login': 'ann'}"), ("", "None")])
def test_the_token_counts_whatever_authenticate_returns(what: str, user: str) -> None:
    app = Starlette(routes=[WebSocketRoute("/{room}", Careless)])
    app.state.verifier = Verifier(secret=SECRET, leeway=0)
    app.state.hub = Hub(limits=Limits(max_user_connections=1))
    token = mint(SECRET, user="ann", ttl_seconds=600, channels=["mine:a"])
    assert answer(app, "/b", f"{token}&what={what}") == 403
    with TestClient(app).websocket_connect(f"/a?token={token}&what={what}") as session:
        assert session.receive_text() == user
        assert answer(app, "/a", f"{token}&what={what}") == 429
    brief = mint(SECRET, user="ann", ttl_seconds=0.5, channels=["mine:a"])
    with TestClient(app).websocket_connect(f"/a?token={brief}&what={what}") as session:
        assert session.receive_text() == user
        assert receive(session, timeout=5)["code"] == 4401


def test_an_await_that_was_forgotten_lets_nobody_in() -> None:
    app = closed(Starlette(routes=[WebSocketRoute("/{room}", Careless)]))
    with pytest.raises(TypeError, match=r"authenticate\(\) returned an awaitable: 'await' is"):
        answer(app, "/a", f"{TOKEN}&what=coroutine")


def test_a_verifier_that_knows_nobody_refuses() -> None:
    class Table:
        async def verify(self, token: str) -> Identity | None:
            return {"a": Identity("ann")}.get(token)

    app = Starlette(routes=ROUTES)
    app.state.verifier = Table()
    assert (answer(app, token="a"), answer(app, token="b")) == ("ann", 401)


def test_a_verifier_must_name_an_identity() -> None:
    class Lazy:
        async def verify(self, token: str) -> str:
            return "ann"

    app = Starlette(routes=ROUTES)
    app.state.verifier = Lazy()
    with pytest.raises(TypeError, match=r"Lazy.verify\(\) must return an Identity, got 'ann'"):
        answer(app)


# Refusals


def test_a_refusal_is_one_line_with_its_reason_and_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    app = closed(Starlette(routes=[*ROUTES, WebSocketRoute("/items/{item_id}", ItemEndpoint)]))
    other = mint(SECRET, user="ann", ttl_seconds=600, channels=["item:a\nb"])
    for path, token, words in (
        ("/who", "sesame-open", "Whoami: handshake refused with 401: Expected a JSON Web Token"),
        ("/items/foo", "", "ItemEndpoint: handshake refused with 403: a token is required"),
        ("/items/c%0Ad", other, "the token doesn't open the channel 'item:c\\nd'"),
        ("/items/foo", f"{other}&q=much", "query parameter 'q' must be an integer"),
    ):
        caplog.clear()
        answer(app, path, token)
        (line,) = logged(caplog)
        assert words in line
        assert "\n" not in line
        assert not token or token.partition("&")[0] not in line


def test_a_foreign_origin_is_named(caplog: pytest.LogCaptureFixture) -> None:
    headers = {"origin": "https://evil.example"}
    with (
        pytest.raises(WebSocketDenialResponse),
        TestClient(Starlette(routes=ROUTES)).websocket_connect("/who", headers=headers),
    ):
        pass
    words = "Whoami: handshake refused with 403: the origin 'https://evil.example' may not connect"
    assert logged(caplog) == [words]
