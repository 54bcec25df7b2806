"""A connection: its reader, its writer, its bounds and its end.

The server below is in memory; test_connection_live.py has a real one.
"""

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from chatserver.connection import MESSAGE_OVERHEAD, Connection, QueuedConnection
from chatserver.limits import Limits
from tests.asgi import MemoryServer, accepted, text, until

pytestmark = pytest.mark.anyio

#: Time-outs short enough for a test, and long enough not to come by themselves.
SHORT, LONG = 0.05, 60.0


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """After each test the connections' tasks have ended."""
    yield
    await until(lambda: not [task for task in asyncio.all_tasks() if "Connection." in repr(task)])


async def ended(connection: QueuedConnection) -> None:
    connection.close()
    await connection.finish()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def sending(data: str) -> dict[str, str]:
    return {"type": "websocket.send", "text": data}


# What goes out


async def test_what_is_written_is_sent_in_order_as_it_was_framed() -> None:
    server, connection = await accepted()
    frames = [text(str(number)) for number in range(10)]
    for frame in frames:
        connection.write((frame,))
    assert server.sent == []  # it never waits, and never sends by itself
    await until(lambda: len(server.sent) == 10)
    assert all(sent is frame.message for sent, frame in zip(server.sent, frames, strict=True))
    await ended(connection)


async def test_push_and_send_wait_until_the_server_has_taken_it() -> None:
    server, connection = await accepted()
    server.block()
    pushing = asyncio.ensure_future(connection.push(text("1")))
    sent = asyncio.ensure_future(connection.send(sending("2")))
    await turns()
    assert not pushing.done()
    assert not sent.done()
    server.unblock()
    await asyncio.gather(pushing, sent)
    assert server.texts == ["1", "2"]
    await ended(connection)


@pytest.mark.parametrize("blocked", [False, True])
async def test_what_several_tasks_send_goes_out_in_the_order_of_issue(blocked: bool) -> None:
    server, connection = await accepted()
    if blocked:
        server.block()
    tasks = []
    for number in range(0, 90, 3):
        tasks.append(asyncio.ensure_future(connection.push(text(f"{number}"))))
        await asyncio.sleep(0)
        connection.write((text(f"{number + 1}"),))
        tasks.append(asyncio.ensure_future(connection.send(sending(f"{number + 2}"))))
        await asyncio.sleep(0)
    server.unblock()
    await asyncio.gather(*tasks)
    await until(lambda: len(server.sent) == 90)
    assert server.texts == [str(number) for number in range(90)]
    await ended(connection)


async def test_frames_of_two_tasks_never_mix_in_the_server() -> None:
    server, connection = await accepted()
    server.turns = 3
    most = 0

    async def push(name: str) -> None:
        nonlocal most
        for number in range(20):
            await connection.push(text(f"{name}{number}"))
            connection.write((text(f"{name}{number} too"),))
            most = max(most, server.sending)

    await asyncio.gather(push("a"), push("b"), push("c"))
    await until(lambda: len(server.sent) == 120)
    assert most <= 1
    for name in "abc":
        said = [each for each in server.texts if each.startswith(name)]
        assert said == [f"{name}{n}{too}" for n in range(20) for too in ("", " too")]
    await ended(connection)


@pytest.mark.parametrize("queued", [False, True])
async def test_a_cancelled_push_holds_up_nobody(queued: bool) -> None:
    server, connection = await accepted()
    server.block()
    first = asyncio.ensure_future(connection.push(text("1")))
    await turns()
    second = asyncio.ensure_future(connection.push(text("2")))
    await turns()
    connection.write((text("3"),))
    await turns()
    (second if queued else first).cancel()
    await turns()
    server.unblock()
    await until(lambda: server.texts[-1:] == ["3"])
    # A push that was cancelled is not sent, just as one that never began.
    assert server.texts == (["1", "3"] if queued else ["2", "3"])
    await asyncio.gather(first, second, return_exceptions=True)
    await ended(connection)


async def test_a_handler_that_only_sends_gives_others_their_turn() -> None:
    _server, connection = await accepted()
    stopped = False

    async def send_on() -> None:
        while not stopped:
            await connection.send(sending("x"))

    task = asyncio.ensure_future(send_on())
    await asyncio.sleep(0.01)
    stopped = True
    await task
    await ended(connection)


async def test_text_that_cannot_be_sent_is_the_callers_error() -> None:
    server, connection = await accepted()
    with pytest.raises(UnicodeEncodeError):
        await connection.send(sending("\ud800"))
    await connection.send({"type": "websocket.send", "bytes": b"\xff", "text": None})
    await connection.send({"type": "websocket.send", "bytes": None, "text": ""})
    assert [event.get("text", event.get("bytes")) for event in server.sent] == [b"\xff", ""]
    await ended(connection)


# When the client is gone


@pytest.mark.parametrize("error", [OSError("broken pipe"), RuntimeError("closed"), KeyError()])
async def test_when_the_server_cannot_send_the_connection_is_gone(error: Exception) -> None:
    server, connection = await accepted()
    codes: list[int] = []
    connection.on_gone = codes.append
    server.failure = error
    with pytest.raises(ConnectionResetError):
        await connection.send(sending("1"))
    assert connection.close_code == 1006
    with pytest.raises(ConnectionResetError):
        await connection.send(sending("2"))
    await connection.push(text("3"))
    connection.write((text("4"),))
    connection.close(1000)
    await turns()
    assert codes == [1006]
    assert server.sent == []
    assert not connection._outgoing
    await connection.finish()


async def test_when_the_server_fails_all_who_wait_are_released() -> None:
    server, connection = await accepted()
    server.block()
    waiting = [asyncio.ensure_future(connection.push(text(str(n)))) for n in range(3)]
    sent = [asyncio.ensure_future(connection.send(sending(str(n)))) for n in range(3)]
    connection.write((text("w"),))
    await turns()
    server.failure = OSError()
    server.unblock()
    assert await asyncio.gather(*waiting) == [None] * 3
    results = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionResetError] * 3
    await connection.finish()


async def test_a_written_frame_finds_out_that_the_client_is_gone() -> None:
    server, connection = await accepted()
    server.failure = OSError()
    connection.write((text("1"),))
    connection.write((text("2"),))
    await until(lambda: connection.close_code == 1006)
    assert await connection.receive() == {
        "type": "websocket.disconnect",
        "code": 1006,
        "reason": "",
    }
    await connection.finish()


async def test_pushing_to_a_client_that_is_gone_gives_others_their_turn() -> None:
    _, connection = await accepted()
    await ended(connection)
    stopped = False

    async def push_on() -> None:
        while not stopped:
            await connection.push(text("x"))

    task = asyncio.ensure_future(push_on())
    await asyncio.sleep(0)
    stopped = True
    await task


async def test_before_the_accept_the_applications_mistake_is_its_own() -> None:
    server = MemoryServer()
    connection = QueuedConnection(server.receive, server.send, Limits())
    server.failure = RuntimeError("a header has a line break")
    with pytest.raises(RuntimeError, match="line break"):
        await connection.send({"type": "websocket.accept"})
    server.failure = OSError("gone")
    with pytest.raises(ConnectionResetError):
        await connection.send({"type": "websocket.accept"})
    assert not connection.accepted
    await connection.finish()


async def test_the_connect_comes_first() -> None:
    server = MemoryServer()
    connection = QueuedConnection(server.receive, server.send, Limits())
    connection.start()
    server.inbox.put_nowait({"type": "websocket.connect"})
    assert await connection.receive() == {"type": "websocket.connect"}
    await connection.send({"type": "websocket.close", "code": 1008, "reason": ""})
    assert server.closes == [(1008, "")]
    assert connection.close_code is None
    await connection.finish()


# Slow consumers


async def fill(connection: Connection, size: int = 1000) -> int:
    """Write until the connection is closed; how often that was."""
    for number in range(10_000):
        connection.write((text("x" * size),))
        if connection.close_code is not None:
            return number
    raise AssertionError("it took everything")


async def test_a_full_buffer_closes_with_1013() -> None:
    server, connection = await accepted(Limits(max_buffer=10_000))
    codes: list[int] = []
    connection.on_gone = codes.append
    server.block()
    assert await fill(connection) == 10_000 // (1000 + MESSAGE_OVERHEAD)
    assert connection.slow
    assert codes == [1013]
    connection.write((text("not any more"),))
    await turns()
    server.unblock()
    await until(lambda: server.closes)
    # What had not been handed to the server was discarded.
    assert len(server.texts) <= 1
    assert server.closes == [(1013, "slow consumer: more than 10000 bytes waiting")]
    await connection.finish()


async def test_a_buffer_exactly_full_is_not_slow_yet() -> None:
    size = 1000 + MESSAGE_OVERHEAD
    server, connection = await accepted(Limits(max_buffer=size * 3))
    server.block()
    for _ in range(3):
        connection.write((text("x" * 1000),))
    assert not connection.slow
    connection.write((text(""),))
    assert connection.slow
    server.unblock()
    await connection.finish()


async def test_what_was_sent_makes_room() -> None:
    server, connection = await accepted(Limits(max_buffer=3000))
    for number in range(100):
        connection.write((text(f"{number:01000}"),))
        connection.write((text(f"{number:01000}"),))
        await until(lambda: connection._buffered == 0)
    assert len(server.sent) == 200
    assert not connection.slow
    await ended(connection)


@pytest.mark.parametrize("data", ["é" * 600, "x" * 1200])
async def test_the_buffer_is_measured_in_bytes(data: str) -> None:
    server, connection = await accepted(Limits(max_buffer=3 * 1300))
    server.block()
    for _ in range(3):
        connection.write((text(data),))
    assert not connection.slow
    connection.write((text(data),))
    assert connection.slow
    server.unblock()
    await connection.finish()


async def test_empty_messages_fill_a_buffer_too() -> None:
    server, connection = await accepted(Limits(max_buffer=10_000))
    server.block()
    assert await fill(connection, 0) < 10_000
    server.unblock()
    await connection.finish()


async def test_a_single_message_larger_than_the_buffer_passes_when_it_is_empty() -> None:
    server, connection = await accepted(Limits(max_buffer=10))
    for _ in range(3):
        connection.write((text("x" * 1000),))
        await until(lambda: connection._buffered == 0)
    assert len(server.sent) == 3
    server.block()
    connection.write((text("x" * 1000),))
    assert not connection.slow
    connection.write((text("x"),))
    assert connection.slow
    server.unblock()
    await connection.finish()


async def test_what_is_written_at_once_passes_an_empty_buffer() -> None:
    server, connection = await accepted(Limits(max_buffer=3000))
    connection.write([text("x" * 1000)] * 10)
    assert not connection.slow
    await until(lambda: connection._buffered == 0)
    assert len(server.sent) == 10
    server.block()
    connection.write([text("x" * 1000)] * 2)
    connection.write([text("x" * 1000)] * 2)
    assert connection.slow
    server.unblock()
    await connection.finish()


async def test_a_slow_consumer_that_takes_not_even_the_close_is_aborted() -> None:
    server, connection = await accepted(Limits(max_buffer=10_000, close_timeout=SHORT))
    server.block()
    queued = [asyncio.ensure_future(connection.push(text("p"))) for _ in range(3)]
    await turns()
    began = time.monotonic()
    await fill(connection)
    # Those in the queue are released at once, the one that the server has with the abort.
    await asyncio.gather(*queued[1:])
    assert server.transport.aborted == 0
    await queued[0]
    assert time.monotonic() - began >= SHORT * 0.9
    assert server.transport.aborted == 1
    await connection.finish()
    assert (connection.slow, connection.close_code) == (True, 1013)
    assert server.closes == []


@pytest.mark.parametrize("how", ["write", "push", "send"])
async def test_a_client_that_takes_nothing_in_time_is_slow(how: str) -> None:
    server, connection = await accepted(Limits(send_timeout=SHORT, close_timeout=SHORT))
    server.block()
    task: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    if how == "write":
        connection.write((text("x"),))
        task.set_result(None)
    elif how == "push":
        task = asyncio.ensure_future(connection.push(text("x")))
    else:
        task = asyncio.ensure_future(connection.send(sending("x")))
    await until(lambda: connection.close_code is not None)
    assert (connection.slow, connection.close_code) == (True, 1013)
    await until(lambda: server.transport.aborted)
    if how == "send":
        with pytest.raises(ConnectionResetError):
            await task
    else:
        await task
    await connection.finish()


async def test_a_client_that_is_stuck_in_the_handshake_is_aborted() -> None:
    server = MemoryServer()
    limits = Limits(send_timeout=SHORT)
    connection = QueuedConnection(server.receive, server.send, limits)
    server.block()
    with pytest.raises(ConnectionResetError):
        await connection.send({"type": "websocket.accept"})
    assert server.transport.aborted == 1
    assert not connection.slow
    await connection.finish()


async def test_a_server_whose_transport_cannot_be_reached_is_left_to_itself() -> None:
    server, connection = await accepted(Limits(send_timeout=SHORT, close_timeout=SHORT))
    server.transport = None
    server.block()
    connection.write((text("x"),))
    await until(lambda: connection.slow)
    connection.abort()
    server.unblock()
    await connection.finish()
    assert server.closes[0][0] == 1013


# The close


async def test_a_close_goes_out_behind_what_was_issued_before() -> None:
    server, connection = await accepted()
    server.block()
    connection.write((text("1"),))
    pushing = asyncio.ensure_future(connection.push(text("2")))
    await turns()
    connection.write((text("3"),))
    connection.close(4000, "bye")
    connection.close(4001, "not this one")
    connection.write((text("not any more"),))
    assert connection.close_code == 4000
    server.unblock()
    await connection.finish()
    await pushing
    assert server.texts == ["1", "2", "3"]
    assert server.closes == [(4000, "bye")]
    assert server.sent[-1]["type"] == "websocket.close"


async def test_starlettes_close_is_a_close_like_ours() -> None:
    server, connection = await accepted()
    await connection.send({"type": "websocket.close", "code": 3000, "reason": None})
    await connection.finish()
    assert server.closes == [(3000, "")]
    assert connection.close_code == 3000


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("", ""),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 100, "é" * 61),
        ("\ud800", "?"),
    ],
)
async def test_a_reason_is_cut_to_what_a_close_frame_holds(reason: str, sent: str) -> None:
    server, connection = await accepted()
    connection.close(1000, reason)
    await connection.finish()
    assert server.closes == [(1000, sent)]


async def test_after_a_close_receive_says_so_for_ever() -> None:
    server, connection = await accepted()
    server.say("not handled any more")
    await until(lambda: server.received == 1)
    connection.close(4000, "bye")
    expected = {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}
    assert [await connection.receive() for _ in range(2)] == [expected] * 2
    await connection.finish()
    assert await connection.receive() == expected


async def test_a_close_that_the_client_does_not_take_ends_in_an_abort() -> None:
    server, connection = await accepted(Limits(send_timeout=SHORT, close_timeout=LONG))
    server.block()
    connection.close(1011)
    await asyncio.wait_for(connection.finish(), 5)
    assert server.transport.aborted == 1
    assert not connection.slow


# What comes in


async def test_messages_are_received_in_order_and_the_disconnect_last() -> None:
    server, connection = await accepted()
    server.say(*"abc")
    server.disconnect(code=1001, reason="leaving")
    await until(lambda: connection.close_code is not None)
    assert [(await connection.receive())["text"] for _ in range(3)] == ["a", "b", "c"]
    expected = {"type": "websocket.disconnect", "code": 1001, "reason": "leaving"}
    assert await connection.receive() == expected
    await connection.finish()


async def test_a_disconnect_is_noticed_while_nobody_receives() -> None:
    server, connection = await accepted()
    codes: list[int] = []
    connection.on_gone = codes.append
    server.say("not handled yet")
    server.disconnect(code=1001)
    await until(lambda: codes == [1001])
    assert (await connection.receive())["text"] == "not handled yet"
    await connection.finish()


async def test_a_disconnect_releases_waiting_tasks() -> None:
    server, connection = await accepted()
    server.block()
    server.transport.buffered = 0
    pushing = [asyncio.ensure_future(connection.push(text("x"))) for _ in range(3)]
    receiving = asyncio.ensure_future(connection.receive())
    await turns()
    server.disconnect(code=1001)
    assert (await receiving)["code"] == 1001
    await asyncio.gather(*pushing[1:])
    server.failure = OSError()
    server.unblock()
    await pushing[0]
    await connection.finish()


async def test_a_client_that_left_with_data_in_the_socket_is_aborted_in_time() -> None:
    server, connection = await accepted(Limits(close_timeout=SHORT))
    server.block()
    server.transport.buffered = 1000
    connection.write((text("x"),))
    await turns()
    server.disconnect(code=1000)
    await asyncio.wait_for(connection.finish(), 5)
    assert server.transport.aborted == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"code": 1005}, 1006),  # the TCP connection was lost
        ({"code": 1005, "reason": ""}, 1005),  # a close frame without a code
        ({"code": 1000, "reason": ""}, 1000),
        ({"code": 4000}, 4000),
        ({"code": 1006}, 1006),
        ({"code": 1012}, 1012),
    ],
)
async def test_the_code_of_a_disconnect(fields: dict[str, Any], code: int) -> None:
    server, connection = await accepted()
    server.disconnect(**fields)
    assert (await connection.receive())["code"] == code
    assert connection.close_code == code
    await connection.finish()


async def test_a_failing_receive_is_a_lost_connection() -> None:
    server, connection = await accepted()
    server.inbox.put_nowait(RuntimeError("the server is broken"))
    assert (await connection.receive())["code"] == 1006
    await connection.finish()


@pytest.mark.parametrize(
    ("event", "fits"),
    [
        ({"text": "x" * 10}, True),
        ({"text": "x" * 11}, False),
        ({"text": "é" * 5}, True),
        ({"text": "é" * 5 + "x"}, False),
        ({"text": "😀" * 2 + "xx"}, True),
        ({"text": "😀" * 3}, False),
        ({"text": "", "bytes": None}, True),
        ({"bytes": b"\xff" * 10}, True),
        ({"bytes": b"\xff" * 11, "text": None}, False),
    ],
)
async def test_messages_are_limited_in_bytes(event: dict[str, Any], fits: bool) -> None:
    server, connection = await accepted(Limits(max_message_size=10))
    server.say("before")
    server.inbox.put_nowait({"type": "websocket.receive", **event})
    await until(lambda: server.received == 2)
    await turns()
    if fits:
        assert connection.close_code is None
        await connection.receive()
        assert await connection.receive() == {"type": "websocket.receive", **event}
    else:
        assert connection.close_code == 1009
        await until(lambda: server.closes)
        assert server.closes == [(1009, "message exceeds the limit of 10 bytes")]
    await ended(connection)


async def test_messages_that_nobody_has_taken_yet_are_unhandled() -> None:
    server, connection = await accepted()
    server.inbox.put_nowait({"type": "websocket.connect"})
    server.say(*"abc")
    await until(lambda: server.received == 4)
    assert connection.unhandled == 3
    await connection.receive()
    await connection.receive()
    assert connection.unhandled == 2
    server.disconnect(code=1000)
    await until(lambda: connection.close_code is not None)
    assert connection.unhandled == 2
    await connection.finish()


class Published:
    """A source that has something for a connection, once."""

    def __init__(self) -> None:
        self.waiting = ["published"]
        self.changes = 0

    def paced(self, connection: Connection) -> None:
        self.changes += 1

    def catch_up(self, connection: Connection) -> None:
        while self.waiting:
            connection.writer((text(self.waiting.pop()),))


@pytest.mark.parametrize("how", ["push", "send", "close"])
async def test_what_was_published_before_goes_first(how: str) -> None:
    server, connection = await accepted()
    connection.source = source = Published()
    if how == "push":
        await connection.push(text("own"))
    elif how == "send":
        await connection.send(sending("own"))
    await ended(connection)
    assert server.texts == ["published", "own"][: 1 if how == "close" else 2]
    assert source.changes == 1  # its end


async def test_too_much_unhandled_stops_the_reader_until_there_is_room() -> None:
    server, connection = await accepted(Limits(max_unhandled=3))
    server.say(*"abcdefg")
    await until(lambda: server.received == 3)
    await turns(20)
    assert server.received == 3
    seen = []
    for received in range(4, 8):
        seen.append((await connection.receive())["text"])
        await turns(20)
        assert server.received == received
    seen += [(await connection.receive())["text"] for _ in range(3)]
    assert seen == list("abcdefg")
    server.disconnect(code=1000)
    assert (await connection.receive())["code"] == 1000
    await connection.finish()


async def test_a_reader_that_waits_for_room_ends_with_the_connection() -> None:
    server, connection = await accepted(Limits(max_unhandled=1))
    server.say(*"ab")
    await until(lambda: server.received == 1)
    connection.close(4000)
    assert (await connection.receive())["code"] == 4000
    await connection.finish()


async def test_a_reader_without_room_still_notices_a_server_that_hangs_up() -> None:
    server, connection = await accepted(Limits(max_unhandled=1))
    server.say("a")
    server.disconnect(code=1012)
    await until(lambda: server.received == 1)
    await turns()
    assert connection.close_code is None
    server.transport.closing = True
    await until(lambda: connection.close_code == 1012)
    assert (await connection.receive())["text"] == "a"
    await connection.finish()


async def test_cancelled_pushes_leave_nothing_behind() -> None:
    server, connection = await accepted()
    server.block()
    first = asyncio.ensure_future(connection.push(text("1")))
    await turns()
    pushes = [asyncio.ensure_future(connection.push(text("x" * 1000))) for _ in range(1000)]
    await turns()
    for push in pushes:
        push.cancel()
    await asyncio.gather(*pushes, return_exceptions=True)
    assert not connection._outgoing
    server.unblock()
    await first
    assert server.texts == ["1"]
    await ended(connection)


@pytest.mark.parametrize("code", [0, 99, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70_000])
async def test_a_code_that_can_not_be_sent(code: int, caplog: pytest.LogCaptureFixture) -> None:
    server, connection = await accepted()
    connection.close(code)
    await until(lambda: server.closes)
    assert server.closes == [(1011, "")]
    assert caplog.messages == [f"{code} can't be sent as a close code, 1011 is sent instead"]
    await ended(connection)


async def test_a_cancelled_receive_loses_nothing() -> None:
    server, connection = await accepted()
    for number in range(20):
        receiving = asyncio.ensure_future(connection.receive())
        await turns(number % 4)
        server.say(str(number))
        await turns(number % 3)
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await receiving)["text"] == str(number)
            continue
        assert (await connection.receive())["text"] == str(number)
    await ended(connection)


async def test_several_may_wait_to_receive() -> None:
    server, connection = await accepted()
    receiving = [asyncio.ensure_future(connection.receive()) for _ in range(3)]
    await turns()
    receiving[1].cancel()
    await turns()
    server.say("a")
    await until(lambda: receiving[0].done() or receiving[2].done())
    server.disconnect(code=1001)
    done = [await receiving[0], await receiving[2]]
    assert sorted(event.get("text", event.get("code")) == "a" for event in done) == [False, True]
    await connection.finish()


# The end of its tasks


async def open_(server: MemoryServer, connection: Connection) -> None:
    pass


async def closed(server: MemoryServer, connection: Connection) -> None:
    connection.close()


async def blocked(server: MemoryServer, connection: Connection) -> None:
    server.block()
    connection.write((text("x"),))
    connection.close()
    await turns()


async def lost(server: MemoryServer, connection: Connection) -> None:
    server.disconnect(code=1005)
    await until(lambda: connection.close_code)


async def full(server: MemoryServer, connection: Connection) -> None:
    server.say(*"abcdefgh")
    await turns(20)


async def slow(server: MemoryServer, connection: Connection) -> None:
    server.block()
    await fill(connection)


STATES = [open_, closed, blocked, lost, full, slow]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("cancelled", [None, 1, 2, 3])
async def test_finish_leaves_no_task(
    state: Callable[[MemoryServer, Connection], Any], cancelled: int | None
) -> None:
    before = asyncio.all_tasks()
    # A task that waits ends by the time-outs; a cancelled one must not need them.
    patience = SHORT if cancelled is None else LONG
    limits = Limits(max_unhandled=2, max_buffer=5000, send_timeout=patience, close_timeout=patience)
    server, connection = await accepted(limits)
    await state(server, connection)
    finishing = asyncio.ensure_future(connection.finish())
    if cancelled is not None:
        await turns(cancelled)
        finishing.cancel()
    await asyncio.wait({finishing})
    await until(lambda: asyncio.all_tasks() <= before)
    await connection.finish()  # again: nothing is left to do


async def test_finish_waits_for_what_is_on_its_way() -> None:
    server, connection = await accepted()
    server.block()
    connection.write((text("last words"),))
    connection.close(1000)
    finishing = asyncio.ensure_future(connection.finish())
    await turns(20)
    assert not finishing.done()
    server.unblock()
    await finishing
    assert server.texts == ["last words"]
    assert server.closes == [(1000, "")]


async def test_finish_waits_for_the_close_behind_another_tasks_push() -> None:
    server, connection = await accepted()
    server.block()
    pushing = asyncio.ensure_future(connection.push(text("from somebody else")))
    await turns()
    connection.close(1011, "error")
    finishing = asyncio.ensure_future(connection.finish())
    await turns(20)
    assert not finishing.done()
    server.unblock()
    await asyncio.gather(pushing, finishing)
    assert server.closes == [(1011, "error")]


async def test_after_finish_nothing_starts_again_behind_another_tasks_push() -> None:
    server, connection = await accepted(Limits(send_timeout=LONG))
    server.block()
    pushing = asyncio.ensure_future(connection.push(text("from somebody else")))
    await turns()
    connection.close(1011, "error")
    finishing = asyncio.ensure_future(connection.finish())
    await turns()
    finishing.cancel()
    await asyncio.wait({finishing})
    server.unblock()
    await pushing
    await turns()
    assert server.closes == []


async def test_a_finished_connection_is_not_kept_in_memory() -> None:
    _server, connection = await accepted(Limits(send_timeout=LONG))
    connection.write((text("x"),))
    connection.close(1000)
    await connection.finish()
    reference = weakref.ref(connection)
    del connection
    await turns()
    gc.collect()
    assert reference() is None


async def test_a_finished_connection_with_data_in_the_socket_is_aborted_nevertheless() -> None:
    server, connection = await accepted(Limits(send_timeout=SHORT))
    server.transport.buffered = 1000
    connection.close(1000)
    await connection.finish()
    await until(lambda: server.transport.aborted == 1)


async def test_a_connection_says_what_it_is() -> None:
    _, connection = await accepted()
    assert repr(connection) == f"<QueuedConnection {connection.id} open>"
    await ended(connection)
    assert repr(connection) == f"<QueuedConnection {connection.id} closed 1000>"
