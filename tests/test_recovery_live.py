"""Recovery on real servers: clients are cut off in the middle, the guide's in a real browser."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from chatserver import Hub, MemoryBroker
from chatserver.brokers import Broker
from chatserver.brokers.urls import broker_from_url
from chatserver.errors import CLOSE_CODES
from chatserver.testing import LiveServer, live_server
from tests.asgi import Edge
from tests.browser import Visit, Wire
from tests.engines import Valkey
from tests.pages import BLOCKS

pytest_plugins = ["tests.browser", "tests.engines"]

PAGE = "docs/guide/recovery.md"
BLOCK = {(block.heading, block.language): block.text for block in BLOCKS if block.page == PAGE}
CLIENT = BLOCK["A client in thirty lines", "js"]
SCRIPT = """
<!doctype html><title>news</title><link rel="icon" href="data:,">
<script type="module">
  import { follow } from "/client.js";
  Object.assign(window, { got: [], gaps: 0 });
  follow("/news/chess", { onData: ({ n }) => got.push(n), onGap: () => (gaps += 1) });
</script>
"""


async def cut(request: Request) -> Response:
    """The server's side ends all connections: with a close, or without a word."""
    hub: Hub = request.app.state.hub
    for fanout in tuple(hub._fanouts.values()):
        for connection in tuple(fanout.connections):
            if request.query_params["how"] == "close":
                await hub.disconnect(client=connection.id, code=1012)
            else:
                connection.abort()
    return Response()


def application(broker: Broker | None = None) -> Starlette:
    """The guide's application, with a page, its client, and a way to cut connections."""
    module = ModuleType("news")
    exec(compile(BLOCK["The class", "python"], PAGE, "exec"), vars(module))
    app: Starlette = module.app
    app.state.hub = Hub(broker or MemoryBroker(history_size=10_000))
    app.router.routes.extend(
        [
            Route("/", lambda _: HTMLResponse(SCRIPT)),
            Route("/client.js", lambda _: Response(CLIENT, media_type="text/javascript")),
            Route("/cut", cut, methods=["POST"]),
        ]
    )
    return app


class Publisher:
    """Publishes whole numbers, one after the other, until it is stopped.

    Attributes:
        last: The last number.
    """

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.last = 0
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx2.Client(base_url=self._server.http) as client:
            while not self._stopping.is_set():
                self.last += 1
                client.post("/news/chess", json={"n": self.last}).raise_for_status()


@pytest.fixture
def served() -> Iterator[tuple[LiveServer, Wire]]:
    with live_server(application()) as server:
        wire = Wire(server)
        yield server, wire
        wire.close()


# With a client in Python


class Reader:
    """A client that keeps its position, and removes no duplicates.

    Attributes:
        got: The numbers that it was sent.
        told: What it was told at each start: whether it recovered, or None.
    """

    def __init__(self) -> None:
        self.since: dict[str, Any] = {}
        self.got: list[int] = []
        self.told: list[bool | None] = []

    def read(self, server: LiveServer, count: int) -> Iterator[None]:
        """Connect, and read until the end; yields once after so many publications."""
        more = len(self.got) + count
        with (
            connect(f"{server.ws}/news/chess?since={quote(json.dumps(self.since))}") as client,
            suppress(ConnectionClosed),
        ):
            while True:
                message = json.loads(client.recv(timeout=5))
                if "since" in message:
                    self.since[message["channel"]] = message["since"]
                    self.told.append(message.get("recovered"))
                    continue
                self.since[message["channel"]]["offset"] = message["offset"]
                self.got.append(message["data"]["n"])
                if len(self.got) == more:
                    yield


@pytest.mark.parametrize("how", ["close", "abort"])
def test_nothing_is_missing_and_nothing_comes_twice(edge: Edge, how: str) -> None:
    reader = Reader()
    with live_server(application(), **edge) as server:
        publisher = Publisher(server)
        for turn in range(1, 9):
            for _ in reader.read(server, 20 * turn):
                httpx2.post(f"{server.http}/cut?how={how}")
        publisher.stop()
    assert reader.got == list(range(reader.got[0], reader.got[0] + len(reader.got)))
    assert len(reader.got) >= 20 * 36
    assert reader.told == [None, *[True] * 7]


def test_from_one_server_to_another(valkey: Valkey) -> None:
    """A position is the broker's: any process knows it, until the engine has lost the stream."""
    valkey.flush()
    brokers = [broker_from_url(valkey.url, history_size=10_000) for _ in range(2)]
    reader = Reader()
    with (
        live_server(application(brokers[0])) as one,
        live_server(application(brokers[1])) as two,
    ):
        publisher = Publisher(one)
        for server in (one, two) * 4:
            for _ in reader.read(server, 30):
                httpx2.post(f"{server.http}/cut?how=close")
        publisher.stop()
        assert reader.got == list(range(reader.got[0], reader.got[0] + len(reader.got)))
        assert reader.told == [None, *[True] * 7]
        valkey.flush()
        httpx2.post(f"{one.http}/news/chess", json={"n": 0}).raise_for_status()
        for _ in reader.read(two, 1):
            httpx2.post(f"{two.http}/cut?how=close")
        assert (reader.told[-1], reader.got[-1]) == (False, 0)


def test_a_bad_position_is_refused(edge: Edge) -> None:
    with live_server(application(), **edge) as server:
        for value in ("7", "%00", "{}&since={}", "%7B%22a%22:" + "%5B" * 2000):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"{server.ws}/news/chess?since={value}").__enter__()
            assert refused.value.response.status_code == 422
            body = refused.value.response.body
            assert body is not None
            assert body.startswith(b"query parameter 'since' must ")


# With the guide's client


def wait_for(page: Page, condition: str, value: int = 0) -> None:
    page.wait_for_function(condition, arg=value, timeout=20_000)


def test_the_guides_client(served: tuple[LiveServer, Wire], visit: Visit) -> None:
    server, wire = served
    page = visit(wire.url)
    publisher = Publisher(server)
    wait_for(page, "got.length > 5")
    for how in ("wire", "close", "abort", "wire", "close", "wire"):
        if how == "wire":
            wire.cut()
        else:
            httpx2.post(f"{server.http}/cut?how={how}")
        wait_for(page, "(last) => got.at(-1) > last + 20", publisher.last)
    publisher.stop()
    wait_for(page, "(last) => got.at(-1) === last", publisher.last)
    got, gaps = page.evaluate("[got, gaps]")
    assert got == list(range(got[0], publisher.last + 1))
    assert gaps == 0


def test_the_guides_client_is_told_of_a_broker_that_began_anew(
    served: tuple[LiveServer, Wire], visit: Visit
) -> None:
    server, wire = served
    page = visit(wire.url)
    httpx2.post(f"{server.http}/news/chess", json={"n": 1})
    wait_for(page, "got.length === 1")
    with live_server(application()) as other:
        for n in (2, 3):
            httpx2.post(f"{other.http}/news/chess", json={"n": n})
        wire.server = other
        wire.cut()
        wait_for(page, "got.length === 3")
        assert page.evaluate("[got, gaps]") == [[1, 2, 3], 1]
        page.close()


def test_the_guides_client_knows_the_table() -> None:
    listed = re.search(r"new Set\(\[([\d, ]+)\]\)", CLIENT)
    assert listed is not None
    final = [code for code, row in CLOSE_CODES.items() if not row.retry]
    assert [int(code) for code in listed[1].split(", ")] == final


def test_the_guides_client_has_thirty_lines() -> None:
    _, _, code = CLIENT.partition("export function")
    assert len(code.splitlines()) <= 30
