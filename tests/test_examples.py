"""The examples, each run for real: in conversation with a test client, and on a server."""

import importlib
import json
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import ASGIApp
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatserver import cli
from chatserver.auth import mint
from chatserver.testing import LiveServer, assert_no_message, live_server
from tests.asgi import Edge, wait_until
from tests.engines import Postgres

pytest_plugins = ["tests.engines"]

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SECRET = "correct-horse-battery-staple-0123456789"
TIMEOUT = 5.0

Load = Callable[[str], ASGIApp]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Gives an example's application, imported anew: it reads the environment, and keeps things."""

    def load(name: str) -> ASGIApp:
        monkeypatch.delitem(sys.modules, f"examples.{name}", raising=False)
        app: ASGIApp = importlib.import_module(f"examples.{name}").app
        return app

    return load


@pytest.fixture
def client(load: Load, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    """A test client of the example with whose name the test's begins."""
    test = request.function.__name__.removeprefix("test_")
    with TestClient(load(next(filter(test.startswith, NAMES)))) as client:
        yield client


@pytest.fixture
def server(load: Load, request: pytest.FixtureRequest, edge: Edge) -> Iterator[LiveServer]:
    """A server with the example after which the test is named."""
    name = request.function.__name__.removeprefix("test_").removesuffix("_on_a_server")
    with live_server(load(name), **edge) as server:
        yield server


def received(client: ClientConnection) -> Any:
    return json.loads(client.recv(timeout=TIMEOUT))


def send(client: ClientConnection, **message: Any) -> None:
    client.send(json.dumps(message))


# custom_echo


def test_custom_echo(client: TestClient) -> None:
    with client.websocket_connect("/echo") as session:
        session.send_json({"say": "desserts", "times": 2})
        assert session.receive_json() == {"say": "stressed", "times": 2}
        session.send_json(["ab", ["cd", None]])
        assert session.receive_json() == ["ba", ["dc", None]]


def test_custom_echo_on_a_server(server: LiveServer) -> None:
    with connect(f"{server.ws}/echo") as client:
        client.send('{"say": "desserts", "times": 2}')
        assert client.recv(timeout=TIMEOUT) == '{"say":"stressed","times":2}'
        client.send("no JSON")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=TIMEOUT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007


# typed_room


def test_typed_room(client: TestClient) -> None:
    came_ann, came_bob = ({"type": "came", "name": name} for name in ("ann", "bob"))
    coffee = {"type": "said", "author": "ann", "text": "coffee?"}
    with client.websocket_connect("/rooms/kitchen?name=ann") as ann:
        assert ann.receive_json() == came_ann
        with client.websocket_connect("/rooms/kitchen?name=bob") as bob:
            assert [ann.receive_json(), bob.receive_json()] == [came_bob, came_bob]
            ann.send_json({"type": "say", "text": "coffee?"})
            assert [ann.receive_json(), bob.receive_json()] == [coffee, coffee]
            bob.send_json({"type": "who"})
            assert bob.receive_json() == {"type": "here", "names": ["ann", "bob"]}
            bob.send_json({"type": "typing"})
            assert ann.receive_json() == {"type": "typing", "author": "bob"}
            assert_no_message(bob)
        assert ann.receive_json() == {"type": "went", "name": "bob"}
        ann.send_json({"type": "say", "text": ""})
        error = ann.receive_json()
        assert error["type"] == "error"
        assert "length >= 1" in error["reason"]


def test_typed_room_begins_with_what_was_said(client: TestClient) -> None:
    with client.websocket_connect("/rooms/attic?name=ann") as ann:
        assert ann.receive_json()["type"] == "came"
        for text in ("one", "two"):
            ann.send_json({"type": "say", "text": text})
            assert ann.receive_json()["text"] == text
        with client.websocket_connect("/rooms/attic?name=bob") as bob:
            earlier = bob.receive_json()
    assert [said["text"] for said in earlier["said"]] == ["one", "two"]


def test_typed_room_whispers_to_one(client: TestClient) -> None:
    with (
        client.websocket_connect("/rooms/loft?name=ann") as ann,
        client.websocket_connect("/rooms/loft?name=bob") as bob,
        client.websocket_connect("/rooms/loft?name=eve") as eve,
    ):
        for session, come in ((ann, 3), (bob, 2), (eve, 1)):
            assert {session.receive_json()["type"] for _ in range(come)} == {"came"}
        ann.send_json({"type": "say", "text": "psst", "to": "bob"})
        assert bob.receive_json() == {"type": "said", "author": "ann", "text": "psst"}
        assert_no_message(ann)
        assert_no_message(eve)


def test_typed_room_counts_a_person_with_two_tabs_once(client: TestClient) -> None:
    with client.websocket_connect("/rooms/hall?name=ann") as ann:
        assert ann.receive_json()["type"] == "came"
        with client.websocket_connect("/rooms/hall?name=bob"):
            assert ann.receive_json() == {"type": "came", "name": "bob"}
            with client.websocket_connect("/rooms/hall?name=bob"):
                assert_no_message(ann)
            assert_no_message(ann)
        assert ann.receive_json() == {"type": "went", "name": "bob"}


def test_typed_room_takes_nobody_without_a_name(load: Load) -> None:
    with TestClient(load("typed_room")) as client, pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect("/rooms/kitchen").__enter__()
    assert denied.value.status_code == 422
    assert denied.value.text == "query parameter 'name' is required"


def test_typed_room_on_a_server(server: LiveServer) -> None:
    with (
        connect(f"{server.ws}/rooms/kitchen?name=ann") as ann,
        connect(f"{server.ws}/rooms/garden?name=bob") as bob,
    ):
        assert received(ann) == {"type": "came", "name": "ann"}
        assert received(bob) == {"type": "came", "name": "bob"}
        send(ann, type="say", text="nobody hears me next door")
        assert received(ann)["author"] == "ann"
        send(bob, type="who")
        assert received(bob) == {"type": "here", "names": ["bob"]}


# push_from_http


def test_push_from_http(client: TestClient) -> None:
    with (
        client.websocket_connect("/items/lamp") as lamp,
        client.websocket_connect("/items/door") as door,
    ):
        position = client.post("/items/lamp", json={"colour": "red"}).json()
        assert position["offset"] == 1
        assert lamp.receive_json() == {"colour": "red"}
        assert client.delete("/items/lamp").status_code == 204
        assert lamp.receive_json() == {"removed": True}
        assert_no_message(door)
    assert client.post("/items/lamp", content="no JSON").status_code == 400


def test_push_from_http_on_a_server(server: LiveServer) -> None:
    with connect(f"{server.ws}/items/lamp") as lamp:
        first = httpx2.post(f"{server.http}/items/lamp", json={"colour": "red"}).json()
        second = httpx2.post(f"{server.http}/items/lamp", json={"colour": "blue"}).json()
        assert (first["offset"], second["offset"]) == (1, 2)
        assert first["epoch"] == second["epoch"]
        assert [received(lamp), received(lamp)] == [{"colour": "red"}, {"colour": "blue"}]
        assert httpx2.delete(f"{server.http}/items/lamp").status_code == 204
        assert received(lamp) == {"removed": True}


# publish_in_transaction


@pytest.fixture
def shop(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new database, which the example finds in the environment."""
    name = f"shop_{token_hex(4)}"
    postgres.sql(f"CREATE DATABASE {name}")
    url = postgres.url.removesuffix("postgres") + name
    monkeypatch.setenv("DATABASE_URL", url)
    return url


def test_publish_in_transaction(shop: str, client: TestClient, postgres: Postgres) -> None:
    with client.websocket_connect("/sales") as session:
        assert client.post("/buy/2").json() == {"sold": 2}
        assert client.post("/buy/2").status_code == 409
        assert client.post("/buy/1").json() == {"sold": 1}
        # Nothing of the sale that failed came between.
        assert [session.receive_json(), session.receive_json()] == [{"sold": 2}, {"sold": 1}]
    assert postgres.sql("SELECT apples FROM stock", shop) == [["0"]]
    assert postgres.sql("SELECT position FROM chatserver.publication", shop) == [["1"], ["2"]]


def test_publish_in_transaction_on_a_server(shop: str, server: LiveServer) -> None:
    with connect(f"{server.ws}/sales") as session:
        for count, status in ((4, 409), (1, 200), (3, 409), (2, 200)):
            assert httpx2.post(f"{server.http}/buy/{count}").status_code == status
        assert [received(session), received(session)] == [{"sold": 1}, {"sold": 2}]


# inside_fastapi


def test_inside_fastapi(client: TestClient) -> None:
    with client.websocket_connect("/auctions/vase/live") as session:
        assert_no_message(session)
        session.send_json({"type": "bid", "bidder": "ann", "cents": 1200})
        assert session.receive_json() == {"type": "bid", "bidder": "ann", "cents": 1200}
        session.send_json({"type": "bid", "bidder": "bob", "cents": 1200})
        assert session.receive_json() == {"type": "bid", "bidder": "ann", "cents": 1200}
        answer = client.post("/auctions/vase/bids", json={"bidder": "bob", "cents": 1500})
        assert answer.status_code == 201
        assert session.receive_json() == answer.json()
        with client.websocket_connect("/auctions/vase/live") as late:
            assert late.receive_json() == answer.json()
        session.send_json({"type": "bid", "bidder": "ann", "cents": -1})
        assert session.receive_json()["reason"].endswith("greater than 0 - at `$.cents`")
    bid = {"bidder": "ann", "cents": 1}
    assert client.post("/auctions/vase/bids", json=bid).status_code == 409


def test_inside_fastapi_on_a_server(server: LiveServer) -> None:
    bid = {"bidder": "bob", "cents": 1500}
    with connect(f"{server.ws}/auctions/vase/live") as client:
        httpx2.post(f"{server.http}/auctions/vase/bids", json=bid).raise_for_status()
        assert received(client) == {"type": "bid", **bid}
        send(client, type="bid", bidder="ann", cents=1600)
        assert received(client)["bidder"] == "ann"
    with connect(f"{server.ws}/auctions/vase/live") as client:
        assert received(client)["cents"] == 1600


# tutorial_in_fastapi; `test_tutorial_live` compares it with the tutorial


def test_tutorial_in_fastapi(client: TestClient) -> None:
    assert "<h1>WebSocket tutorial</h1>" in client.get("/").text
    with client.websocket_connect("/ws/1") as one:
        with client.websocket_connect("/items/foo/ws?token=abc&q=3") as item:
            item.send_text("hi")
            assert [item.receive_text() for _ in range(3)] == [
                "Session cookie or query token value is: abc",
                "Query parameter q is: 3",
                "Message text was: hi, for item ID: foo",
            ]
        one.send_text("hi")
        assert [one.receive_text(), one.receive_text()] == ["You wrote: hi", "Client #1 says: hi"]


def test_tutorial_in_fastapi_on_a_server(server: LiveServer) -> None:
    with connect(f"{server.ws}/ws") as client:
        client.send("hi")
        assert client.recv(timeout=TIMEOUT) == "Message text was: hi"
    for path in ("/items/foo/ws", "/items/foo/ws?token=x&q=x", "/ws/x"):
        with pytest.raises(InvalidStatus) as refused:
            connect(server.ws + path).__enter__()
        assert refused.value.response.status_code == 403


# fastapi_depends


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_fastapi_depends(client: TestClient) -> None:
    with client.websocket_connect("/notes/live", headers=bearer("k-1")) as session:
        session.send_text("milk")
        assert session.receive_text() == "1 notes"
        assert client.get("/notes", headers=bearer("k-2")).json() == []
    assert client.get("/notes", headers=bearer("k-2")).json() == ["ann: milk"]
    for headers, status in [({}, 401), (bearer("x"), 401), (bearer("k-2"), 403)]:
        with pytest.raises(WebSocketDenialResponse) as denied:
            client.websocket_connect("/notes/live", headers=headers).__enter__()
        assert denied.value.status_code == status


def test_fastapi_depends_with_overrides(load: Load) -> None:
    app: Any = load("fastapi_depends")
    notes: list[str] = []
    example = sys.modules["examples.fastapi_depends"]
    app.dependency_overrides = {
        example.current_user: lambda: "eve",
        example.notebook: lambda: notes,
    }
    with TestClient(app) as client, client.websocket_connect("/notes/live") as session:
        session.send_text("milk")
        assert session.receive_text() == "1 notes"
    assert notes == ["eve: milk"]


def test_fastapi_depends_on_a_server(server: LiveServer) -> None:
    with connect(f"{server.ws}/notes/live", additional_headers=bearer("k-1")) as client:
        client.send("milk")
        assert client.recv(timeout=TIMEOUT) == "1 notes"
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.ws}/notes/live", additional_headers=bearer("k-2")).__enter__()
    assert refused.value.response.status_code == 403
    wait_until(lambda: httpx2.get(f"{server.http}/notes", headers=bearer("k-2")).json())


# ticker


def test_ticker(client: TestClient) -> None:
    with client.websocket_connect("/ticks?every=0.01") as session:
        assert [session.receive_json()["n"] for _ in range(3)] == [1, 2, 3]
    with client.websocket_connect("/ticks?every=3600") as session:
        assert session.receive_json() == {"type": "tick", "n": 1}
        assert_no_message(session)
        session.send_json({"type": "pace", "every": 0})
        assert "`float` >= 0.01" in session.receive_json()["reason"]


def test_ticker_on_a_server(server: LiveServer) -> None:
    with connect(f"{server.ws}/ticks?every=0.01") as client:
        assert [received(client)["n"] for _ in range(3)] == [1, 2, 3]
        send(client, type="pace", every=3600)
        send(client, type="unknown")
        while received(client)["type"] != "error":
            pass
        # The pace is set. The task may have slept at the old one until now, but not again.
        assert len(all_that_comes(client)) <= 1


def all_that_comes(client: ClientConnection) -> list[Any]:
    came = []
    with suppress(TimeoutError):
        while True:
            came.append(client.recv(timeout=0.3))
    return came


# game_loop


def positions(frame: bytes) -> dict[int, tuple[int, int]]:
    return {number: (x, y) for number, x, y in struct.iter_unpack("!HHH", frame)}


def test_game_loop(client: TestClient) -> None:
    with client.websocket_connect("/arenas/cellar") as ann:
        assert ann.receive_bytes() == b""
        assert list(positions(ann.receive_bytes()).values()) == [(0, 0)]
        for key in (b"R", b"R", b"D", b"?", b"U", b"U"):
            ann.send_bytes(key)
        while positions(ann.receive_bytes()) != {1: (2, 999)}:
            pass
        with client.websocket_connect("/arenas/cellar") as bob:
            while positions(bob.receive_bytes()) != {1: (2, 999), 2: (0, 0)}:
                pass
        while positions(ann.receive_bytes()) != {1: (2, 999)}:
            pass
    with client.websocket_connect("/arenas/cellar") as ann:
        assert ann.receive_bytes() == b""


def test_game_loop_on_a_server(server: LiveServer) -> None:
    with (
        connect(f"{server.ws}/arenas/cellar") as ann,
        connect(f"{server.ws}/arenas/attic") as bob,
    ):
        ann.send(b"R")
        while (1, 0) not in frame_of(ann).values():
            pass
        assert (1, 0) not in frame_of(bob).values()
        began = time.monotonic()
        for _ in range(10):
            frame_of(bob)
        assert time.monotonic() - began > 0.3  # of 0.5 s
        bob.send("no bytes")
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                bob.recv(timeout=TIMEOUT)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003


def frame_of(client: ClientConnection) -> dict[int, tuple[int, int]]:
    frame = client.recv(timeout=TIMEOUT)
    assert isinstance(frame, bytes)
    return positions(frame)


# tokens


@pytest.fixture
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATSERVER_TOKEN_SECRET", SECRET)


@pytest.mark.usefixtures("_secret")
def test_tokens(load: Load) -> None:
    token = mint(SECRET, user="ann", ttl_seconds=60, channels=["user:ann"])
    with TestClient(load("tokens")) as client:
        bearer = {"Authorization": f"Bearer {token}"}
        with client.websocket_connect("/users/ann", headers=bearer) as session:
            assert session.receive_text() == "Welcome, ann"
            assert client.post("/users/ann", content="hello").status_code == 202
            assert session.receive_text() == "hello"
        for url, status in [("/users/ann", 401), (f"/users/bob?token={token}", 403)]:
            with pytest.raises(WebSocketDenialResponse) as denied:
                client.websocket_connect(url).__enter__()
            assert denied.value.status_code == status


@pytest.mark.usefixtures("_secret")
def test_tokens_on_a_server(load: Load, capsys: pytest.CaptureFixture[str], edge: Edge) -> None:
    assert cli.main(["token", "--sub", "ann", "--channel", "user:ann"]) == 0
    token = capsys.readouterr().out.strip()
    with live_server(load("tokens"), **edge) as server:
        with connect(f"{server.ws}/users/ann?token={token}") as client:
            assert client.recv(timeout=TIMEOUT) == "Welcome, ann"
            httpx2.post(f"{server.http}/users/ann", content="hello").raise_for_status()
            assert client.recv(timeout=TIMEOUT) == "hello"
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{server.ws}/users/bob?token={token}").__enter__()
    assert refused.value.response.status_code == 403


def test_tokens_without_a_secret_lets_nobody_in(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHATSERVER_TOKEN_SECRET", raising=False)
    token = mint(SECRET, user="ann", ttl_seconds=60)
    with TestClient(load("tokens")) as client, pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect(f"/users/ann?token={token}").__enter__()
    assert denied.value.status_code == 401


# All of them


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_tested_and_says_how_to_run_it(name: str) -> None:
    assert {f"test_{name}", f"test_{name}_on_a_server"} <= globals().keys()
    source = (FOLDER / f"{name}.py").read_text("utf-8")
    assert f"\n    uvicorn examples.{name}:app\n" in source.split('"""')[1]


# job_progress


def test_job_progress(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["examples.job_progress"]
    step = threading.Semaphore(0)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: step.acquire()))
    job = client.post("/jobs").json()["job"]
    with client.websocket_connect(f"/jobs/{job}") as early:
        for done in (1, 2, 3):
            step.release()
            assert early.receive_json() == {"type": "progress", "done": done, "of": 10}
        with client.websocket_connect(f"/jobs/{job}") as late:
            assert late.receive_json()["done"] == 3
            step.release(7)
            for session in (early, late):
                assert [session.receive_json()["done"] for _ in range(7)] == list(range(4, 11))


def test_job_progress_on_a_server(server: LiveServer) -> None:
    job = httpx2.post(f"{server.http}/jobs").json()["job"]
    with connect(f"{server.ws}/jobs/{job}") as client:
        while (progress := received(client))["done"] < 10:
            assert progress["type"] == "progress"
