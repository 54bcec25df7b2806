"""What hostile clients send harms only themselves: no effect on the room, no traceback."""

import logging
import secrets
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from chatserver.app import create_app
from chatserver.settings import Settings
from chatserver.testing import LiveServer, live_server
from tests.asgi import Edge

MASK = b"\x00\x00\x00\x00"


def frame(first: int, payload: bytes) -> bytes:
    """A masked frame with a short payload; the mask changes nothing (RFC 6455, section 5.3)."""
    return bytes((first, 0x80 | len(payload))) + MASK + payload


#: The bytes of frames, and the close codes with which they may be answered.
FRAMES = {
    "binary": (frame(0x82, b"\x00\xff"), {1003}),
    "empty binary": (frame(0x82, b""), {1003}),
    "not UTF-8": (frame(0x81, b"\xff"), {1007}),
    "an overlong encoding": (frame(0x81, b"\xc0\xaf"), {1007}),
    "a surrogate": (frame(0x81, b"\xed\xa0\x80"), {1007}),
    "beyond Unicode": (frame(0x81, b"\xf4\x90\x80\x80"), {1007}),
    "half a character": (frame(0x81, b"\xe2\x82"), {1007}),
    "reserved bit 1": (frame(0xC1, b"x"), {1002}),
    "reserved bit 2": (frame(0xA1, b"x"), {1002}),
    "reserved bit 3": (frame(0x91, b"x"), {1002}),
    "reserved opcode 3": (frame(0x83, b"x"), {1002}),
    "reserved opcode 11": (frame(0x8B, b"x"), {1002}),
    "continues nothing": (frame(0x80, b"x"), {1002}),
    "a message in a message": (frame(0x01, b"x") + frame(0x81, b"y"), {1002}),
    "a fragmented ping": (frame(0x09, b"x"), {1002}),
    "not masked": (b"\x81\x01x", {1002}),
    "a long ping": (b"\x89\xfe\x00\x7e" + MASK + b"x" * 126, {1002}),
    "close code 0": (frame(0x88, b"\x00\x00"), {1002}),
    "close code 1005": (frame(0x88, b"\x03\xed"), {1002}),
    "a close of one byte": (frame(0x88, b"\x03"), {1002}),
    "a close reason that is not UTF-8": (frame(0x88, b"\x03\xe8\xff"), {1002, 1007}),
    "a length of 2**63": (b"\x81\xff" + b"\x80" + b"\x00" * 7 + MASK, {1002, 1009}),
    "a length of 2**62": (b"\x81\xff" + b"\x40" + b"\x00" * 7 + MASK, {1009}),
    "too long": (b"\x81\xff" + (65_537).to_bytes(8) + MASK + b"x" * 65_537, {1009}),
}

#: Paths, and the HTTP status with which they are refused.
PATHS = {
    "/ws/x": 403,
    "/ws/1.5": 403,
    "/ws/" + "9" * 4301: 403,
    "/ws/%00": 403,
    "/ws/%ff": 403,
    "/ws/1/2": 404,
    "/nothing": 404,
    "/items/foo/ws": 403,
    "/items/foo/ws?token=": 403,
    "/items/foo/ws?token=a&q=x": 403,
    "/items/foo/ws?token=a&q=" + "9" * 4301: 403,
    "/items/foo/ws?token=a&q=%00": 403,
}

#: Paths that are odd, and fine.
ODD_PATHS = (
    "/ws/-7",
    "/ws/007",
    "/ws/" + "9" * 300,
    "/items/%00/ws?token=%00",
    "/items/%ff/ws?token=%ff",
    "/items/%F0%9F%8E%89/ws?token=a",
    "/items/{item_id}/ws?token={q}",
    "/items/" + "x" * 4000 + "/ws?token=" + "y" * 4000,
)


@pytest.fixture(scope="module")
def server(edge: Edge) -> Iterator[LiveServer]:
    with live_server(create_app(Settings()), ws_max_size=65_536, **edge) as running:
        yield running


@pytest.fixture
def honest(server: LiveServer, caplog: pytest.LogCaptureFixture) -> Iterator[ClientConnection]:
    """A client in the room, which goes on talking; and nothing is logged but a line."""
    caplog.set_level(logging.INFO)
    with connect(f"{server.ws}/ws/1") as client:
        yield client
        client.send("still here")
        heard = []
        while "Client #1 says: still here" not in heard:
            heard.append(client.recv(timeout=5))
        assert "You wrote: still here" in heard
    assert not any(record.exc_info for record in caplog.records)
    assert sum(record.name == "chatserver" for record in caplog.records) <= 1


@pytest.mark.parametrize("name", FRAMES)
def test_frames(server: LiveServer, honest: ClientConnection, name: str) -> None:
    wire, codes = FRAMES[name]
    number = secrets.randbits(32)
    with connect(f"{server.ws}/ws/{number}") as hostile:
        hostile.socket.sendall(wire)
        with pytest.raises(ConnectionClosed) as end:
            hostile.recv(timeout=5)
        assert end.value.rcvd is not None
        assert end.value.rcvd.code in codes
    while honest.recv(timeout=5) != f"Client #{number} left the chat":
        pass  # messages about clients that left before


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:24])
def test_paths(server: LiveServer, honest: ClientConnection, path: str) -> None:
    with pytest.raises(InvalidStatus) as refusal, connect(server.ws + path):
        pass
    assert refusal.value.response.status_code == PATHS[path]


@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:24])
def test_odd_paths(server: LiveServer, honest: ClientConnection, path: str) -> None:
    with connect(server.ws + path) as odd:
        odd.send("\x00 hi")
        assert odd.recv(timeout=5)
