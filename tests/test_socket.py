"""The life of a socket, on a transport in memory: states, order, and what the hub relies on."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from chatserver.connection import Connection
from chatserver.hub import ADMISSION, Admission
from chatserver.limits import Limits
from chatserver.publication import Frame
from chatserver.server.edge import edge_of
from chatserver.server.incoming import Incoming
from chatserver.server.socket import TRANSITIONS, Socket, State
from chatserver.wire import close_frame

MASK = bytes(4)
HELLO = b"\x81\x85" + MASK + b"Hello"
CLOSE, CLOSED = b"\x88\x82" + MASK + b"\x03\xe8", b"\x88\x02\x03\xe8"
PING, PONG = b"\x89\x82" + MASK + b"hi", b"\x8a\x02hi"
HI = Frame("hi")


class Transport:
    """Takes what is written while it has room, and tells what was done to it."""

    def __init__(self) -> None:
        self.written = b""
        self.done: list[str] = []
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


class Source:
    """The hub's side: what was published is written when it is asked for."""

    def __init__(self, published: bytes = b"") -> None:
        self.published = published
        self.writers: list[str] = []

    def paced(self, connection: Connection) -> None:
        self.writers.append(getattr(connection.writer, "__qualname__", "?").split(".")[-1])

    def catch_up(self, connection: Connection) -> None:
        published, self.published = self.published, b""
        if published:
            connection.writer(published)


def opened(limits: Limits | None = None) -> tuple[Socket, Transport]:
    """A socket after its handshake."""
    state = {ADMISSION: Admission(limits or Limits())}
    socket = Socket(
        edge_of(Config("none", log_config=None, ws_ping_interval=None), ServerState(), state)
    )
    transport = Transport()
    socket.transport = transport  # type: ignore[assignment]
    socket._open(Incoming(socket.limits, socket._edge.counts, 1.0), b"")
    return socket, transport


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    # pytest would ask for the coroutine's own signature.
    del run.__wrapped__
    return run


# States


def test_a_life_only_goes_forward() -> None:
    assert all(before < after for before, after in TRANSITIONS)
    ends = {state for state in State if not any(before is state for before, _ in TRANSITIONS)}
    assert ends == {State.CLOSED}


@in_loop
async def test_a_step_that_the_table_lacks_is_an_error_of_ours() -> None:
    socket, _ = opened()
    socket._enter(State.CLOSED)
    for state in (State.HANDSHAKE, State.OPEN, State.CLOSING):
        with pytest.raises(AssertionError, match="CLOSED"):
            socket._enter(state)


@in_loop
async def test_the_end_is_reported_once() -> None:
    socket, transport = opened()
    codes: list[int] = []
    socket.on_gone = codes.append
    socket.start()
    assert (socket.accepted, socket.close_code, codes) == (True, None, [])
    socket.close(4000, "enough")
    socket.data_received(CLOSE)
    socket.connection_lost(None)
    assert codes == [4000]
    assert transport.written == b"\x88\x08\x0f\xa0enough"


@in_loop
async def test_an_end_before_the_start_is_reported_at_the_start() -> None:
    socket, _ = opened()
    socket.connection_lost(None)
    codes: list[int] = []
    socket.on_gone = codes.append
    socket.start()
    assert codes == [1006]


# What was received and not handled


@in_loop
async def test_a_close_of_the_client_discards_nothing() -> None:
    socket, transport = opened()
    socket.data_received(HELLO * 3 + CLOSE)
    assert (socket.close_code, socket.unhandled) == (1000, 3)
    assert transport.written == CLOSED
    events = [await socket.receive() for _ in range(4)]
    assert [event.get("text") for event in events] == ["Hello"] * 3 + [None]
    assert events[3] == {"type": "websocket.disconnect", "code": 1000, "reason": ""}


@in_loop
async def test_a_loss_discards_nothing_either() -> None:
    socket, _ = opened()
    socket.data_received(HELLO * 2)
    socket.connection_lost(None)
    assert (socket.close_code, socket.unhandled) == (1006, 2)


@in_loop
async def test_the_applications_own_close_discards_what_it_has_not_received() -> None:
    socket, _ = opened()
    socket.data_received(HELLO * 3)
    socket.close()
    assert socket.unhandled == 0
    assert (await socket.receive())["type"] == "websocket.disconnect"
    # What comes after it is ignored.
    socket.data_received(HELLO)
    assert socket.unhandled == 0


@in_loop
async def test_a_slow_consumer_has_said_what_it_has_said() -> None:
    socket, _ = opened(Limits(max_buffer=100))
    socket.data_received(HELLO * 3)
    socket.pause_writing()
    socket.write(bytes(1000))
    assert (socket.slow, socket.close_code, socket.unhandled) == (True, 1013, 3)


@in_loop
async def test_a_full_inbox_pauses_reading_until_it_is_empty() -> None:
    socket, transport = opened(Limits(max_unhandled=2))
    socket.data_received(HELLO * 3 + CLOSE)
    assert (socket.unhandled, socket.close_code) == (2, None)
    assert transport.done == ["pause_reading"]
    await socket.receive()
    await socket.receive()
    assert (await socket.receive())["text"] == "Hello"
    assert socket.close_code == 1000


# What the hub relies on


@in_loop
async def test_the_writer_is_the_transports_while_that_has_room() -> None:
    socket, transport = opened()
    source = socket.source = Source()
    assert socket.writer == transport.write
    socket.pause_writing()
    assert socket.writer == socket.write
    socket.write(HI.wire() + HI.wire())
    assert transport.written == b""
    socket.resume_writing()
    assert transport.written == HI.wire() * 2
    assert socket.writer == transport.write
    socket.close()
    socket.writer(HI.wire())
    socket.write(HI.wire())
    assert transport.written == HI.wire() * 2 + CLOSED
    assert source.writers == ["write", "write", "_drop"]


@in_loop
async def test_the_source_is_told_when_frames_can_be_written() -> None:
    edge = edge_of(Config("none", log_config=None), ServerState(), {})
    socket = Socket(edge)
    socket.transport = Transport()  # type: ignore[assignment]
    source = socket.source = Source()
    socket._open(Incoming(socket.limits, edge.counts, 1.0), b"")
    assert source.writers == ["write"]


@in_loop
async def test_what_was_published_before_goes_first() -> None:
    socket, transport = opened()
    socket.source = Source(b"published ")
    await socket.push(HI)
    assert transport.written == b"published " + HI.wire()
    socket.source = Source(b"last ")
    socket.close()
    assert transport.written == b"published " + HI.wire() + b"last " + CLOSED


@in_loop
async def test_a_push_waits_behind_what_is_queued_and_is_let_go_at_the_end() -> None:
    socket, transport = opened()
    socket.pause_writing()
    socket.write(b"first ")
    push = asyncio.create_task(socket.push(HI))
    await asyncio.sleep(0)
    assert not push.done()
    socket.resume_writing()
    await push
    assert transport.written == b"first " + HI.wire()
    socket.pause_writing()
    push = asyncio.create_task(socket.push(HI))
    await asyncio.sleep(0)
    socket.connection_lost(None)
    await push  # that the client is gone is no error


@in_loop
async def test_to_push_before_the_accept_is_an_error() -> None:
    socket = Socket(edge_of(Config("none", log_config=None), ServerState(), {}))
    with pytest.raises(RuntimeError, match="before the connection is accepted"):
        await socket.push(HI)


@in_loop
async def test_a_buffer_is_as_large_as_its_limit() -> None:
    socket, transport = opened(Limits(max_buffer=1000))
    socket.pause_writing()
    transport.unsent = 500
    socket.write(bytes(300))  # and 64 for the entry
    assert not socket.slow
    socket.write(bytes(100))
    assert socket.slow
    socket.resume_writing()
    # What was not sent is dropped, save for the reason.
    reason = "slow consumer: more than 1000 bytes waiting"
    assert transport.written == close_frame(1013, reason)


# Frames


@in_loop
async def test_of_pings_that_nobody_reads_the_latest_is_answered() -> None:
    socket, transport = opened()
    socket.pause_writing()
    socket.data_received(b"\x89\x81" + MASK + b"a" + PING)
    assert transport.written == b""
    socket.resume_writing()
    assert transport.written == PONG


@in_loop
async def test_a_broken_rule_is_told_behind_the_answer_to_what_came_before() -> None:
    socket, transport = opened()
    socket.data_received(HELLO + b"\xa1\x80" + MASK)
    await socket.receive()
    await socket.push(HI)
    assert transport.written == HI.wire()
    assert (await socket.receive())["code"] == 1002
    assert transport.written == HI.wire() + close_frame(1002, "a reserved bit is set")
    assert socket.close_code == 1002
