"""The fan-out of one event loop: its turns, its inbox, and who is let through."""

import asyncio
import logging
import threading

import pytest
from chatserver.fanout import Fanout, Member, Shared, loop
from chatserver.fanout.loop import INBOX_SIZE, MAX_WAITING, TURN_BYTES, TURN_WRITES

from chatserver.connection import MESSAGE_OVERHEAD
from chatserver.limits import Limits
from chatserver.publication import PLAIN, Frame, Position, Publication
from tests.asgi import PATIENCE, MemoryWriter, accepted, direct, text, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def publication(offset: int = 1, data: str = "x", epoch: str = "e") -> Publication:
    return Publication("a", data, offset, epoch)


def fanout() -> Fanout:
    return Fanout(asyncio.get_running_loop())


def idle(fanout: Fanout) -> bool:
    return not fanout._inbox and not fanout._pending


def live(fanout: Fanout, member: Member) -> None:
    member.go_live(Position(0, "e"))


# Members


def test_what_comes_before_a_member_is_live_is_held() -> None:
    member = Member()
    assert [member.admits(publication(offset)) for offset in (1, 2)] == [False, False]
    assert [each.offset for each in member.held or []] == [1, 2]
    assert not member.live


def test_a_member_is_live_from_the_first_publication_that_it_has_not_had() -> None:
    member = Member()
    member.go_live(Position(3, "e"))
    assert [member.admits(publication(offset)) for offset in (2, 3)] == [False, False]
    assert member.held is None
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
    assert idle(out)
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
    while not idle(out):
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
    await until(lambda: idle(out))
    await until(lambda: len(server.sent) == 300 or connection.slow)
    assert not connection.slow
    await connection.finish()


async def test_many_empty_messages_are_a_turn_too() -> None:
    server, connection = await accepted()
    out = fanout()
    live(out, out.join("a", connection))
    for offset in range(1, 50_001):
        out.deliver(Shared(publication(offset, "")))
    await until(lambda: idle(out))
    await until(lambda: len(server.sent) == 50_000 or connection.slow)
    assert not connection.slow
    await connection.finish()


@pytest.mark.parametrize("size", [0, 1000, TURN_BYTES // 5])
async def test_a_publisher_waits_when_its_own_loop_has_enough_to_do(size: int) -> None:
    out = fanout()
    count = -(-TURN_BYTES // (size + MESSAGE_OVERHEAD))
    for offset in range(count - 1):
        out.deliver(Shared(publication(offset, "x" * size)))
        assert out.mark(out.loop, "a") == 0
    out.deliver(Shared(publication(count, "x" * size)))
    mark = out.mark(out.loop, "a")
    waiting = asyncio.ensure_future(out.reach(mark))
    # Who gives up waiting keeps nobody else from it.
    given_up = asyncio.ensure_future(out.reach(mark))
    await asyncio.sleep(0)
    given_up.cancel()
    # What others publish later is none of its business.
    for offset in range(2 * count):
        out.deliver(Shared(publication(count + offset, "x" * size)))
    later = asyncio.ensure_future(out.reach(out.mark(out.loop, "a")))
    await waiting
    assert not later.done()
    await later
    assert idle(out)
    assert out.mark(out.loop, "a") == 0
    await out.reach(mark)  # at once


async def test_who_leaves_between_two_slices_gets_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "TURN_WRITES", 1)
    out = fanout()
    joined = [direct() for _ in range(3)]
    for _, connection in joined:
        out.add(connection)
        live(out, out.join("a", connection))
    out.deliver(Shared(publication(1, "1")))
    await until(lambda: idle(out))
    out.deliver(Shared(publication(2, "2")))
    for _ in range(2):
        await turn()
    assert [said(writer) for writer, _ in joined][::2] == [["1", "2"], ["1"]]
    out.leave("a", joined[2][1])
    await until(lambda: idle(out))
    assert [said(writer) for writer, _ in joined] == [["1", "2"], ["1", "2"], ["1"]]


async def test_a_busy_channel_holds_back_no_other_until_there_is_too_much_of_all() -> None:
    out = fanout()

    def publish(channel: str) -> None:
        out.deliver(Shared(Publication(channel, "x" * TURN_BYTES, 1, "e")))

    publish("a")
    assert out.mark(out.loop, "a") == 1
    assert out.mark(out.loop, "b") == 0
    for number in range(MAX_WAITING // TURN_BYTES):
        publish(str(number))
    mark = out.mark(out.loop, "b")
    assert mark == 1 + MAX_WAITING // TURN_BYTES
    await out.reach(mark)
    assert (out._sizes, out._size) == ({}, 0)


async def test_a_publisher_on_another_loop_waits_for_a_full_inbox_only() -> None:
    out = fanout()
    other = asyncio.new_event_loop()
    for offset in range(INBOX_SIZE):
        out.deliver(Shared(publication(offset)))
    assert out.mark(other, "a") == 0
    out.deliver(Shared(publication()))
    mark = out.mark(other, "a")
    assert mark == 1
    waiting = asyncio.ensure_future(asyncio.to_thread(other.run_until_complete, out.reach(mark)))
    await asyncio.wait_for(waiting, PATIENCE)
    other.close()


async def test_a_closed_loop_is_nobody() -> None:
    loop = asyncio.new_event_loop()
    out = Fanout(loop)
    out.deliver(Shared(publication()))  # scheduled, and never run
    loop.close()
    for offset in range(INBOX_SIZE * 2):
        out.deliver(Shared(publication(offset)))
    assert out.mark(asyncio.get_running_loop(), "a") == 0
    assert len(out._inbox) <= 1


async def test_a_loop_closed_before_anything_was_delivered_is_nobody() -> None:
    loop = asyncio.new_event_loop()
    out = Fanout(loop)
    loop.close()
    for offset in range(INBOX_SIZE * 2):
        out.deliver(Shared(publication(offset)))
    assert out.mark(asyncio.get_running_loop(), "a") == 0
    assert idle(out)


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


# Batches, on a server of ours


def said(writer: MemoryWriter) -> list[str]:
    """The short text messages that a client was sent, taken from the bytes."""
    data, texts = b"".join(writer.written), []
    while data:
        assert data[0] == 0x81
        texts.append(data[2 : 2 + data[1]].decode())
        data = data[2 + data[1] :]
    return texts


async def turn() -> None:
    await asyncio.sleep(0)


async def test_what_is_published_in_one_turn_is_one_write() -> None:
    writers = [direct() for _ in range(3)]
    out = fanout()
    for _, connection in writers:
        live(out, out.join("a", connection))
    out.deliver(Shared(publication(1, "first")))
    await turn()
    for offset in range(2, 10):
        out.deliver(Shared(publication(offset, str(offset))))
    await turn()
    for writer, _ in writers:
        assert said(writer) == ["first", *map(str, range(2, 10))]
        assert len(writer.written) == 2
    assert out.delivered == 27
    assert writers[0][0].written[1] is writers[1][0].written[1]


async def test_members_with_another_format_get_their_own_bytes() -> None:
    plain, compressed, binary = direct(), direct(window_bits=15), direct(PLAIN["bytes"])
    out = fanout()
    for _, connection in (plain, compressed, binary):
        live(out, out.join("a", connection))
    for offset in range(1, 5):
        out.deliver(Shared(publication(offset, "x" * 300)))
        await turn()
    assert [writer.written[-1][0] for writer, _ in (plain, compressed, binary)] == [
        0x81,
        0xC1,
        0x82,
    ]


async def test_a_full_member_is_written_to_by_itself_and_comes_back() -> None:
    (full, connection), (other, its_connection) = direct(), direct()
    out = fanout()
    for each in (connection, its_connection):
        out.add(each)
        live(out, out.join("a", each))
    for offset in range(1, 7):
        if offset in (3, 5):
            full.full = offset == 3
            assert full.listener is not None
            full.listener.socket_paced()
        out.deliver(Shared(publication(offset, str(offset))))
        await turn()
    assert said(full) == said(other) == list("123456")
    assert full.queued == 2


async def test_what_is_sent_to_one_comes_behind_what_was_published_before() -> None:
    (mine, connection), (other, its_connection) = direct(), direct()
    out = fanout()
    for each in (connection, its_connection):
        out.add(each)
        live(out, out.join("a", each))
    out.deliver(Shared(publication(1, "all 1")))
    await turn()
    for number in range(2, 5):
        await connection.push(text(f"mine {number}"))
        out.deliver(Shared(publication(number, f"all {number}")))
    await turn()
    assert said(mine) == ["all 1", "mine 2", "all 2", "mine 3", "all 3", "mine 4", "all 4"]
    assert said(other) == ["all 1", "all 2", "all 3", "all 4"]
    assert len(other.written) == 2
    assert (out.delivered, out._ahead) == (8, {})


async def test_a_close_comes_behind_what_was_published_before() -> None:
    writer, connection = direct()
    out = fanout()
    out.add(connection)
    live(out, out.join("a", connection))
    out.deliver(Shared(publication(1, "bye")))
    connection.close(1000)
    assert said(writer) == ["bye"]
    assert writer.closed == 1000
    await turn()
    assert said(writer) == ["bye"]


async def test_the_answer_to_a_subscription_comes_before_what_is_live() -> None:
    writer, connection = direct()
    out = fanout()
    out.add(connection)
    member = out.join("a", connection)
    out.deliver(Shared(publication(6, "6")))
    # What waits for its turn is part of the answer.
    assert [each.offset for each in out.held("a", connection)] == [6]
    member.go_live(Position(6, "e"))
    await connection.push(text("answer"))
    out.deliver(Shared(publication(7, "7")))
    await connection.push(text("mine"))
    await turn()
    assert said(writer) == ["answer", "7", "mine"]


async def test_one_in_two_channels_sees_them_in_the_order_of_publishing() -> None:
    both, only_a = direct(), direct()
    out = fanout()
    live(out, out.join("a", both[1]))
    live(out, out.join("b", both[1]))
    live(out, out.join("a", only_a[1]))
    for offset in range(1, 5):
        for channel in "ab":
            out.deliver(Shared(Publication(channel, f"{channel}{offset}", offset, "e")))
    await turn()
    assert said(both[0]) == ["a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4"]
    assert said(only_a[0]) == ["a1", "a2", "a3", "a4"]


async def test_channels_without_a_common_member_are_batched_nevertheless() -> None:
    one, two = direct(), direct()
    out = fanout()
    live(out, out.join("a", one[1]))
    live(out, out.join("b", two[1]))
    for warm_up in (True, False):
        for offset in range(1, 5):
            for channel in "ab":
                number = offset if warm_up else offset + 4
                out.deliver(Shared(Publication(channel, f"{channel}{number}", number, "e")))
        await turn()
    assert said(one[0]) == [f"a{number}" for number in range(1, 9)]
    assert len(one[0].written[4:]) == 1


async def test_a_large_room_takes_several_turns_and_nobody_misses_or_repeats() -> None:
    """While it is written to, members join, leave, fill up and send."""
    room = [direct() for _ in range(3 * TURN_WRITES)]
    out = fanout()
    for _, connection in room:
        out.add(connection)
        live(out, out.join("a", connection))
    out.deliver(Shared(publication(1, "1")))
    await until(lambda: idle(out))
    out.deliver(Shared(publication(2, "2")))
    out.deliver(Shared(publication(3, "3")))
    await turn()
    first, early, late, leaver, full = room[0], room[1], room[-1], room[-2], room[-3]
    assert (said(first[0]), said(late[0])) == (["1", "2", "3"], ["1"])
    out.deliver(Shared(publication(4, "4")))
    await late[1].push(text("late"))
    await early[1].push(text("early"))
    out.leave("a", leaver[1])
    full[0].full = True
    assert full[0].listener is not None
    full[0].listener.socket_paced()
    joined = direct()
    out.add(joined[1])
    out.join("a", joined[1]).go_live(Position(4, "e"))
    out.deliver(Shared(publication(5, "5")))
    await until(lambda: idle(out))
    assert said(late[0]) == ["1", "2", "3", "4", "late", "5"]
    assert said(early[0]) == ["1", "2", "3", "4", "early", "5"]
    assert said(leaver[0]) == ["1"]
    assert said(full[0]) == said(first[0]) == ["1", "2", "3", "4", "5"]
    assert said(joined[0]) == ["5"]
    everyone = [said(writer) for writer, _ in room[2:-3]]
    assert everyone == [["1", "2", "3", "4", "5"]] * len(everyone)


async def test_a_transport_that_fails_is_nobody_elses_business() -> None:
    room = [direct() for _ in range(5)]
    out = fanout()
    for _, connection in room:
        live(out, out.join("a", connection))
    out.deliver(Shared(publication(1, "1")))
    await turn()
    room[2][0].failure = RuntimeError("the handler is closed")
    out.deliver(Shared(publication(2, "2")))
    await turn()
    assert [len(said(writer)) for writer, _ in room] == [2, 2, 1, 2, 2]
