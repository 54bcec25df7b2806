"""The fan-out of one event loop: its turns, its inbox, and who is let through."""

import asyncio
import logging
import threading

import pytest

from chatserver.fanout import INBOX_SIZE, TURN_BYTES, Fanout, Member, Shared
from chatserver.limits import Limits
from chatserver.publication import PLAIN, Frame, Position, Publication
from tests.asgi import accepted, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def publication(offset: int = 1, data: str = "x", epoch: str = "e") -> Publication:
    return Publication("a", data, offset, epoch)


def fanout() -> Fanout:
    return Fanout(asyncio.get_running_loop())


def live(fanout: Fanout, member: Member) -> None:
    member.go_live(Position(0, "e"))


# Members


def test_what_comes_before_a_member_is_live_is_held() -> None:
    member = Member()
    assert [member.admits(publication(offset)) for offset in (1, 2)] == [False, False]
    assert [each.offset for each in member.held] == [1, 2]
    assert not member.live


def test_a_member_is_live_from_the_first_publication_that_it_has_not_had() -> None:
    member = Member()
    member.go_live(Position(3, "e"))
    assert [member.admits(publication(offset)) for offset in (2, 3)] == [False, False]
    assert member.held == []
    assert member.admits(publication(4))
    assert member.live


def test_a_stream_begun_anew_is_admitted_from_its_start() -> None:
    member = Member()
    member.go_live(Position(3, "e"))
    assert member.admits(publication(1, epoch="new"))


async def test_join_and_leave() -> None:
    _, one = await accepted()
    _, two = await accepted()
    out = fanout()
    member = out.join("a", one)
    out.join("a", two)
    out.join("b", one)
    assert (out.subscriptions, one.channels) == (3, {"a", "b"})
    assert out.leave("a", one) is member
    assert out.leave("a", one) is None
    assert out.leave("never", one) is None
    assert (out.subscriptions, one.channels) == (2, {"b"})
    out.leave("a", two)
    out.leave("b", one)
    assert out.members == {}
    for connection in (one, two):
        await connection.finish()


# Encoding


def test_each_wire_format_is_encoded_once() -> None:
    calls: list[str] = []

    def shout(publication: Publication) -> Frame:
        calls.append("shout")
        return Frame(str(publication.data).upper())

    shared = Shared(publication())
    assert shared.frame(shout) is shared.frame(shout)
    assert shared.frame(PLAIN["text"]) is not shared.frame(PLAIN["json"])
    assert calls == ["shout"]


async def test_a_publication_that_another_thread_is_encoding_is_not_lost() -> None:
    encoding, go_on = threading.Event(), threading.Event()

    def slow(publication: Publication) -> Frame:
        if not encoding.is_set():
            encoding.set()
            go_on.wait(5)
        return Frame("x")

    shared = Shared(publication())
    first = asyncio.ensure_future(asyncio.to_thread(shared.frame, slow))
    await until(encoding.is_set)
    here = shared.frame(slow)
    go_on.set()
    there = await first
    assert here is not None
    assert there is not None
    assert here.message == there.message


async def test_a_failing_encoder_closes_its_own_clients_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def broken(publication: Publication) -> Frame:
        calls.append(publication.offset)
        raise ZeroDivisionError

    servers, connections = zip(
        *[await accepted(encoder=broken if number < 3 else None) for number in range(6)],
        strict=True,
    )
    out = fanout()
    for connection in connections:
        live(out, out.join("a", connection))
    with caplog.at_level(logging.ERROR, "chatserver"):
        for offset in (1, 2, 3):
            out.deliver(Shared(publication(offset, str(offset))))
        await until(lambda: all(server.texts == ["1", "2", "3"] for server in servers[3:]))
    assert calls[0] == 1
    assert len(calls) == len(set(calls))
    assert caplog.records[0].exc_info
    assert [connection.close_code for connection in connections] == [1011] * 3 + [None] * 3
    assert out.delivered == 9
    assert not out._inbox
    for connection in connections:
        await connection.finish()


# Turns and the inbox


async def test_the_writers_get_their_turn_before_more_than_the_budget_is_written() -> None:
    server, connection = await accepted()
    out = fanout()
    live(out, out.join("a", connection))
    size = 16 * 1024
    most = 0
    for offset in range(1, 201):
        out.deliver(Shared(publication(offset, "x" * size)))
    while out._inbox:
        await asyncio.sleep(0)
        most = max(most, connection._buffered)
    await until(lambda: len(server.sent) == 200)
    assert most <= TURN_BYTES + 2 * size
    await connection.finish()


@pytest.mark.parametrize(
    ("max_buffer", "size"), [(16 * 1024, 1000), (1000, 200), (1, 1), (1, 5000), (4096, 0)]
)
async def test_a_burst_does_not_fill_a_small_buffer_by_itself(max_buffer: int, size: int) -> None:
    server, connection = await accepted(Limits(max_buffer=max_buffer))
    out = Fanout(asyncio.get_running_loop(), Limits(max_buffer=max_buffer))
    live(out, out.join("a", connection))
    for offset in range(1, 301):
        out.deliver(Shared(publication(offset, "x" * size)))
    await until(lambda: not out._inbox)
    await until(lambda: len(server.sent) == 300 or connection.slow)
    assert not connection.slow
    await connection.finish()


async def test_many_empty_messages_are_a_turn_too() -> None:
    server, connection = await accepted()
    out = fanout()
    live(out, out.join("a", connection))
    for offset in range(1, 50_001):
        out.deliver(Shared(publication(offset, "")))
    await until(lambda: not out._inbox)
    await until(lambda: len(server.sent) == 50_000 or connection.slow)
    assert not connection.slow
    await connection.finish()


async def test_a_publisher_waits_for_its_own_loop_and_for_no_later_publication() -> None:
    out = fanout()
    out.deliver(Shared(publication(1)))
    mark = out.mark(out.loop)
    out.deliver(Shared(publication(2)))
    assert out.behind(mark)
    await asyncio.sleep(0)
    assert not out.behind(mark)
    out.deliver(Shared(publication(3)))
    assert not out.behind(mark)


async def test_a_publisher_on_another_loop_waits_for_a_full_inbox_only() -> None:
    out = fanout()
    other = asyncio.new_event_loop()
    for offset in range(INBOX_SIZE):
        out.deliver(Shared(publication(offset)))
    assert not out.behind(out.mark(other))
    out.deliver(Shared(publication()))
    mark = out.mark(other)
    assert out.behind(mark)
    await asyncio.sleep(0)
    assert not out.behind(mark)
    other.close()


async def test_a_closed_loop_is_nobody() -> None:
    loop = asyncio.new_event_loop()
    out = Fanout(loop)
    out.deliver(Shared(publication()))  # scheduled, and never run
    loop.close()
    for offset in range(INBOX_SIZE * 2):
        out.deliver(Shared(publication(offset)))
    assert not out.behind(out.mark(asyncio.get_running_loop()))
    assert len(out._inbox) <= 1


async def test_a_loop_closed_before_anything_was_delivered_is_nobody() -> None:
    loop = asyncio.new_event_loop()
    out = Fanout(loop)
    loop.close()
    for offset in range(INBOX_SIZE * 2):
        out.deliver(Shared(publication(offset)))
    assert not out.behind(out.mark(asyncio.get_running_loop()))
    assert not out._inbox


async def test_nothing_delivered_by_threads_is_forgotten_in_the_inbox() -> None:
    server, connection = await accepted()
    out = fanout()
    live(out, out.join("a", connection))
    offsets = iter(range(1, 4001))
    lock = threading.Lock()

    def deliver() -> None:
        while True:
            with lock:  # as a broker does: in the order of offsets
                offset = next(offsets, None)
                if offset is None:
                    return
                out.deliver(Shared(publication(offset, str(offset))))

    await asyncio.gather(*(asyncio.to_thread(deliver) for _ in range(4)))
    await until(lambda: len(server.sent) == 4000)
    assert server.texts == [str(offset) for offset in range(1, 4001)]
    await connection.finish()
