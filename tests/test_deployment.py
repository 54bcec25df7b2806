"""The pages on running it: their configurations are the files, and hold what the pages say.

Proxies and other servers were tried by hand: nothing here needs one to be installed.
"""

import json
import re
import shlex
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import jwt
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chatserver import EchoEndpoint, Endpoint, Identity, Verifier, lifespan
from chatserver.auth import mint
from chatserver.cli import main
from chatserver.errors import CLOSE_CODES
from chatserver.settings import Settings
from chatserver.testing import LiveServer, live_server
from tests.pages import BLOCKS, PAGES, ROOT, table

FOLDER = ROOT / "examples" / "deploy"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())
NEW, OLD = "correct-horse-battery-staple-0123456789", "the-secret-before-that-0123456789-0123"


def text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


# The configurations


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_shows_the_file(path: Path) -> None:
    shown = [block.text for block in BLOCKS if block.page == "docs/deployment.md"]
    assert path.read_text("utf-8") in shown


def test_every_variable_is_a_setting() -> None:
    known = {row.env for row in Settings.describe()}
    pages = [PAGES[f"docs/{name}.md"] for name in ("deployment", "security", "troubleshooting")]
    named = re.findall(r"\bCHATSERVER_[A-Z_]*[A-Z]\b", "\n".join(pages))
    assert {"CHATSERVER_TOKEN_SECRET", "CHATSERVER_HOST"} <= {*named} <= known


def commands() -> list[list[str]]:
    """The commands of the unit and of the image."""
    (unit,) = re.findall(r"^ExecStart=(.+)$", text("chatserver@.service"), re.MULTILINE)
    (image,) = re.findall(r"^CMD (.+)$", text("Dockerfile"), re.MULTILINE)
    return [shlex.split(unit.replace("%i", "8000")), json.loads(image)]


@pytest.mark.parametrize("command", commands(), ids=["systemd", "container"])
def test_a_command_without_a_key_ends_with_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = command
    assert Path(program).name == "chatserver"
    monkeypatch.setenv("CHATSERVER_HOST", "0.0.0.0")
    assert main(arguments) == 2
    assert "Refusing to listen on 0.0.0.0" in capsys.readouterr().err


def test_the_access_log_of_nginx_has_no_query() -> None:
    (log_format,) = re.findall(r"^log_format (.+);$", text("nginx.conf"), re.MULTILINE)
    variables = set(re.findall(r"\$(\w+)", log_format))
    assert "uri" in variables
    assert not variables & {"request", "request_uri", "args", "query_string", "http_referer"}


def test_gunicorn_runs_our_protocols() -> None:
    names: dict[str, Any] = {}
    exec(text("gunicorn.conf.py"), names)
    worker = SimpleNamespace(CONFIG_KWARGS={"http": "auto"})
    names["on_starting"](SimpleNamespace(worker_class=worker))
    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)])
    with live_server(app, **worker.CONFIG_KWARGS) as server:
        protocols = server.server.config.http_protocol_class, server.server.config.ws_protocol_class
    assert [each.__module__ for each in protocols if isinstance(each, type)] == [
        "chatserver.server.http",
        "chatserver.server.websocket",
    ]
    assert names["workers"] == 1


def test_compose_has_no_secrets() -> None:
    named = re.findall(r"^.*(?:SECRET|PASSWORD|requirepass).*$", text("compose.yaml"), re.MULTILINE)
    used = [line for line in named if not line.startswith("#") and "$$" not in line]
    assert len(used) == 4
    assert all(re.search(r"\$\{\w+:\?set it in \.env\}", line) for line in used)


# What a proxy has to pass on


def asked(
    server: LiveServer, path: str = "/ws", host: str = "chat.example.org", **more: Any
) -> int:
    """The status with which a handshake is answered that a proxy passes on."""
    passed_on = socket.create_connection(("127.0.0.1", server.port))
    try:
        with connect(f"ws://{host}{path}", sock=passed_on, **more):
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


def test_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Starlette(routes=[WebSocketRoute("/ws", EchoEndpoint)], lifespan=lifespan)
    page: dict[str, Any] = {"origin": "https://chat.example.org"}
    tls = page | {"additional_headers": {"X-Forwarded-Proto": "https"}}
    with live_server(app) as server:
        assert asked(server, **tls) == 101
        assert asked(server, **page) == 403  # without X-Forwarded-Proto
        assert asked(server, host="127.0.0.1:8000", **tls) == 403  # the proxy's own Host
        assert httpx2.get(f"{server.http}/ws").status_code == 426  # without Upgrade
    for believed, status in {
        "127.0.0.0/8": 101,
        "192.0.2.1,127.0.0.1": 101,
        "192.0.2.1": 403,
    }.items():
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", believed)
        with live_server(app) as server:
            assert asked(server, **tls) == status


# Security


def test_either_secret() -> None:
    (snippet,) = [block.text for block in BLOCKS if block.language == "py"]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NEW_SECRET", NEW)
        environment.setenv("OLD_SECRET", OLD)
        exec(snippet, names)
    with live_server(names["app"]) as server:
        for secret, status in {NEW: 101, OLD: 101, NEW + "?": 403}.items():
            token = mint(secret, user="ann", ttl_seconds=60)
            assert asked(server, f"/items/foo/ws?token={token}") == status


# Troubleshooting


class Private(Endpoint):
    channels = ("orders:ann",)

    async def authenticate(self, websocket: Any) -> Identity:
        return await self.identify(websocket)


def test_why_a_token_is_refused() -> None:
    app = Starlette(routes=[WebSocketRoute("/", Private)], lifespan=lifespan)
    app.state.verifier = Verifier(secret=NEW)
    expired = jwt.encode({"sub": "ann", "exp": 1}, NEW)
    refused = ["", "a-word", mint(OLD, user="ann", ttl_seconds=60), expired]
    rows = table("docs/troubleshooting.md", "reason", "what to do")
    with live_server(app) as server:
        for (reason, *_), token in zip(rows, refused, strict=True):
            with pytest.raises(InvalidStatus) as refusal, connect(f"{server.ws}/?token={token}"):
                pass
            assert refusal.value.response.status_code == 401
            assert (refusal.value.response.body or b"").decode() == reason


def test_every_code_and_status_is_explained() -> None:
    page = PAGES["docs/troubleshooting.md"]
    ours = {str(row.code) for row in CLOSE_CODES.values() if row.sender == "server"}
    statuses = {status for status, _ in table("docs/close-codes.md", "status", "when")}
    assert {code for code in ours | statuses if code not in page} == set()
