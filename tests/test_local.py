"""What open mode on loopback takes for a client of this machine."""

import socket

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from chatserver.app import create_app
from chatserver.endpoints.local import why_not_local
from chatserver.settings import Settings
from chatserver.testing import live_server
from tests.asgi import Edge


def why(server: str | None, client: str | None, **headers: str) -> str:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return why_not_local(
        {
            "type": "websocket",
            "server": server and (server, 80),
            "client": client and (client, 1234),
            "headers": named,
        }
    )


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.8.9.10", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("testserver", "testclient"),
    ],
)
def test_local(server: str, client: str) -> None:
    assert why(server, client) == ""


@pytest.mark.parametrize(
    ("server", "client", "side"),
    [
        ("10.0.0.7", "10.0.0.7", "server"),
        ("0.0.0.0", "127.0.0.1", "server"),
        ("2001:db8::1", "2001:db8::2", "server"),
        ("::ffff:10.0.0.7", "127.0.0.1", "server"),
        ("/run/chat.sock", None, "server"),
        (None, None, "server"),
        ("127.0.0.1", None, "client"),
        ("127.0.0.1", "203.0.113.9", "client"),
        ("127.0.0.1", "unknown", "client"),
        ("127.0.0.1", "_hidden", "client"),
        ("127.0.0.1", "localhost.evil.example", "client"),
    ],
)
def test_not_local(server: str | None, client: str | None, side: str) -> None:
    assert why(server, client).startswith(f"the {side} has the address ")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "a.localhost:80", "127.0.0.1:8000", "[::1]:8000", "testserver"],
)
def test_names_of_this_machine(host: str) -> None:
    assert why("127.0.0.1", "127.0.0.1", host=host) == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.7", "", "[::1"]
)
def test_a_name_that_somebody_else_may_have_given(host: str) -> None:
    assert why("127.0.0.1", "127.0.0.1", host=host).startswith("the header Host is ")


PROXIES = (
    *("forwarded", "via", "x_forwarded_for", "x_forwarded_proto", "x_forwarded_host", "x_real_ip"),
    *("x_client_ip", "x_cluster_client_ip", "true_client_ip", "fly_client_ip", "fastly_client_ip"),
    "cf_connecting_ip",
)


@pytest.mark.parametrize("header", PROXIES)
def test_behind_a_proxy(header: str) -> None:
    assert header.replace("_", "-") in why("127.0.0.1", "127.0.0.1", **{header: "127.0.0.1"})


@pytest.mark.parametrize("header", ["user_agent", "origin", "x_requested_with", "x_client_id"])
def test_headers_of_clients_themselves(header: str) -> None:
    assert why("127.0.0.1", "127.0.0.1", **{header: "127.0.0.1"}) == ""


def test_each_host_counts() -> None:
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    address = ("127.0.0.1", 80)
    found = why_not_local({"server": address, "client": address, "headers": headers})
    assert found == "the header Host is 'evil.example'"


def test_an_old_client_without_a_host(edge: Edge) -> None:
    """No browser is one, so no foreign page is behind it."""
    with live_server(create_app(Settings()), **edge) as server:
        for extra, status in ((b"", b"200"), (b"Host: evil.example\r\n", b"403")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
                client.sendall(b"GET /docs HTTP/1.0\r\n" + extra + b"\r\n")
                assert client.makefile("rb").readline().split()[1] == status


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"x-forwarded-for": "203.0.113.9"}])
def test_the_ready_application_in_open_mode(headers: dict[str, str]) -> None:
    client = TestClient(create_app(Settings()))
    with client.websocket_connect("/items/foo/ws?token=x") as session:
        session.send_text("hi")
        assert session.receive_text().endswith(": x")
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client.websocket_connect("/items/foo/ws?token=x", headers=headers),
    ):
        pass
    assert refusal.value.status_code == 503
