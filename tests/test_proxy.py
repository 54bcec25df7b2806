"""The proxy of the tests does to connections what the tests of faults rely on."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.engines import until
from tests.proxy import RESET, Proxy, Way

LARGE = 20_000_000  # bytes; more than all buffers take


class Echo:
    """A server that sends back what it gets.

    Attributes:
        got: The bytes it has got.
    """

    def __init__(self) -> None:
        self.got = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; close() does not
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(client,), daemon=True).start()

    def _echo(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while data := client.recv(65_536):
                self.got += len(data)
                client.sendall(data)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(65_536)):
        data += more
    return data


def silent(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def test_it_carries_bytes_and_the_end_of_each_direction(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a" * 1_000_000)
        client.shutdown(socket.SHUT_WR)
        assert read(client, 2_000_000) == b"a" * 1_000_000
    assert proxy.accepted == 1


def test_a_cut_resets_what_is_there_and_what_comes_until_it_is_healed(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.links == 0
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)
    proxy.heal()
    with connect(proxy) as client:
        client.sendall(b"b")
        assert client.recv(1) == b"b"


def test_what_is_dropped_may_come_back_at_once(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        proxy.drop()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as client:
        client.sendall(b"b")
        assert client.recv(1) == b"b"


def test_a_frozen_way_loses_nothing(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        proxy.freeze()
        client.sendall(b"bc")
        assert silent(client)
        with connect(proxy) as another:
            another.sendall(b"d")
            assert silent(another)
            proxy.heal()
            assert read(client, 2) == b"bc"
            assert another.recv(1) == b"d"


def test_a_frozen_way_back_keeps_answers_only(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        proxy.freeze(Way.BACK)
        client.sendall(b"a")
        assert silent(client)
        assert echo.got == 1
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_frozen_way_takes_no_more_than_buffers_hold(proxy: Proxy) -> None:
    proxy.freeze()
    with connect(proxy) as client:
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(LARGE))


def test_delayed_bytes_come_in_order_and_later(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.delay = 0.1
        began = time.monotonic()
        for number in range(20):
            client.sendall(bytes([number]))
        assert read(client, 20) == bytes(range(20))
        assert time.monotonic() - began >= 0.2  # there and back


def test_another_target_is_for_the_next_connections(proxy: Proxy) -> None:
    other = Echo()
    try:
        with connect(proxy) as client:
            client.sendall(b"a")
            assert client.recv(1) == b"a"
            proxy.target = other.port
            client.sendall(b"b")
            assert client.recv(1) == b"b"
            assert other.got == 0
        with connect(proxy) as client:
            client.sendall(b"c")
            assert client.recv(1) == b"c"
            assert other.got == 1
    finally:
        other.close()


def test_an_end_that_is_reset_resets_the_other(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    until(lambda: proxy.links == 0, "the proxy has noticed")
    assert caplog.messages == []


def test_nobody_is_served_if_the_target_is_gone(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.recv(1)


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("redis://:s@127.0.0.1:6379/0", "redis://:s@127.0.0.1:{}/0"),
        ("postgresql://u:p@127.0.0.1:5432/db", "postgresql://u:p@127.0.0.1:{}/db"),
    ],
)
def test_the_way_of_a_url(proxy: Proxy, url: str, through: str) -> None:
    assert proxy.way(url) == through.format(proxy.port)
