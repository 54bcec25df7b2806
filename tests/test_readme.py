"""The README: its tables, its snippets, its links and commands hold what they promise."""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import httpx2
import jwt
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.types import ASGIApp
from starlette.websockets import WebSocketDisconnect
from uvicorn import main as uvicorn_command
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import chatserver
from chatserver import cli
from chatserver.app import create_app
from chatserver.auth import Verifier, mint
from chatserver.errors import CLOSE_CODES
from chatserver.settings import Settings
from chatserver.testing import live_server

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SECRET = "correct-horse-battery-staple-0123456789"


class Block(NamedTuple):
    """A fenced block, with the heading under which it stands."""

    heading: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    heading, language, lines = "", None, list[str]()
    for line in README.splitlines():
        if line.startswith("```"):
            if language is not None:
                yield Block(heading, language, "\n".join(lines) + "\n")
            language, lines = (line[3:] if language is None else None), []
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")


BLOCKS = list(blocks())
SNIPPETS = {block.heading: block.text for block in BLOCKS if block.language == "python"}


def table(*header: str) -> list[list[str]]:
    """The rows of the table that begins with this header, without backticks."""
    lines = README.splitlines()
    start = lines.index(f"| {' | '.join(header)} |")
    assert set(lines[start + 1]) == set("|- ")
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


# The tables


def test_settings() -> None:
    expected = [
        [row.flag, row.env, row.default, row.unit or "–", row.help] for row in Settings.describe()
    ]
    assert table("flag", "environment", "default", "unit", "meaning") == expected


def test_close_codes() -> None:
    expected = [
        [str(row.code), row.meaning, "yes" if row.retry else "no", row.sender]
        for row in CLOSE_CODES.values()
    ]
    assert table("code", "meaning", "come back?", "sent by") == expected


# The snippets: each is a module of its own, as if pasted into a file


Run = Callable[[str], ModuleType]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(heading: str) -> ModuleType:
        module = ModuleType("readme_snippet")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(SNIPPETS[heading], f"README.md: {heading}", "exec"), vars(module))
        return module

    return run


def denial(client: TestClient, url: str, **options: Any) -> WebSocketDenialResponse:
    with pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect(url, **options).__enter__()
    return denied.value


def texts(session: WebSocketTestSession, count: int) -> list[str]:
    return [session.receive_text() for _ in range(count)]


def quick_start(client: TestClient, snippet: ModuleType) -> None:
    with (
        client.websocket_connect("/rooms/kitchen") as one,
        client.websocket_connect("/rooms/kitchen") as other,
    ):
        one.send_text("hi")
        assert [one.receive_text(), other.receive_text()] == ["hi", "hi"]


def three_endpoints(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/ws") as session:
        session.send_text("hi")
        assert session.receive_text() == "Message text was: HI"
    with client.websocket_connect("/items/foo/ws?token=secret&q=3") as session:
        session.send_text("hi")
        assert texts(session, 3) == [
            "Session cookie or query token value is: secret",
            "Query parameter q is: 3",
            "Message text was: hi, for item ID: foo",
        ]
    with client.websocket_connect("/ws/8") as other:
        with client.websocket_connect("/ws/7") as session:
            session.send_text("hi")
            assert texts(session, 2) == ["You wrote: hi", "Client #7 says: hi"]
        assert texts(other, 2) == ["Client #7 says: hi", "Client #7 left the chat"]


def parameters(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/prices/oil?symbol=a&symbol=b&depth=5") as session:
        assert session.receive_json() == ["oil", 5, ["a", "b"], "light"]
    denied = denial(client, "/prices/oil?depth=many")
    assert denied.status_code == 422
    assert denied.text.startswith("query parameter 'depth' ")
    snippet.Prices.reject_as = "close"
    with client.websocket_connect("/prices/oil?depth=many") as session:
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert (closed.value.code, closed.value.reason) == (4422, denied.text)


def who_is_it(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/private", headers={"X-API-Key": "k-1234"}) as session:
        session.send_text("hi")
        assert session.receive_text() == "ann: hi"
    denied = denial(client, "/private", headers={"X-API-Key": "wrong"})
    assert (denied.status_code, denied.text) == (401, "a key is required")


def channels(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/games/go") as one:
        assert one.receive_json() == {"players": 1}
        with client.websocket_connect("/games/go") as other:
            assert [one.receive_json(), other.receive_json()] == [{"players": 2}] * 2
        assert client.get("/games/go").json() == [2, 1]
        snippet.app.state.hub.publish_from_thread("game:go", "a text")
        assert one.receive_json() == "a text"
        snippet.app.state.hub.publish_from_thread("news", b"bytes")
        assert one.receive_bytes() == b"bytes"


def typed_messages(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/kitchens/blue") as session:
        session.send_json({"type": "say", "text": "hi"})
        assert session.receive_json() == {"type": "said", "room": "blue", "text": "hi"}
        session.send_json({"type": "ping", "n": 3})
        assert session.receive_json() == {"type": "pong", "n": 3}
        session.send_json({"type": "ping", "n": "three"})
        error = session.receive_json()
        assert (error.keys(), error["type"]) == ({"type", "reason"}, "error")


def tasks(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/clock") as session:
        assert texts(session, 2) == ["tick 1", "tick 2"]


def publish_from_http(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/items/lamp") as session:
        client.post("/items/lamp", json={"on": True}).raise_for_status()
        assert session.receive_json() == {"on": True}
        client.delete("/items/lamp").raise_for_status()
        assert session.receive_json() is None
    hub = snippet.app.state.hub
    first, again = (hub.publish_from_thread("orders", "x", id="order-17") for _ in range(2))
    assert first == again


def hub_of_your_own(client: TestClient, snippet: ModuleType) -> None:
    with client.websocket_connect("/ws", headers={"Origin": "https://example.org"}) as session:
        session.send_text("x" * 1025)
        with pytest.raises(WebSocketDisconnect) as closed:
            session.receive_text()
        assert closed.value.code == 1009
    assert denial(client, "/ws", headers={"Origin": "https://example.com"}).status_code == 403


def test_it(client: TestClient, snippet: ModuleType) -> None:
    snippet.test_echo()
    snippet.test_echo_on_a_server()


test_it.__test__ = False  # type: ignore[attr-defined]


def tokens(client: TestClient, snippet: ModuleType) -> None:
    secret = "change me: at least 32 bytes long"
    token = mint(secret, user="ann", ttl_seconds=60, channels=["orders:ann"])
    protocols = ["bearer", token]
    for options in (
        {"headers": {"Authorization": f"Bearer {token}"}},
        {"headers": {"Cookie": f"session={token}"}},
        {"subprotocols": protocols},
    ):
        with client.websocket_connect("/orders/ann", **options) as session:
            assert session.receive_text() == "Hello, ann"
            assert session.accepted_subprotocol in (None, "bearer")
    with client.websocket_connect(f"/orders/ann?token={token}") as session:
        assert session.receive_text() == "Hello, ann"
    assert denial(client, f"/orders/bob?token={token}").status_code == 403


def settings(client: TestClient, snippet: ModuleType) -> None:
    assert 'data-path="/chat/ws"' in client.get("/chat/").text
    with client.websocket_connect("/chat/ws") as session:
        session.send_text("hi")
        assert session.receive_text() == "Message text was: hi"


CONVERSATIONS: dict[str, Callable[[TestClient, ModuleType], None]] = {
    "Quick start": quick_start,
    "Three endpoints that are ready": three_endpoints,
    "Parameters": parameters,
    "Who is it": who_is_it,
    "Channels": channels,
    "Typed messages": typed_messages,
    "Tasks": tasks,
    "Publish from HTTP": publish_from_http,
    "A hub of your own": hub_of_your_own,
    "Test it": test_it,
    "Tokens": tokens,
    "Settings": settings,
}


def test_every_snippet_is_conversed_with() -> None:
    assert len(SNIPPETS) == sum(block.language == "python" for block in BLOCKS)
    assert list(SNIPPETS) == list(CONVERSATIONS)


@pytest.mark.parametrize("heading", CONVERSATIONS)
def test_snippet(heading: str, run: Run) -> None:
    snippet = run(heading)
    with TestClient(snippet.app) as client:
        CONVERSATIONS[heading](client, snippet)


def test_the_quick_start_is_as_short_as_it_says() -> None:
    assert "a class of six lines" in README
    code = SNIPPETS["Quick start"].partition("class ")[2].partition("app =")[0]
    assert len([line for line in code.splitlines() if line]) == 6


def test_the_quick_start_on_a_server(run: Run) -> None:
    with (
        live_server(run("Quick start").app) as server,
        connect(f"{server.ws}/rooms/kitchen") as one,
        connect(f"{server.ws}/rooms/kitchen") as other,
    ):
        one.send("hi")
        assert [one.recv(timeout=5), other.recv(timeout=5)] == ["hi", "hi"]


# Refusals, tokens, proxies


def no_keys(run: Run) -> tuple[ASGIApp, str, dict[str, str]]:
    app = run("Tokens").app
    app.state.verifier = Verifier(jwks_url="http://127.0.0.1:9/keys")
    claims = {"sub": "ann", "exp": time.time() + 60}
    token = jwt.encode(claims, SECRET, headers={"kid": "k"})
    return app, f"/orders/ann?token={token}", {}


REFUSALS: dict[str, Callable[[Run], tuple[ASGIApp, str, dict[str, str]]]] = {
    "401": lambda run: (run("Who is it").app, "/private", {}),
    "403": lambda run: (run("Quick start").app, "/rooms/a", {"Origin": "https://example.org"}),
    "404": lambda run: (create_app(Settings()), "/nowhere", {}),
    "422": lambda run: (run("Parameters").app, "/prices/oil?depth=many", {}),
    "503": no_keys,
}


def test_every_refusal_is_tried() -> None:
    assert [status for status, _ in table("status", "when")] == list(REFUSALS)


@pytest.mark.parametrize("status", REFUSALS)
def test_refusal(status: str, run: Run) -> None:
    app, path, headers = REFUSALS[status](run)
    with live_server(app) as server, pytest.raises(InvalidStatus) as refused:
        connect(f"{server.ws}{path}", additional_headers=headers).__enter__()
    assert refused.value.response.status_code == int(status)


def test_the_command_makes_the_token_that_it_is_said_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", SECRET)
    (commands,) = (
        block.text for block in BLOCKS if block.heading == "Tokens" and not block.language
    )
    (command,) = (line for line in commands.splitlines() if line.startswith("chatserver token"))
    assert cli.main(shlex.split(command)[1:]) == 0
    token = capsys.readouterr().out.strip()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert (claims["sub"], claims["channels"]) == ("ann", ["item:foo"])
    assert claims["exp"] - claims["iat"] == pytest.approx(3600, abs=1)


def test_behind_a_proxy() -> None:
    app = create_app(Settings(root_path="/chat"))
    with live_server(app, root_path="/chat") as server:
        assert 'data-path="/chat/ws"' in httpx2.get(f"{server.http}/").text
        origin = server.http.replace("http:", "https:")
        headers = {"X-Forwarded-Proto": "https", "Origin": origin}
        with connect(f"{server.ws}/ws", additional_headers=headers) as client:
            client.send("hi")
            assert client.recv(timeout=5) == "Message text was: hi"
        with pytest.raises(InvalidStatus):
            connect(f"{server.ws}/ws", additional_headers={"Origin": origin}).__enter__()


def test_a_page_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine: {{ paths['echo'] }}")
    with TestClient(create_app(Settings(templates=tmp_path))) as client:
        assert client.get("/").text == "mine: /ws"


# What is named is there


def test_every_public_name_is_mentioned() -> None:
    missing = {name for name in chatserver.__all__ if not re.search(rf"\b{name}\b", README)}
    assert missing == set()


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


LINKS = re.findall(r"\]\(([^)\s]+)\)", README)


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_link(link: str) -> None:
    if link.startswith("#"):
        assert link[1:] in map(slug, re.findall(r"^#+ (.+)$", README, re.MULTILINE))
    else:
        assert (ROOT / link).exists()


def test_every_example_is_linked() -> None:
    examples = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")}
    assert examples <= set(LINKS)


def test_every_address_is_of_this_machine_or_an_example() -> None:
    hosts = set(re.findall(r"\w+://([^/\s`\"']+)", README))
    assert hosts <= {"127.0.0.1:8000", "example.org", "www.example.org"}


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    found = {first or second for first, second in named}
    assert {"run", "test"} <= found <= targets


def test_every_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "token"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    known |= {option for param in uvicorn_command.params for option in param.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known
