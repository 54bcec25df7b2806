"""The conversations of FastAPI's WebSocket tutorial, as its readers test them.

Starlette's `TestClient` is not entered here: no lifespan runs, and each socket has an event loop
and a thread of its own.
"""

import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from chatserver.app import create_app
from chatserver.settings import Settings
from chatserver.testing import assert_no_message, receive


@pytest.fixture(params=["not entered", "entered"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    client = TestClient(create_app(Settings()))
    if request.param == "entered":
        with client:
            yield client
    else:
        yield client


def refused(client: TestClient, path: str, **options: object) -> tuple[int, str]:
    with (
        pytest.raises(WebSocketDisconnect) as refusal,
        client.websocket_connect(path, **options),  # type: ignore[arg-type]
    ):
        pass
    return refusal.value.code, refusal.value.reason


def test_echo(client: TestClient) -> None:
    with client.websocket_connect("/ws") as session:
        for text in ("hello", "", "späß 🎉", "<b>&amp;</b>", "x" * 65_536):
            session.send_text(text)
            assert session.receive_text() == f"Message text was: {text}"


@pytest.mark.parametrize(
    ("path", "cookies", "credential"),
    [
        ("/items/foo/ws?token=abc", {}, "abc"),
        ("/items/foo/ws", {"session": "fake"}, "fake"),
        ("/items/foo/ws?token=abc", {"session": "fake"}, "fake"),
        ("/items/foo/ws?token=", {"session": "fake"}, "fake"),
        ("/items/foo/ws?token=a%20b%26", {}, "a b&"),
    ],
)
def test_items(path: str, cookies: dict[str, str], credential: str) -> None:
    client = TestClient(create_app(Settings()), cookies=cookies)
    with client.websocket_connect(path) as session:
        session.send_text("hi")
        assert session.receive_text() == f"Session cookie or query token value is: {credential}"
        assert session.receive_text() == "Message text was: hi, for item ID: foo"
        session.send_text("again")
        assert session.receive_text() == f"Session cookie or query token value is: {credential}"
        assert session.receive_text() == "Message text was: again, for item ID: foo"
        assert_no_message(session, timeout=0.02)


@pytest.mark.parametrize("q", [0, 3, -3])
def test_items_with_q(client: TestClient, q: int) -> None:
    with client.websocket_connect(f"/items/a b/ws?token=abc&q={q}") as session:
        session.send_text("hi")
        assert session.receive_text() == "Session cookie or query token value is: abc"
        assert session.receive_text() == f"Query parameter q is: {q}"
        assert session.receive_text() == "Message text was: hi, for item ID: a b"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/items/foo/ws", "a token is required"),
        ("/items/foo/ws?token=", "a token is required"),
        ("/items/foo/ws?token=abc&q=x", "query parameter 'q' must be an integer"),
        ("/items/foo/ws?token=abc&q=", "query parameter 'q' must be an integer"),
        ("/items/foo/ws?token=abc&q=null", "query parameter 'q' must be an integer"),
        ("/ws/x", "path parameter 'client_id' must be an integer"),
        ("/ws/1.5", "path parameter 'client_id' must be an integer"),
        ("/ws/" + "9" * 4301, "path parameter 'client_id' must be an integer"),
    ],
)
def test_refused_with_1008(client: TestClient, path: str, reason: str) -> None:
    assert refused(client, path) == (1008, reason)


def test_an_item_is_reached_by_its_channel(client: TestClient) -> None:
    hub = client.app.state.hub  # type: ignore[attr-defined]
    with client.websocket_connect("/items/foo/ws?token=abc") as session:
        hub.publish_from_thread("item:bar", "for others")
        hub.publish_from_thread("item:foo", "news")
        hub.publish_from_thread("item:foo", {"price": 3})
        assert session.receive_text() == "news"
        assert session.receive_text() == '{"price":3}'


def test_chat(client: TestClient) -> None:
    with client.websocket_connect("/ws/1") as one, client.websocket_connect("/ws/2") as two:
        one.send_text("hello")
        assert one.receive_text() == "You wrote: hello"
        assert one.receive_text() == "Client #1 says: hello"
        assert two.receive_text() == "Client #1 says: hello"
        two.send_text("hi")
        assert two.receive_text() == "You wrote: hi"
        assert two.receive_text() == "Client #2 says: hi"
        assert one.receive_text() == "Client #2 says: hi"
        two.close()
        assert one.receive_text() == "Client #2 left the chat"
        assert_no_message(one, timeout=0.02)
    assert client.app.state.hub.statistics().connections == 0  # type: ignore[attr-defined]


def test_a_chat_of_many(client: TestClient) -> None:
    sessions = [client.websocket_connect(f"/ws/{n}").__enter__() for n in range(8)]
    for n, session in enumerate(sessions):
        session.send_text("here")
        assert receive(session)["text"] == "You wrote: here"
        for other in sessions:
            assert receive(other)["text"] == f"Client #{n} says: here"
    for n, session in enumerate(sessions):
        session.__exit__(None, None, None)
        for other in sessions[n + 1 :]:
            assert receive(other)["text"] == f"Client #{n} left the chat"


def test_what_is_sent_just_before_leaving_is_heard(client: TestClient) -> None:
    with client.websocket_connect("/ws/1") as one:
        with client.websocket_connect("/ws/2") as two:
            for n in range(20):
                two.send_text(str(n))
        for n in range(20):
            assert receive(one)["text"] == f"Client #2 says: {n}"
        assert receive(one)["text"] == "Client #2 left the chat"


def test_a_poisonous_frame_harms_nobody_else(client: TestClient) -> None:
    with client.websocket_connect("/ws/1") as one, client.websocket_connect("/ws/2") as two:
        two.send_bytes(b"\x00\xff")
        event = receive(two)
        assert (event["type"], event["code"]) == ("websocket.close", 1003)
        assert receive(one)["text"] == "Client #2 left the chat"
        one.send_text("still here")
        assert receive(one)["text"] == "You wrote: still here"
        assert receive(one)["text"] == "Client #1 says: still here"


def test_a_huge_client_id(client: TestClient) -> None:
    digits = "9" * 300
    assert len(digits) < sys.get_int_max_str_digits()
    with client.websocket_connect(f"/ws/{digits}") as session:
        session.send_text("x")
        assert receive(session)["text"] == "You wrote: x"
        assert receive(session)["text"] == f"Client #{digits} says: x"
