"""The Python code in README and docs: each block is a module, run as if pasted into a file.

Those that make an `app` are served, and talked to. The tests in those that have some are called.
"""

import asyncio
import inspect
import json
import re
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any
from uuid import uuid4

import jwt
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.types import ASGIApp
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chatserver import BrokerUnavailable, hub_of
from chatserver.app import create_app
from chatserver.auth import Verifier, mint
from chatserver.settings import Settings
from chatserver.testing import assert_no_message, live_server, receive_json
from tests.asgi import wait_until
from tests.pages import BLOCKS, table

SECRET = "correct-horse-battery-staple-0123456789"
SNIPPETS = {block.name: block.text for block in BLOCKS if block.language == "python"}
#: The variables of the environment that a snippet is run with.
ENVIRONMENT = {
    **{
        name: {"CHATSERVER_TOKEN_SECRET": SECRET}
        for name in (
            "docs/guide/tokens.md: Ask for one",
            "docs/guide/dependencies.md: The user of a token",
        )
    },
    "docs/many-machines.md: From one process to several": {"CHATSERVER_BROKER": "memory:"},
}

Run = Callable[[str], ModuleType]
Conversation = Callable[[TestClient, ModuleType], None]
CONVERSATIONS: dict[str, Conversation] = {}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(name: str) -> ModuleType:
        for variable, value in ENVIRONMENT.get(name, {}).items():
            monkeypatch.setenv(variable, value)
        module = ModuleType("snippet")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(SNIPPETS[name], name, "exec"), vars(module))
        return module

    return run


def talks(*names: str) -> Callable[[Conversation], Conversation]:
    """Say which snippets a conversation is for, by page and heading."""

    def register(conversation: Conversation) -> Conversation:
        assert not CONVERSATIONS.keys() & {*names}
        CONVERSATIONS.update(dict.fromkeys(names, conversation))
        return conversation

    return register


def denial(client: TestClient, url: str, **options: Any) -> WebSocketDenialResponse:
    with pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect(url, **options).__enter__()
    return denied.value


def closed_with(session: WebSocketTestSession) -> tuple[int, str]:
    with pytest.raises(WebSocketDisconnect) as closed:
        session.receive_text()
    return closed.value.code, closed.value.reason


def texts(session: WebSocketTestSession, count: int) -> list[str]:
    return [session.receive_text() for _ in range(count)]


def echo(
    client: TestClient, url: str, expected: str = "Message text was: hi", text: str = "hi"
) -> None:
    with client.websocket_connect(url) as session:
        session.send_text(text)
        assert session.receive_text() == expected


@talks("docs/guide/tryit.md: The try-it page")
def talk_to_a_room_with_a_page(client: TestClient, module: ModuleType) -> None:
    assert client.get("/docs").status_code == 200
    assert "Room" in client.get("/docs/asyncapi.json").json()["channels"]
    with client.websocket_connect("/rooms/kitchen") as session:
        session.send_json({"type": "say", "text": "hi"})
        assert session.receive_json() == {"type": "say", "text": "hi"}


# README and index


def room(client: TestClient, url: str) -> None:
    with client.websocket_connect(url) as one, client.websocket_connect(url) as other:
        one.send_text("hi")
        assert [one.receive_text(), other.receive_text()] == ["hi", "hi"]


@talks("README.md: A class of your own", "docs/index.md: chatserver")
def quick_start(client: TestClient, snippet: ModuleType) -> None:
    room(client, "/rooms/kitchen")
    assert client.get("/rooms/kitchen").status_code == 426


@talks("docs/many-machines.md: From one process to several")
def from_one_process_to_several(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/ws/8") as other:
        with client.websocket_connect("/ws/7") as session:
            session.send_text("hi")
            assert texts(session, 2) == ["You wrote: hi", "Client #7 says: hi"]
        assert texts(other, 2) == ["Client #7 says: hi", "Client #7 left the chat"]


@talks("docs/many-machines.md: When the engine is away")
def when_the_engine_is_away(client: TestClient, snippet: ModuleType) -> None:
    def publish(request: Request) -> Response:
        raise BrokerUnavailable("no engine")

    snippet.app.add_route("/publish", publish)
    response = client.get("/publish")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


@talks("README.md: Three endpoints that are ready")
def three_endpoints(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/ws", "Message text was: HI")


# Endpoints


@talks("docs/guide/endpoints.md: An echo")
def an_echo(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/echo")


@talks("docs/guide/endpoints.md: Parameters")
def parameters(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/prices/oil?symbol=a&symbol=b&depth=5") as session:
        assert session.receive_json() == ["oil", 5, ["a", "b"], "light"]
    denied = denial(client, "/prices/oil?depth=many")
    assert denied.status_code == 422
    assert denied.text.startswith("query parameter 'depth' ")
    snippet.Prices.reject_as = "close"
    with client.websocket_connect("/prices/oil?depth=many") as session:
        assert closed_with(session) == (4422, denied.text)


@talks("docs/guide/endpoints.md: Who is it")
def who_is_it(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/private", headers={"X-API-Key": "k-1234"}) as session:
        session.send_text("hi")
        assert session.receive_text() == "ann: hi"
    denied = denial(client, "/private", headers={"X-API-Key": "wrong"})
    assert (denied.status_code, denied.text) == (401, "a key is required")


@talks("docs/guide/endpoints.md: A token in the first message")
def first_message(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/members") as session:
        session.send_text("open sesame")
        assert session.receive_text() == "Welcome, a member"
    with client.websocket_connect("/members") as session:
        session.send_text("open barley")
        assert closed_with(session) == (4401, "that is not the word")


@talks("docs/guide/endpoints.md: Tasks")
def tasks(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/clock") as session:
        assert texts(session, 2) == ["tick 1", "tick 2"]


# Channels


@talks("docs/guide/channels.md: Join and publish")
def channels(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/games/go") as one:
        assert one.receive_json() == {"players": 1}
        with client.websocket_connect("/games/go") as other:
            assert [one.receive_json(), other.receive_json()] == [{"players": 2}] * 2
        assert client.get("/games/go").json() == [{"players": 2}, {"players": 1}]
        snippet.app.state.hub.publish_from_thread("game:go", "a text")
        assert one.receive_json() == "a text"
        snippet.app.state.hub.publish_from_thread("news", b"bytes")
        assert one.receive_bytes() == b"bytes"


@talks("docs/guide/channels.md: Last will")
def last_will(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/table/bob") as other:
        client.websocket_connect("/table/ann").__enter__().__exit__(None, None, None)
        assert other.receive_text() == "ann left the table"


@talks("docs/guide/channels.md: Publish from HTTP")
def publish_from_http(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/items/lamp") as session:
        client.post("/items/lamp", json={"on": True}).raise_for_status()
        assert session.receive_json() == {"on": True}
        client.delete("/items/lamp").raise_for_status()
        assert session.receive_json() is None
    hub = snippet.app.state.hub
    first, again = (hub.publish_from_thread("orders", "x", id="order-17") for _ in range(2))
    assert first == again


@talks("docs/guide/channels.md: History first")
def history_first(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/studies/a") as first:
        assert first.receive_json() == {"type": "welcome", "messages": []}
        first.send_json({"type": "say", "text": "hi"})
        said = {"type": "say", "text": "hi"}
        assert first.receive_json() == said
        with client.websocket_connect("/studies/a") as second:
            assert second.receive_json() == {"type": "welcome", "messages": [said]}


@talks("docs/guide/channels.md: Join and leave while connected")
def dynamic(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/sports") as session:
        hub = snippet.app.state.hub
        for _ in range(2):  # the second time nothing happens
            session.send_json({"type": "follow", "sport": "chess"})
        session.send_json({"type": "golf"})
        assert session.receive_json()["type"] == "error"
        hub.publish_from_thread("sport:chess", {"move": "e4"})
        assert session.receive_json() == {"move": "e4"}
        session.send_json({"type": "unfollow", "sport": "chess"})
        session.send_json({"type": "unfollow", "sport": "go"})
        session.send_json({"type": "golf"})
        assert session.receive_json()["type"] == "error"
        hub.publish_from_thread("sport:chess", {"move": "e5"})
        assert_no_message(session)


@talks("docs/guide/channels.md: Throw somebody out")
def throw_somebody_out(client: TestClient, snippet: ModuleType) -> None:
    hub = hub_of(snippet.app)
    with (
        client.websocket_connect("/bar?name=ann") as ann,
        client.websocket_connect("/bar?name=ann") as tab,
        client.websocket_connect("/bar?name=bob") as bob,
    ):
        assert client.post("/off-stage/ann").status_code == 202
        wait_until(lambda: hub.statistics().subscriptions == 4)
        for channel in ("stage", "bar"):
            hub.publish_from_thread(channel, channel)
        assert texts(bob, 2) == ["stage", "bar"]
        assert [ann.receive_text(), tab.receive_text()] == ["bar", "bar"]
        assert client.post("/ban/ann").status_code == 202
        assert [closed_with(each) for each in (ann, tab)] == [(1008, "not tonight")] * 2
        hub.publish_from_thread("bar", "last round")
        assert bob.receive_text() == "last round"
    assert denial(client, "/bar?name=ann").status_code == 401


@talks("docs/guide/recovery.md: The class")
def news_that_recover(client: TestClient, snippet: ModuleType) -> None:
    def post(number: int) -> None:
        assert client.post("/news/chess", json={"n": number}).status_code == 202

    post(1)
    with client.websocket_connect("/news/chess?since={}") as session:
        since = session.receive_json()["since"]
        assert session.receive_json() == {"channel": "news:chess", "offset": 1, "data": {"n": 1}}
    post(2)
    position = json.dumps({"news:chess": {**since, "offset": 1}})
    with client.websocket_connect(f"/news/chess?since={position}") as session:
        assert session.receive_json()["recovered"] is True
        post(3)
        assert [session.receive_json()["data"]["n"] for _ in range(2)] == [2, 3]


@talks("docs/guide/recovery.md: A wire format of your own")
def recovery(client: TestClient, snippet: ModuleType) -> None:
    hub = hub_of(snippet.app)
    with client.websocket_connect("/journal") as session:
        greeting = session.receive_json()
        assert (greeting["recovered"], greeting["missed"]) == (False, [])
        hub.publish_from_thread("journal", "one")
        assert session.receive_json() == {"offset": 1, "data": "one"}
    for data in ("two", {"three": 3}):
        hub.publish_from_thread("journal", data)
    with client.websocket_connect(f"/journal?offset=1&epoch={greeting['epoch']}") as session:
        again = session.receive_json()
        assert (again["recovered"], again["missed"]) == (True, ["two", {"three": 3}])
        assert again["offset"] == 3
    with client.websocket_connect("/journal?offset=1&epoch=another") as session:
        assert session.receive_json()["recovered"] is False


@talks("docs/guide/channels.md: A task for a channel")
def task_for_a_channel(client: TestClient, snippet: ModuleType) -> None:
    for _ in range(2):
        with client.websocket_connect("/arenas/a/ann") as one:
            first = one.receive_json()
            assert first == {"step": 1, "names": []}
            with client.websocket_connect("/arenas/a/bob") as two:
                while (step := two.receive_json())["names"] != ["ann", "bob"]:
                    pass
                while one.receive_json() != step:
                    pass
        assert snippet.Arena.worlds == {}


@talks("docs/guide/channels.md: Presence")
def presence(client: TestClient, snippet: ModuleType) -> None:
    with (
        client.websocket_connect("/tables/3?name=ann&colour=red") as ann,
        client.websocket_connect("/tables/3?name=ann"),
        client.websocket_connect("/tables/3?name=bob"),
    ):
        ann.send_json({"type": "who"})
        users = receive_json(ann)["users"]
    assert [(user["user"], user["info"], len(user["clients"])) for user in users] == [
        ("ann", {"colour": "red"}, 2),
        ("bob", {"colour": "blue"}, 1),
    ]


@talks("docs/guide/channels.md: Rules for some channels")
def rules_for_some_channels(client: TestClient, snippet: ModuleType) -> None:
    rules = snippet.app.state.hub.broker.rules
    assert rules("orders").history_size == 10_000
    assert rules("cursor:ann").history_size == 0
    assert rules("game:chess").presence
    assert not rules("orders").presence


@talks("docs/guide/channels.md: A hub of your own")
def hub_of_your_own(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/ws", headers={"Origin": "https://example.org"}) as session:
        session.send_text("x" * 1025)
        assert closed_with(session)[0] == 1009
    assert denial(client, "/ws", headers={"Origin": "https://example.com"}).status_code == 403


# Messages


@talks("docs/guide/messages.md: Typed messages")
def typed_messages(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/kitchens/blue") as session:
        session.send_json({"type": "say", "text": "hi"})
        assert session.receive_json() == {"type": "said", "room": "blue", "text": "hi"}
        session.send_json({"type": "ping", "n": 3})
        assert session.receive_json() == {"type": "pong", "n": 3}
        session.send_json({"type": "ping", "n": "three"})
        error = session.receive_json()
        assert (error.keys(), error["type"]) == ({"type", "reason"}, "error")


@talks("docs/guide/messages.md: What can't be read")
def strict(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/strict") as session:
        session.send_json({"type": "say", "text": "hi"})
        assert session.receive_json() == {"type": "say", "text": "hi"}
        session.send_json({"type": "say"})
        code, reason = closed_with(session)
        assert code == 1007
        assert "text" in reason


@talks("docs/guide/messages.md: Said once")
def said_once(client: TestClient, snippet: ModuleType) -> None:
    id = str(uuid4())
    with client.websocket_connect("/hall") as other:
        for _ in range(2):
            with client.websocket_connect("/hall") as session:
                session.send_json({"type": "say", "text": "hi", "id": id})
                while session.receive_json() != {"type": "ack", "id": id}:
                    pass
        assert other.receive_json() == {"type": "said", "text": "hi"}
        assert_no_message(other)
        other.send_json({"type": "say", "text": "", "id": 1})
        error = other.receive_json()
        assert (error["type"], error["id"]) == ("error", 1)


@talks("docs/guide/messages.md: pydantic models")
def pydantic(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/auction") as session:
        session.send_json({"type": "bid", "cents": 5})
        assert session.receive_json() == {"type": "bid", "cents": 5}
        session.send_json({"type": "bid", "cents": -5})
        assert session.receive_json()["type"] == "error"


# Tokens


@talks("docs/guide/tokens.md: Ask for one")
def tokens(client: TestClient, snippet: ModuleType) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["orders:ann"])
    for options in (
        {"headers": {"Authorization": f"Bearer {token}"}},
        {"headers": {"Cookie": f"session={token}"}},
        {"subprotocols": ["bearer", token]},
    ):
        with client.websocket_connect("/orders/ann", **options) as session:
            assert session.receive_text() == "Hello, ann"
            assert session.accepted_subprotocol in (None, "bearer")
    with client.websocket_connect(f"/orders/ann?token={token}") as session:
        assert session.receive_text() == "Hello, ann"
    assert denial(client, f"/orders/bob?token={token}").status_code == 403
    assert denial(client, "/orders/ann?token=x").status_code == 401


@talks("docs/guide/tokens.md: A verifier in the code")
def verifier(client: TestClient, snippet: ModuleType) -> None:
    token = mint("change me: at least 32 bytes long", user="ann", ttl_seconds=60)
    echo(client, f"/items/a/ws?token={token}", f"Session cookie or query token value is: {token}")
    with pytest.raises(WebSocketDisconnect):
        echo(client, "/items/a/ws?token=x")


@talks("docs/guide/tokens.md: Open mode")
def open_mode(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/items/a/ws?token=x", "Session cookie or query token value is: x")
    with pytest.raises(WebSocketDisconnect):
        echo(client, "/items/a/ws")


# Dependencies


@talks("docs/guide/dependencies.md: Dependencies")
def dependencies(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/news?number=2", headers={"X-API-Key": "k"}) as session:
        assert session.receive_json() == ["the owner of k", 2, 10]
    assert denial(client, "/news").status_code == 401
    denied = denial(client, "/news?number=x", headers={"X-API-Key": "k"})
    assert denied.text == "query parameter 'number' must be an integer"


@talks("docs/guide/dependencies.md: Open and close")
def open_and_close(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/transfers", expected="noted", text="5")
    assert snippet.ledger == ["5"]
    with pytest.raises(ValueError, match="no number"):
        echo(client, "/transfers")
    assert snippet.ledger == ["5", "rolled back"]


@talks("docs/guide/dependencies.md: The user of a token")
def user_of_a_token(client: TestClient, snippet: ModuleType) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["inbox"])
    with client.websocket_connect(f"/inbox?token={token}") as session:
        assert session.receive_text() == "Hello, Ann Lee"
    other = mint(SECRET, user="ann", ttl_seconds=60, channels=["outbox"])
    assert denial(client, f"/inbox?token={other}").status_code == 403


@talks("docs/guide/dependencies.md: FastAPI's own")
def fastapis_own(client: TestClient, snippet: ModuleType) -> None:
    bearer = {"Authorization": "Bearer x"}
    assert client.get("/me", headers=bearer).json() == "user of x"
    with client.websocket_connect("/live", headers=bearer) as session:
        assert session.receive_text() == "user of x"
    assert denial(client, "/live").status_code == 401


# FastAPI


@talks("docs/guide/fastapi.md: In FastAPI")
def in_fastapi(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/auctions/vase/live") as session:
        bid = {"bidder": "ann", "cents": 5}
        assert client.post("/auctions/vase/bids", json=bid).status_code == 201
        assert session.receive_json() == bid


@talks("docs/guide/fastapi.md: Routers")
def routers(client: TestClient, snippet: ModuleType) -> None:
    client.headers["x-client"] = "ours"
    room(client, "/v1/rooms/kitchen")
    assert denial(client, "/v1/rooms/kitchen", headers={"x-client": "theirs"}).status_code == 403


@talks("docs/guide/fastapi.md: Lifespans")
def lifespans(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/ws")
    assert snippet.app.state.greeting == "hello"


@talks("docs/guide/fastapi.md: Sub-applications")
def sub_applications(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/teams/red/feed") as session:
        snippet.app.state.hub.publish_from_thread("team:red", [1])
        assert session.receive_json() == [1]
    assert snippet.feeds.state.hub is snippet.app.state.hub


@talks("docs/guide/fastapi.md: The ready application")
def mounted(client: TestClient, snippet: ModuleType) -> None:
    assert 'data-path="/chat/ws"' in client.get("/chat/").text
    echo(client, "/chat/ws")


# AsyncAPI


@talks("docs/guide/asyncapi.md: AsyncAPI")
def asyncapi(client: TestClient, snippet: ModuleType) -> None:
    document = client.get("/asyncapi.json").json()
    assert document["info"]["title"] == "Restaurant"
    channel = document["channels"]["Table"]
    assert channel["parameters"]["table"]["description"] == "Its number."
    assert channel["bindings"]["ws"]["query"]["properties"]["language"]["default"] == "en"
    reply = document["operations"]["Table_order"]["reply"]["messages"]
    assert [message["$ref"] for message in reply] == [
        "#/channels/Table/messages/Accepted",
        "#/channels/Table/messages/Busy",
    ]
    with client.websocket_connect("/tables/7") as session:
        session.send_json({"type": "order", "dish": "soup"})
        assert session.receive_json() == {"type": "accepted", "number": 1}


# Settings


@talks("docs/deployment.md: Health")
def health(client: TestClient, module: ModuleType) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    with client.websocket_connect("/ws/7") as session:
        session.send_text("hi")
        assert session.receive_text() == "You wrote: hi"


@talks("docs/settings.md: Settings")
def configured(client: TestClient, snippet: ModuleType) -> None:
    echo(client, "/ws")


@talks("docs/settings.md: In Python")
def configured_in_python(client: TestClient, snippet: ModuleType) -> None:
    hub_of_your_own(client, snippet)


# What holds for all of them


def without_app() -> list[str]:
    return [name for name, text in SNIPPETS.items() if not re.search(r"^app = ", text, re.M)]


def with_tests() -> list[str]:
    return [
        name for name, text in SNIPPETS.items() if re.search(r"^(async )?def test_", text, re.M)
    ]


def test_every_snippet_is_conversed_with() -> None:
    assert len(SNIPPETS) == sum(block.language == "python" for block in BLOCKS)
    assert {*SNIPPETS} - {*without_app(), *with_tests()} == {*CONVERSATIONS}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_snippet(name: str, run: Run) -> None:
    snippet = run(name)
    with TestClient(snippet.app) as client:
        CONVERSATIONS[name](client, snippet)


@pytest.mark.parametrize("name", with_tests())
def test_tests_in_a_snippet(name: str, run: Run) -> None:
    tests = {name: test for name, test in vars(run(name)).items() if name.startswith("test_")}
    assert tests
    for test in tests.values():
        if inspect.iscoroutinefunction(test):
            asyncio.run(test())
        else:
            test()


@pytest.mark.parametrize("name", without_app())
def test_snippet_without_an_application(name: str, run: Run) -> None:
    run(name)


def test_the_quick_start_is_as_short_as_it_says() -> None:
    name = "README.md: A class of your own"
    code = SNIPPETS[name].partition("class ")[2].partition("app =")[0]
    assert len([line for line in code.splitlines() if line]) == 6


def test_the_quick_start_on_a_server(run: Run) -> None:
    with (
        live_server(run("README.md: A class of your own").app) as server,
        connect(f"{server.ws}/rooms/kitchen") as one,
        connect(f"{server.ws}/rooms/kitchen") as other,
    ):
        one.send("hi")
        assert [one.recv(timeout=5), other.recv(timeout=5)] == ["hi", "hi"]


def test_a_minted_token(run: Run) -> None:
    token = run("docs/guide/tokens.md: Make one").token
    claims = jwt.decode(token, "change me: at least 32 bytes long", algorithms=["HS256"])
    assert (claims["sub"], claims["channels"]) == ("ann", ["orders:ann"])


# Refusals

ORDERS = "docs/guide/tokens.md: Ask for one"
PARAMETERS = "docs/guide/endpoints.md: Parameters"
ROOM = "README.md: A class of your own"
Refusal = tuple[ASGIApp, str, dict[str, str]]


def no_keys(run: Run) -> Refusal:
    app = run(ORDERS).app
    app.state.verifier = Verifier(jwks_url="http://127.0.0.1:9/keys")
    claims = {"sub": "ann", "exp": time.time() + 60}
    token = jwt.encode(claims, SECRET, headers={"kid": "k"})
    return app, f"/orders/ann?token={token}", {}


def no_verifier(run: Run) -> Refusal:
    app = run(ORDERS).app
    del app.state.verifier
    return app, "/orders/ann?token=x", {}


REFUSALS: dict[str, list[Callable[[Run], Refusal]]] = {
    "401": [lambda run: (run("docs/guide/endpoints.md: Who is it").app, "/private", {})],
    "403": [lambda run: (run(ROOM).app, "/rooms/a", {"Origin": "https://example.org"})],
    "404": [lambda run: (create_app(Settings()), "/nowhere", {})],
    "422": [lambda run: (run(PARAMETERS).app, "/prices/oil?depth=many", {})],
    "503": [no_keys, no_verifier],
}


def test_every_refusal_is_tried() -> None:
    listed = [status for status, _ in table("docs/close-codes.md", "status", "when")]
    # A client of WebSockets can't be answered with 426; `quick_start` is.
    assert listed == sorted([*REFUSALS, "426"])


@pytest.mark.parametrize(
    ("status", "prepare"), [(status, one) for status, some in REFUSALS.items() for one in some]
)
def test_refusal(status: str, prepare: Callable[[Run], Refusal], run: Run) -> None:
    app, path, headers = prepare(run)
    with live_server(app) as server, pytest.raises(InvalidStatus) as refused:
        connect(f"{server.ws}{path}", additional_headers=headers).__enter__()
    assert refused.value.response.status_code == int(status)
