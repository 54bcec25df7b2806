"""Presence as people read it: users and clients, with names and since when."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from chatserver import OPEN_MODE, Endpoint, FromQuery, Identity, Message, lifespan, on_message
from chatserver.auth import ANONYMOUS, user_of
from chatserver.brokers import Disconnect
from chatserver.endpoints.application import hub_of
from chatserver.hub import Presence, PresentUser
from chatserver.publication import ClientInfo
from chatserver.testing import receive_json


class Struct(msgspec.Struct):
    id: int
    email: str = "ann@example.org"


class Model(BaseModel):
    username: str
    password: str = "secret"


@dataclass
class Row:
    name: str


class Detached:
    @property
    def id(self) -> int:
        raise RuntimeError("the session is closed")

    name = "ann"


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (None, ""),
        (ANONYMOUS, ""),
        (Identity("anonymous"), "anonymous"),
        (Identity("ann"), "ann"),
        ("ann", "ann"),
        (7, "7"),
        (True, ""),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"id": 7, "name": "ann"}, "7"),
        ({"username": "ann", "id": 7}, "ann"),
        ({"id": None, "name": "ann"}, "ann"),
        ({"id": {"nested": 1}}, ""),
        ({}, ""),
        (Struct(7), "7"),
        (Model(username="ann"), "ann"),
        (Row("ann"), "ann"),
        (Detached(), "ann"),
        (object(), ""),
        (["ann"], ""),
    ],
)
def test_the_name_of_a_user_is_found_in_whatever_authenticate_returns(
    found: Any, name: str
) -> None:
    assert user_of(found) == name


def test_one_user_with_three_tabs_is_one_user() -> None:
    entries = [
        ClientInfo("c", "ann", {"n": 3}, 3.0),
        ClientInfo("a", "ann", {"n": 1}, 1.0),
        ClientInfo("b", "bob", None, 2.0),
        ClientInfo("d", "", None, 4.0),
        ClientInfo("e", "", None, 5.0),
    ]
    presence = Presence.of(entries)
    assert [client.client for client in presence.clients] == ["a", "b", "c", "d", "e"]
    assert presence.users == (
        PresentUser("ann", {"n": 1}, 1.0, ("a", "c")),
        PresentUser("bob", None, 2.0, ("b",)),
        PresentUser("", None, 4.0, ("d",)),
        PresentUser("", None, 5.0, ("e",)),
    )


def test_a_user_who_is_called_as_a_client_without_a_user_is_another() -> None:
    presence = Presence.of([ClientInfo("x"), ClientInfo("y", "x")])
    assert len(presence.users) == 2


class Who(Message):
    """Asks who is here."""


class Say(Message):
    text: str


class Here(Message):
    presence: Presence


class Room(Endpoint[dict[str, str]]):
    name: FromQuery[str]
    channels = ("presence-room",)
    presence = True

    async def authenticate(self, websocket: WebSocket) -> dict[str, str]:
        return {"username": self.name, "password": "secret"}

    def info(self) -> Struct:
        return Struct(id=len(self.user["username"]))

    @on_message
    async def who(self, websocket: WebSocket, message: Who) -> Here:
        return Here(await self.present())

    @on_message
    async def say(self, websocket: WebSocket, message: Say) -> None:
        await self.publish(message)


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = Starlette(routes=[WebSocketRoute("/", Room)], lifespan=lifespan)
    with TestClient(app) as client:
        yield client


def test_present_has_names_and_since_when(client: TestClient) -> None:
    before = time.time()
    with (
        client.websocket_connect("/?name=ann") as ann,
        client.websocket_connect("/?name=bob"),
        client.websocket_connect("/?name=ann"),
    ):
        ann.send_json({"type": "who"})
        found = receive_json(ann)["presence"]
    assert [user["user"] for user in found["users"]] == ["ann", "bob"]
    assert [len(user["clients"]) for user in found["users"]] == [2, 1]
    assert [each["user"] for each in found["clients"]] == ["ann", "bob", "ann"]
    assert found["users"][0]["info"] == {"id": 3, "email": "ann@example.org"}
    assert all(before <= each["since"] <= time.time() for each in found["clients"])
    assert "secret" not in str(found)


def test_publications_name_their_publisher(client: TestClient) -> None:
    with client.websocket_connect("/?name=ann") as ann:
        ann.send_json({"type": "say", "text": "hi"})
        assert receive_json(ann)["text"] == "hi"
    assert client.portal is not None
    app: Any = client.app
    (said,) = client.portal.call(hub_of(app).history, "presence-room").publications
    assert said.info is not None
    assert (said.info.user, said.info.since) == ("ann", 0.0)
    assert said.info.info == {"id": 3, "email": "ann@example.org"}


def test_a_user_that_is_a_text_can_be_disconnected_by_it(client: TestClient) -> None:
    app: Any = client.app
    with client.websocket_connect("/?name=ann") as ann, client.websocket_connect("/?name=bob"):
        assert client.portal is not None
        client.portal.call(hub_of(app).broker.tell, Disconnect(user="ann", code=4000))
        assert ann.receive()["code"] == 4000
        assert hub_of(app).statistics().connections == 1


def test_what_is_said_of_a_client_must_be_json() -> None:
    class Wrong(Room):
        def info(self) -> Any:
            return b"bytes"

    app = Starlette(routes=[WebSocketRoute("/", Wrong)], lifespan=lifespan)
    with (
        TestClient(app) as client,
        pytest.raises(TypeError, match=r"Wrong.info\(\) must be what JSON can say"),
        client.websocket_connect("/?name=ann"),
    ):
        pass


def test_info_that_is_a_coroutine_is_a_mistake_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"info must be a plain 'def'"):

        class Wrong(Endpoint):
            async def info(self) -> Any:
                return {}


def test_the_name_that_authenticate_returned_counts_before_that_of_the_token() -> None:
    class Named(Room):
        async def authenticate(self, websocket: WebSocket) -> dict[str, str]:
            await self.identify(websocket)
            return {"username": self.name}

    app = Starlette(routes=[WebSocketRoute("/", Named)], lifespan=lifespan)
    app.state.verifier = OPEN_MODE
    with TestClient(app) as client, client.websocket_connect("/?name=ann&token=x") as ann:
        ann.send_json({"type": "who"})
        assert [user["user"] for user in receive_json(ann)["presence"]["users"]] == ["ann"]


def test_info_is_called_once_after_authenticate_even_if_that_publishes() -> None:
    called: list[Any] = []

    class Announcing(Endpoint[str]):
        encoding = "json"
        channels = ("announcing",)
        presence = True

        async def authenticate(self, websocket: WebSocket) -> str:
            await self.publish("somebody knocks")
            return "ann"

        def info(self) -> Any:
            called.append(self.user)
            return {"hat": "red"}

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.publish("hello")

    app = Starlette(routes=[WebSocketRoute("/", Announcing)], lifespan=lifespan)
    with TestClient(app) as client, client.websocket_connect("/") as ann:
        assert receive_json(ann) == "hello"
        assert client.portal is not None
        found = client.portal.call(hub_of(app).history, "announcing").publications
    assert called == ["ann"]
    knock, hello = (each.info or ClientInfo("") for each in found)
    assert (knock.user, knock.info) == ("", None)
    assert (hello.user, hello.info) == ("ann", {"hat": "red"})
    assert knock.client == hello.client != ""
