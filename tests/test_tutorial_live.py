"""FastAPI's WebSocket tutorial itself, and our example of it: their clients are told the same."""

import importlib
import re
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, Query
from playwright.sync_api import expect
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from benchmarks.peers import fastapi_tutorial
from chatserver.testing import LiveServer, live_server
from tests.asgi import Edge
from tests.browser import Visit

pytest_plugins = ["tests.browser"]

Told = list[object]


def original() -> FastAPI:
    """The tutorial's echo and chat, and its item in few words."""
    module = importlib.reload(fastapi_tutorial)  # it keeps the clients
    app = FastAPI()

    async def credential(
        session: Annotated[str | None, Cookie()] = None,
        token: Annotated[str | None, Query()] = None,
    ) -> str | None:
        if (session, token) == (None, None):
            raise WebSocketException(1008)
        return session or token

    @app.websocket("/items/{item}/ws")
    async def serve(
        websocket: WebSocket,
        item: str,
        credential: Annotated[str, Depends(credential)],
        q: int | None = None,
    ) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"Session cookie or query token value is: {credential}")
            if q is not None:
                await websocket.send_text(f"Query parameter q is: {q}")
            await websocket.send_text(f"Message text was: {text}, for item ID: {item}")

    app.mount("/", module.app)
    return app


def example() -> FastAPI:
    app: FastAPI = importlib.import_module("examples.tutorial_in_fastapi").app
    return app


def heard(client: ClientConnection, count: int) -> Told:
    return [client.recv(timeout=5) for _ in range(count)]


def one_client(server: LiveServer, path: str, replies: int, **options: Any) -> Told:
    """What a client is told in reply to some texts, and at its end."""
    try:
        with connect(server.ws + path, **options) as client:
            told: Told = [client.response.status_code, client.subprotocol]
            for text in ("hello", "", "späß 🎉", "<b>&amp;</b>", "x" * 65_536):
                client.send(text)
                told += heard(client, replies)
            client.close(1000)
            return [*told, client.close_code, client.close_reason]
    except InvalidStatus as refusal:
        return [refusal.response.status_code, bytes(refusal.response.body)]


def three_clients(server: LiveServer) -> Told:
    first, second, third = (connect(f"{server.ws}/ws/{n}") for n in (1, 2, 1_700_000_000_000))
    told: Told = []
    with first, second, third:
        for n, speaker in enumerate((first, second, third)):
            speaker.send(f"hi {n}")
            told += heard(speaker, 2)
            told += [heard(each, 1) for each in (first, second, third) if each is not speaker]
        second.close()
        told += heard(first, 1) + heard(third, 1)
        third.close(1001)
        told += heard(first, 1)
    return told


def everything(server: LiveServer) -> Told:
    cookie = {"Cookie": "session=fake"}
    return [
        one_client(server, "/ws", 1),
        one_client(server, "/items/foo/ws?token=abc", 2),
        one_client(server, "/items/a%20b/ws?token=a%20b%26&q=-3", 3),
        one_client(server, "/items/foo/ws", 2, additional_headers=cookie),
        one_client(server, "/items/foo/ws?token=abc&q=0", 3, additional_headers=cookie),
        one_client(server, "/items/foo/ws?token=", 2),
        one_client(server, "/items/foo/ws", 2),
        one_client(server, "/items/foo/ws?token=abc&q=x", 3),
        one_client(server, "/ws/x", 2),
        one_client(server, "/nothing", 1),
        three_clients(server),
    ]


def test_the_example_in_fastapi_tells_its_clients_what_the_original_tells(edge: Edge) -> None:
    with live_server(original(), ws="auto", http="auto") as server:
        expected = everything(server)
    with live_server(example(), **edge) as server:
        assert everything(server) == expected
    served = [told[0] for told in expected[:-1] if isinstance(told, list)]
    assert served == [101] * 6 + [403] * 4


def test_its_page(visit: Visit) -> None:
    with live_server(example()) as server:
        one, other = visit(server.http), visit(server.http)
        for page in (one, other):
            page.get_by_label("Connect to").select_option("the chat")
            page.get_by_role("button", name="Connect").click()
            expect(page.get_by_role("status")).to_have_text("Connected")
        one.get_by_label("Message").fill("hello")
        one.get_by_role("button", name="Send").click()
        expect(one.get_by_role("listitem").first).to_have_text("You wrote: hello")
        expect(other.get_by_role("listitem")).to_have_text(re.compile("Client #[0-9]+ says: hello"))
        other.get_by_label("Connect to").select_option("an item")
        other.get_by_label("Token").fill("a&b")
        other.get_by_role("button", name="Connect").click()
        expect(other.get_by_role("status")).to_have_text("Connected")
        other.get_by_label("Message").fill("x")
        other.get_by_role("button", name="Send").click()
        said = "Session cookie or query token value is: a&b"
        expect(other.get_by_role("listitem").nth(1)).to_have_text(said)
        expect(one.get_by_role("listitem").last).to_contain_text("left the chat")
