"""What an `Endpoint` offers its subclasses, through Starlette's `TestClient` and by hand."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Router, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message as Event
from starlette.websockets import WebSocket, WebSocketDisconnect

from chatserver import EchoEndpoint, Endpoint, FromPath, FromQuery, Hub, MemoryBroker
from chatserver.auth import Identity
from chatserver.brokers import Health
from chatserver.endpoints import lifecycle
from chatserver.endpoints.outcome import OutageLog
from chatserver.errors import BrokerUnavailable, InvalidToken, TooManyChannels
from chatserver.publication import ClientInfo, Payload, Position
from chatserver.testing import assert_no_message, receive
from tests.asgi import until


def client_of(cls: type[Endpoint], path: str = "/") -> TestClient:
    return TestClient(Starlette(routes=[WebSocketRoute(path, cls)]))


def test_it_is_a_websocket_endpoint() -> None:
    assert issubclass(Endpoint, WebSocketEndpoint)


@pytest.mark.parametrize("make", [Starlette, FastAPI, Router], ids=lambda make: make.__name__)
def test_it_works_in_any_application(make: Callable[..., Any]) -> None:
    app = make(routes=[WebSocketRoute("/ws", EchoEndpoint)])
    with TestClient(app).websocket_connect("/ws") as session:
        session.send_text("x")
        assert session.receive_text() == "Message text was: x"


def test_it_works_by_itself() -> None:
    with TestClient(EchoEndpoint).websocket_connect("/anything") as session:
        session.send_text("x")
        assert session.receive_text() == "Message text was: x"


def test_it_works_in_a_router_of_fastapi() -> None:
    app = FastAPI()
    app.router.add_websocket_route("/ws", EchoEndpoint)
    with TestClient(app).websocket_connect("/ws") as session:
        session.send_text("x")
        assert session.receive_text() == "Message text was: x"


def test_the_hub_is_found_in_the_application_and_made_once() -> None:
    inner = Starlette(routes=[WebSocketRoute("/", EchoEndpoint)])
    outer = Starlette(routes=[WebSocketRoute("/", EchoEndpoint), Mount("/inner", inner)])
    hubs = []

    class Show(Endpoint):
        async def on_accept(self, websocket: WebSocket) -> None:
            hubs.append(self.hub)

    outer.router.routes.append(WebSocketRoute("/show", Show))
    for _ in range(2):
        with TestClient(outer).websocket_connect("/show"):
            pass
    assert hubs[0] is hubs[1] is outer.state.hub
    own = outer.state.hub = Hub()
    with TestClient(outer).websocket_connect("/show"):
        pass
    assert hubs[2] is own


def test_everything_a_websocket_endpoint_can() -> None:
    class Plain(Endpoint):
        async def on_connect(self, websocket: WebSocket) -> None:
            await websocket.accept(subprotocol="v1", headers=[(b"x-a", b"b")])
            first = await websocket.receive_json()
            await websocket.send_json({"got": first})

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.send_bytes(data if isinstance(data, bytes) else data.encode())
            second = await websocket.receive_text()
            await websocket.send_text(second)
            await websocket.close(4000, "enough")

    with client_of(Plain).websocket_connect("/", subprotocols=["v1"]) as session:
        assert session.accepted_subprotocol == "v1"
        assert (b"x-a", b"b") in (session.extra_headers or [])
        session.send_json({"n": 1})
        assert session.receive_json() == {"got": {"n": 1}}
        session.send_text("bytes")
        assert session.receive_bytes() == b"bytes"
        session.send_text("last")
        assert session.receive_text() == "last"
        assert session.receive() == {"type": "websocket.close", "code": 4000, "reason": "enough"}


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["x"], None), (["x", "v2", "v1"], "v2"), ([], None), (["bearer", "secret-token"], "bearer")],
)
def test_subprotocols(offered: list[str], chosen: str | None) -> None:
    class Versions(Endpoint):
        subprotocols = ("v1", "v2")

    with client_of(Versions).websocket_connect("/", subprotocols=offered or None) as session:
        assert session.accepted_subprotocol == chosen


# Authentication


class Guarded(Endpoint):
    channels = ("secret",)
    reason: FromQuery[str] = ""

    async def authenticate(self, websocket: WebSocket) -> Any:
        match self.reason:
            case "token":
                raise InvalidToken("no token")
            case "http":
                raise HTTPException(418, "teapot", headers={"x-a": "b"})
            case "websocket":
                raise WebSocketException(1008, "not you")
            case "channel":
                return Identity(user="ann", channels=frozenset({"other"}))
        return {"name": self.reason}

    async def on_accept(self, websocket: WebSocket) -> None:
        await self.push(self.user)


class GuardedByClose(Guarded):
    reject_as = "close"


class GuardedByPolicy(Guarded):
    reject_as = "policy"


def test_the_user() -> None:
    with client_of(Guarded).websocket_connect("/?reason=ann") as session:
        assert session.receive_json() == {"name": "ann"}


@pytest.mark.parametrize(
    ("reason", "status", "text"),
    [
        ("token", 401, "no token"),
        ("http", 418, "teapot"),
        ("channel", 403, "the token doesn't open the channel 'secret'"),
    ],
)
def test_refused_with_a_status(reason: str, status: int, text: str) -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client_of(Guarded).websocket_connect(f"/?reason={reason}"),
    ):
        pass
    assert (refusal.value.status_code, refusal.value.text) == (status, text)
    assert refusal.value.headers.get("x-a") == ("b" if reason == "http" else None)
    assert ("www-authenticate" in refusal.value.headers) == (reason == "token")


@pytest.mark.parametrize(
    ("cls", "reason", "code", "text"),
    [
        (Guarded, "websocket", 1008, "not you"),
        (GuardedByPolicy, "websocket", 1008, "not you"),
        (GuardedByPolicy, "token", 1008, "no token"),
        (GuardedByPolicy, "http", 1008, "teapot"),
        (GuardedByPolicy, "channel", 1008, "the token doesn't open the channel 'secret'"),
    ],
)
def test_refused_with_a_close_before_accept(
    cls: type[Guarded], reason: str, code: int, text: str
) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as refusal,
        client_of(cls).websocket_connect(f"/?reason={reason}"),
    ):
        pass
    assert (refusal.value.code, refusal.value.reason) == (code, text)


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("websocket", 1008, "not you"),
        ("token", 4401, "no token"),
        ("http", 4418, "teapot"),
        ("channel", 4403, "the token doesn't open the channel 'secret'"),
    ],
)
def test_refused_with_a_close_after_accept(reason: str, code: int, text: str) -> None:
    with client_of(GuardedByClose).websocket_connect(f"/?reason={reason}") as session:
        assert receive(session) == {"type": "websocket.close", "code": code, "reason": text}


def test_a_refusal_goes_by_the_applications_own_handlers() -> None:
    async def teapot(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse({"detail": "own words"}, 418)

    app = Starlette(routes=[WebSocketRoute("/", Guarded)], exception_handlers={418: teapot})
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        TestClient(app).websocket_connect("/?reason=http"),
    ):
        pass
    assert refusal.value.json() == {"detail": "own words"}


def test_a_server_without_denial_responses() -> None:
    sent = talk(Starlette(routes=[WebSocketRoute("/", Guarded)]), query=b"reason=token")
    assert sent == [{"type": "websocket.close", "code": 1008, "reason": "no token"}]


def test_the_token_may_come_in_the_first_message() -> None:
    class ByMessage(Endpoint):
        channels = ("secret",)

        async def authenticate(self, websocket: WebSocket) -> str:
            await websocket.accept()
            hub: Hub = self.hub
            await hub.publish("secret", "not for strangers")
            if await websocket.receive_text() != "please":
                raise InvalidToken("not the word")
            return "friend"

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.publish(f"hello {self.user}")

    client = client_of(ByMessage)
    with client.websocket_connect("/") as session:
        session.send_text("please")
        assert receive(session)["text"] == "hello friend"
    with client.websocket_connect("/") as session:
        session.send_text("open")
        assert receive(session) == {
            "type": "websocket.close",
            "code": 4401,
            "reason": "not the word",
        }


@pytest.mark.parametrize("hook", ["authenticate", "on_connect"])
@pytest.mark.parametrize("then", ["return", "raise"])
def test_an_endpoint_may_answer_by_itself(hook: str, then: str) -> None:
    async def answer(self: Endpoint, websocket: WebSocket) -> None:
        if then == "raise":
            await websocket.close(1008)
            raise InvalidToken("closed already")
        await websocket.send_denial_response(PlainTextResponse("no", 418))

    cls = type("Own", (Endpoint,), {"__module__": __name__, hook: answer})
    with pytest.raises(WebSocketDisconnect), client_of(cls).websocket_connect("/"):
        pass


@pytest.mark.parametrize("reject_as", ["http", "close"])
def test_tasks_of_a_refused_handshake_are_cancelled(reject_as: Any) -> None:
    ended = threading.Event()

    class Early(Endpoint):
        async def authenticate(self, websocket: WebSocket) -> None:
            self.task_group.start_soon(self.wait)
            await asyncio.sleep(0)
            raise InvalidToken("no")

        async def wait(self) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

    Early.reject_as = reject_as
    with contextlib.suppress(WebSocketDisconnect), client_of(Early).websocket_connect("/"):
        pass
    assert ended.wait(1)


def test_a_client_that_leaves_during_the_handshake_is_noticed() -> None:
    cancelled = []

    class Waiting(Endpoint):
        linger = 0.01

        async def authenticate(self, websocket: WebSocket) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            raise AssertionError("it was never connected")

    async def main() -> None:
        server = Server()
        server.to_app.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await asyncio.wait_for(server.serve(Waiting), 5)
        assert server.from_app == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert cancelled == [True]


# Channels


class Room(Endpoint):
    encoding = "text"
    room: FromPath[str]
    channels = ("room:{room}", "all")
    presence = True


def test_channels_are_joined_and_left() -> None:
    client = client_of(Room, "/{room}")
    with client.websocket_connect("/a") as session:
        hub: Hub = client.app.state.hub  # type: ignore[attr-defined]
        hub.publish_from_thread("room:a", "one")
        hub.publish_from_thread("room:b", "two")
        hub.publish_from_thread("all", b"three")
        assert receive(session)["text"] == "one"
        assert receive(session)["bytes"] == b"three"
        assert_no_message(session, timeout=0.02)
        assert len(asyncio.run(hub.present("room:a"))) == 1
        assert hub.statistics().subscriptions == 2
    assert asyncio.run(hub.present("room:a")) == {}
    assert hub.statistics().subscriptions == 0
    assert hub.statistics().connections == 0


def test_channels_are_left_before_on_disconnect() -> None:
    seen = []

    class Leaving(Room):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            seen.append((self.hub.statistics().subscriptions, set(self.connection.members)))

    with client_of(Leaving, "/{room}").websocket_connect("/a"):
        pass
    assert seen == [(0, set())]


def test_publish_must_know_the_channel() -> None:
    class Several(Room):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.publish(data, channel="all")
            await self.publish(data)

    with (
        pytest.raises(ValueError, match="Several has 2 channels; say which one"),
        client_of(Several, "/{room}").websocket_connect("/a") as session,
    ):
        session.send_text("x")
        assert receive(session)["text"] == "x"
        assert receive(session)["code"] == 1011


def test_a_publication_names_its_publisher() -> None:
    class Signed(Endpoint):
        encoding = "text"
        channels = ("all",)
        presence = True

        async def authenticate(self, websocket: WebSocket) -> Identity:
            return Identity(user="ann")

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.publish(data)

    client = client_of(Signed)
    with client.websocket_connect("/") as session:
        session.send_text("x")
        receive(session)
        hub: Hub = client.app.state.hub  # type: ignore[attr-defined]
        (publication,) = asyncio.run(hub.history("all")).publications
        assert publication.info is not None
        assert publication.info.user == "ann"
        assert [info.user for info in asyncio.run(hub.present("all")).values()] == ["ann"]


@pytest.mark.parametrize(
    ("encoding", "data", "event"),
    [
        ("text", "x", {"text": "x"}),
        ("text", b"x", {"bytes": b"x"}),
        ("text", {"a": 1}, {"text": '{"a":1}'}),
        ("bytes", "x", {"bytes": b"x"}),
        ("bytes", {"a": 1}, {"bytes": b'{"a":1}'}),
        ("json", "x", {"text": '"x"'}),
        ("json", {"a": 1}, {"text": '{"a":1}'}),
        (None, "x", {"text": "x"}),
        (None, [1], {"text": "[1]"}),
    ],
)
def test_push_and_publish_encode_alike(encoding: Any, data: Any, event: dict[str, Any]) -> None:
    class Encoded(Endpoint):
        channels = ("all",)

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push(data)
            await self.publish(data)

    Encoded.encoding = encoding
    with client_of(Encoded).websocket_connect("/") as session:
        for _ in range(2):
            assert receive(session) == {"type": "websocket.send", **event}


def test_an_empty_channel_name_is_refused() -> None:
    class Named(Endpoint):
        name: FromQuery[str] = ""
        channels = ("{name}",)

    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client_of(Named).websocket_connect("/"),
    ):
        pass
    assert refusal.value.text == "the name of a channel can't be empty"


def test_channels_of_one_name_are_one() -> None:
    class Twice(Endpoint):
        name: FromQuery[str] = "a"
        channels = ("a", "{name}", "b")

        async def on_accept(self, websocket: WebSocket) -> None:
            await self.push(sorted(self.connection.members))

    with client_of(Twice).websocket_connect("/") as session:
        assert session.receive_json() == ["a", "b"]


@pytest.mark.usefixtures("outages")
@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_broker_in_trouble_does_not_keep_on_disconnect_from_its_call(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many clients leave, the log has one line a minute, and no traceback."""
    codes = []

    class Troubled(MemoryBroker):
        @property
        def health(self) -> Health:
            return Health("down", 0.0, "The engine is gone.")

        async def leave(self, channel: str, client: str) -> None:
            if how == "raises":
                raise BrokerUnavailable("the engine is gone")
            await asyncio.sleep(60)

        async def publish(self, *args: Any, **kwargs: Any) -> Position:
            await self.leave("", "")
            raise AssertionError("it waits or raises")

    class Leaving(Endpoint):
        channels = ("a",)
        presence = True
        disconnect_timeout = 0.05

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            codes.append(close_code)
            await self.publish("secret")

    client = client_of(Leaving)
    client.app.state.hub = Hub(Troubled())  # type: ignore[attr-defined]
    for _ in range(3):
        with client.websocket_connect("/"):
            pass
    assert codes == [1000] * 3
    (record,) = caplog.records
    why = "the engine is gone" if how == "raises" else "it did not answer within 0.05 s"
    assert record.getMessage() == (
        f"BrokerUnavailable: The broker could not be told that a client has left ['a']: {why}"
    )
    assert record.exc_info is None


class Follower(Endpoint):
    encoding = "text"
    channels = ("a", "b")


@pytest.mark.parametrize("published", ["before the accept", "with the accept"])
def test_nothing_published_after_joining_is_missed(published: str) -> None:
    """What a client that sees its connection open has published elsewhere reaches it."""

    async def main() -> None:
        hub = Hub()

        class Watched(Server):
            async def send(self, event: Event) -> None:
                if event["type"] == "websocket.accept" and published == "with the accept":
                    await hub.publish("b", "news")
                await super().send(event)

        class Publishing(Follower):
            async def on_connect(self, websocket: WebSocket) -> None:
                await websocket.accept()
                await self.push("open")

        class Slow(MemoryBroker):
            async def subscribe(self, channel: str) -> Position:
                position = await super().subscribe(channel)
                if channel == "b" and published == "before the accept":
                    await self.publish("a", "news")  # which is joined already
                return position

        if published == "before the accept":
            hub = Hub(Slow())
        app = Starlette(routes=[WebSocketRoute("/", Publishing)])
        app.state.hub = hub
        server = Watched()
        task = asyncio.create_task(server.serve(app))
        await until(lambda: len(server.from_app) == 3)
        assert [event.get("text") for event in server.from_app] == [None, "news", "open"]
        server.to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await task

    asyncio.run(main())


class Failing(MemoryBroker):
    """Fails to subscribe to the channel "b", in one of several ways."""

    def __init__(self, how: BaseException | None = None) -> None:
        super().__init__()
        self.how = how
        self.subscribing = asyncio.Event()
        self.followed: list[str] = []

    async def subscribe(self, channel: str) -> Position:
        self.followed.append(channel)
        if channel == "b":
            self.subscribing.set()
            if self.how is None:
                await asyncio.sleep(60)
            else:
                raise self.how
        return await super().subscribe(channel)

    async def unsubscribe(self, channel: str) -> None:
        self.followed.remove(channel)
        await super().unsubscribe(channel)


@pytest.mark.parametrize("how", ["refused", "fault", "cancelled"])
def test_a_join_that_fails_leaves_nothing_behind(how: str) -> None:
    """It is a refusal: no accept is sent, and whatever was joined is left."""
    errors = {"refused": TooManyChannels("too many"), "fault": ValueError("boom")}

    async def main() -> None:
        broker = Failing(errors.get(how))
        app = Starlette(routes=[WebSocketRoute("/", Follower)])
        app.state.hub = hub = Hub(broker)
        server = Server()
        task = asyncio.create_task(server.serve(app))
        await broker.subscribing.wait()
        assert hub.statistics().connections == 1
        if how == "cancelled":
            task.cancel()
        expected = {"fault": ValueError, "cancelled": asyncio.CancelledError}.get(how)
        with contextlib.nullcontext() if expected is None else pytest.raises(expected):
            await task
        closes = [{"type": "websocket.close", "code": 1008, "reason": "too many"}]
        assert server.from_app == (closes if how == "refused" else [])
        assert (hub.statistics().connections, hub.statistics().subscriptions) == (0, 0)
        await until(lambda: "a" not in broker.followed)

    asyncio.run(main())


# The broker is not there


@pytest.fixture
def outages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was logged yet in this minute."""
    monkeypatch.setattr(lifecycle, "outages", OutageLog())


@pytest.mark.usefixtures("outages")
def test_a_broker_that_is_not_there_refuses_with_503(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(Follower)
    hub = Hub(Failing(BrokerUnavailable("10.0.0.1 is unreachable")))
    client.app.state.hub = hub  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(WebSocketDenialResponse) as refusal, client.websocket_connect("/"):
            pass
        assert refusal.value.status_code == 503
        assert refusal.value.text == "the server is not available right now, try again later"
    assert hub.statistics().broker_unavailable == 3
    assert [(r.getMessage(), r.exc_info) for r in caplog.records] == [
        ("BrokerUnavailable: 10.0.0.1 is unreachable", None)
    ]


@pytest.mark.usefixtures("outages")
@pytest.mark.parametrize("where", ["handler", "task", "group", "on_disconnect"])
def test_a_broker_that_goes_away_closes_with_1013(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    codes = []

    class Gone(MemoryBroker):
        async def publish(self, *args: Any, **kwargs: Any) -> Position:
            raise BrokerUnavailable("the engine is gone")

    class Publisher(Follower):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            with pytest.raises(BrokerUnavailable):
                await self.publish(data, channel="a")
            if where == "handler":
                await self.publish(data, channel="a")
            elif where == "group":
                async with anyio.create_task_group() as group:
                    group.start_soon(self.publish_now)
            elif where == "task":
                self.task_group.start_soon(self.publish_now)
            else:
                await websocket.close()

        async def publish_now(self) -> None:
            await self.publish("x", channel="a")

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            codes.append(close_code)
            await self.publish("left", channel="a")

    client = client_of(Publisher)
    client.app.state.hub = hub = Hub(Gone())  # type: ignore[attr-defined]
    with client.websocket_connect("/") as session:
        session.send_text("x")
        code = 1000 if where == "on_disconnect" else 1013
        assert receive(session)["code"] == code
    assert codes == [code]
    assert hub.statistics().broker_unavailable == (where != "on_disconnect")
    assert not any(record.exc_info for record in caplog.records)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == ["BrokerUnavailable: the engine is gone"]


# What is said when a process dies


def test_the_last_will_goes_with_the_subscriptions() -> None:
    wills: list[tuple[str, Any]] = []

    class Watched(MemoryBroker):
        async def enter(
            self, channel: str, info: ClientInfo, *, last_will: Payload | None = None
        ) -> None:
            wills.append((channel, last_will))
            await super().enter(channel, info, last_will=last_will)

    class Mortal(Follower):
        def last_will(self) -> Any:
            return {"left": self.channels[0]}

    client = client_of(Mortal)
    client.app.state.hub = hub = Hub(Watched())  # type: ignore[attr-defined]
    with client.websocket_connect("/"):
        pass
    assert [(channel, bytes(will)) for channel, will in wills] == [
        ("a", b'{"left":"a"}'),
        ("b", b'{"left":"a"}'),
    ]
    assert asyncio.run(hub.history("a")).publications == ()


# Tasks


def test_tasks_end_with_the_connection() -> None:
    ended = threading.Event()

    class Ticker(Endpoint):
        async def on_accept(self, websocket: WebSocket) -> None:
            self.task_group.start_soon(self.tick, "tick", name="ticker")

        async def tick(self, word: str) -> None:
            try:
                await self.push(word)
                await asyncio.sleep(60)
            finally:
                ended.set()

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            assert ended.is_set()
            with pytest.raises(RuntimeError, match="this connection has ended"):
                self.task_group.start_soon(self.tick, "late")

    with client_of(Ticker).websocket_connect("/") as session:
        assert receive(session)["text"] == "tick"
        assert not ended.is_set()
    assert ended.is_set()


def test_a_fault_in_a_task_reaches_the_test() -> None:
    class Broken(Endpoint):
        async def on_accept(self, websocket: WebSocket) -> None:
            self.task_group.start_soon(self.fail)

        async def fail(self) -> None:
            raise ValueError("boom")

    with (
        pytest.raises(ValueError, match="boom"),
        client_of(Broken).websocket_connect("/") as session,
    ):
        assert receive(session)["code"] == 1011


@pytest.mark.parametrize("group", [False, True])
def test_a_departure_in_a_task_is_no_fault(group: bool) -> None:
    class Sender(Endpoint):
        async def on_accept(self, websocket: WebSocket) -> None:
            self.task_group.start_soon(self.send_all, websocket)

        async def send_all(self, websocket: WebSocket) -> None:
            while not group:
                await websocket.send_text("x")
                await asyncio.sleep(0.001)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.wait_and_send, websocket)

        async def wait_and_send(self, websocket: WebSocket) -> None:
            while True:
                await websocket.send_text("x")
                await asyncio.sleep(0.001)

    with client_of(Sender).websocket_connect("/") as session:
        receive(session)


# The end


def test_a_detail_that_is_no_text() -> None:
    codes = []

    class Detailed(Endpoint):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            raise HTTPException(400, detail={"field": "x"})  # type: ignore[arg-type]

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            codes.append(close_code)

    client = client_of(Detailed)
    with client.websocket_connect("/") as session:
        session.send_text("x")
        assert receive(session) == {
            "type": "websocket.close",
            "code": 4400,
            "reason": "{'field': 'x'}",
        }
    assert codes == [4400]
    assert client.app.state.hub.statistics().connections == 0  # type: ignore[attr-defined]


def test_a_handler_goes_on_after_its_own_close() -> None:
    done = []

    class Closing(Endpoint):
        linger = 0.01

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.close(4000)
            await asyncio.sleep(0.05)
            done.append("saved")

    with client_of(Closing).websocket_connect("/") as session:
        session.send_text("x")
        assert receive(session)["code"] == 4000
    assert done == ["saved"]


def test_a_send_that_fails_is_no_close_of_its_own() -> None:
    class Sending(Endpoint):
        linger = 0.01
        disconnect_timeout = 60

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.push("lost")
            await asyncio.sleep(30)

    async def main() -> None:
        server = Server()
        task = asyncio.create_task(server.serve(Sending))
        await server.accepted.wait()
        server.gone = True
        server.to_app.put_nowait({"type": "websocket.receive", "text": "x"})
        await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_a_cancelled_handler_may_clean_up() -> None:
    done = []

    class Cleaning(Endpoint):
        linger = 0.01

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            try:
                await self.push("begun")
                await asyncio.sleep(60)
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
                done.append("closed")

    with client_of(Cleaning).websocket_connect("/") as session:
        session.send_text("x")
        assert receive(session)["text"] == "begun"
    assert done == ["closed"]


def test_on_disconnect_is_shielded_from_cancellation() -> None:
    done = []

    class Slow(Endpoint):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            for _ in range(3):
                await asyncio.sleep(0.01)
            done.append(close_code)

    async def main() -> None:
        server = Server()
        task = asyncio.create_task(server.serve(Slow))
        await server.accepted.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert done == [1012]


def test_on_disconnect_is_shielded_from_a_cancelled_scope() -> None:
    done = []

    class Slow(Endpoint):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            await asyncio.sleep(0.05)
            done.append(close_code)

    async def main() -> None:
        server = Server()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, Slow)
            await server.accepted.wait()
            tasks.cancel_scope.cancel()

    asyncio.run(main())
    assert done == [1012]


def test_on_disconnect_is_bounded_in_time(caplog: pytest.LogCaptureFixture) -> None:
    class Endless(Endpoint):
        disconnect_timeout = 0.05

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            await asyncio.sleep(60)

    with client_of(Endless).websocket_connect("/"):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "Endless.on_disconnect() took more than 0.05 s and was cancelled"
    ]


def test_on_disconnect_may_try_to_send() -> None:
    class Polite(Endpoint):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            await self.push("goodbye")
            await websocket.send_text("goodbye")

    with client_of(Polite).websocket_connect("/"):
        pass


def test_a_handler_may_ignore_its_cancellation() -> None:
    codes = []

    class Stubborn(Endpoint):
        linger = 0.01

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await self.push("begun")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            codes.append(close_code)

    async def main() -> None:
        server = Server()
        task = asyncio.create_task(server.serve(Stubborn))
        await server.accepted.wait()
        server.to_app.put_nowait({"type": "websocket.receive", "text": "x"})
        server.to_app.put_nowait({"type": "websocket.disconnect", "code": 1001, "reason": ""})
        await task

    asyncio.run(main())
    assert codes == [1001]


def test_a_timeout_of_the_handlers_own_is_a_fault() -> None:
    class Late(Endpoint):
        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await asyncio.wait_for(asyncio.sleep(60), 0.01)

    with (
        pytest.raises(TimeoutError),
        client_of(Late).websocket_connect("/") as session,
    ):
        session.send_text("x")
        assert receive(session)["code"] == 1011


def test_the_client_goes_before_the_accept() -> None:
    """A server that can't accept any more says so by an OSError."""

    class Never(Endpoint):
        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            raise AssertionError("it was never connected")

    async def main() -> None:
        server = Server(gone=True)
        await server.serve(Never)

    asyncio.run(main())


class Server:
    """An ASGI server of the smallest kind, to send what `TestClient` can't."""

    def __init__(self, *, gone: bool = False, query: bytes = b"") -> None:
        self.to_app: asyncio.Queue[Event] = asyncio.Queue()
        self.to_app.put_nowait({"type": "websocket.connect"})
        self.from_app: list[Event] = []
        self.accepted = asyncio.Event()
        self.gone = gone
        self.query = query

    async def serve(self, app: Any) -> None:
        scope = {
            "type": "websocket",
            "path": "/",
            "query_string": self.query,
            "headers": [],
            "scheme": "ws",
        }
        await app(scope, self.to_app.get, self.send)

    async def send(self, event: Event) -> None:
        if self.gone:
            raise OSError("the client is gone")
        self.from_app.append(dict(event))
        if event["type"] == "websocket.accept":
            self.accepted.set()


def talk(app: Any, query: bytes) -> list[Event]:
    async def main() -> list[Event]:
        server = Server(query=query)
        await server.serve(app)
        return server.from_app

    return asyncio.run(main())


class Answers(Endpoint):
    encoding = "json"

    async def on_receive(self, websocket: WebSocket, data: Any) -> Any:
        return data or None


def test_what_on_receive_returns_is_sent() -> None:
    with client_of(Answers).websocket_connect("/") as session:
        for data in ({"n": 1}, 0, [7], ""):
            session.send_json(data)
        assert [session.receive_json() for _ in range(2)] == [{"n": 1}, [7]]
        assert_no_message(session)
