"""Requests: messages with an id, on real servers, and from a browser with the guide's script."""

import json
from typing import Any
from uuid import uuid4

import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import ClientConnection, connect

from chatserver import Endpoint, Message, on_message
from chatserver.errors import InvalidMessage
from chatserver.testing import live_server
from tests.asgi import Edge
from tests.browser import Visit
from tests.pages import BLOCKS

pytest_plugins = ["tests.browser"]

SCRIPT = next(
    block.text
    for block in BLOCKS
    if block.name == "docs/guide/messages.md: In a browser" and block.language == "js"
)


class Ping(Message):
    n: int


class Pong(Message):
    n: int


class Say(Message):
    text: str


class Said(Message):
    text: str


class Hall(Endpoint):
    channels = ("hall",)

    @on_message
    async def ping(self, websocket: WebSocket, message: Ping) -> Pong:
        return Pong(n=message.n)

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        if not message.text:
            raise InvalidMessage("say something")
        await self.publish(Said(text=message.text), id=self.message_id)


def application() -> Starlette:
    async def page(request: Any) -> HTMLResponse:
        return HTMLResponse("<!doctype html><link rel='icon' href='data:,'><title>hall</title>")

    return Starlette(routes=[Route("/", page), WebSocketRoute("/hall", Hall)])


def ask(client: ClientConnection, **message: Any) -> Any:
    client.send(json.dumps(message))
    return json.loads(client.recv(timeout=5))


def test_on_a_server(edge: Edge) -> None:
    id = str(uuid4())
    with live_server(application(), **edge) as server, connect(f"{server.ws}/hall") as one:
        assert ask(one, type="ping", n=1, id="a") == {"type": "pong", "n": 1, "id": "a"}
        assert ask(one, type="ping", n="", id=2)["id"] == 2
        assert ask(one, type="say", text="hi", id=id) == {"type": "said", "text": "hi"}
        assert json.loads(one.recv(timeout=5)) == {"type": "ack", "id": id}
        with connect(f"{server.ws}/hall") as again:
            assert ask(again, type="say", text="hi", id=id) == {"type": "ack", "id": id}
            assert ask(again, type="ping", n=1) == {"type": "pong", "n": 1}


@pytest.mark.parametrize("count", [1, 50])
def test_a_browser_waits_for_its_own_answers(visit: Visit, count: int) -> None:
    with live_server(application()) as server, connect(f"{server.ws}/hall") as other:
        page = visit(server.http)
        page.add_script_tag(content=SCRIPT)
        url = f"{server.ws}/hall"
        page.evaluate("url => { heard = []; request = dial(url, (m) => heard.push(m)); }", url)
        numbers = list(range(count))
        ask_all = "ns => Promise.all(ns.map((n) => request({ type: 'ping', n })))"
        assert [answer["n"] for answer in page.evaluate(ask_all, numbers)] == numbers
        assert page.evaluate("request({ type: 'say', text: 'hi' }).then((m) => m.type)") == "ack"
        assert json.loads(other.recv(timeout=5)) == {"type": "said", "text": "hi"}
        assert page.evaluate("heard") == [{"type": "said", "text": "hi"}]
        failed = "request({ type: 'say', text: '' }).catch((error) => error.message)"
        assert page.evaluate(failed) == "say something"
