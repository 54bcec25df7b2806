"""The fan-out of one event loop: rows and turns, its inbox, and publishers that wait."""

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from chatserver.connection import MESSAGE_OVERHEAD, Connection
from chatserver.hub import fanout as fanout_module
from chatserver.hub import rows
from chatserver.hub.fanout import (
    INBOX_SIZE,
    MAX_WAITING,
    MOST_WRITES,
    TURN_BYTES,
    TURN_WRITES,
    Fanout,
    Lost,
    Shared,
)
from chatserver.hub.rows import ROW_MEMBERS
from chatserver.hub.subscription import State, Subscribed
from chatserver.limits import Limits
from chatserver.publication import (
    PLAIN,
    ClientInfo,
    Delivery,
    Encoder,
    Frame,
    History,
    Joined,
    Position,
    Publication,
)
from chatserver.wire import frames as wire_frames
from tests.asgi import PATIENCE, MemoryConnection, accepted, text, until
from tests.members import START, idle, join, live, members, said

pytestmark = pytest.mark.anyio

#: Shorter messages are not compressed.
LONG = "x" * 300


@pytest.fixture
async def out() -> Fanout:
    return Fanout(asyncio.get_running_loop())


def publication(offset: int = 1, data: str = "x", epoch: str = "e") -> Publication:
    return Publication("a", data, offset, epoch)


def publish(out: Fanout, *offsets: int, channel: str = "a", size: int = 0) -> None:
    """Deliver publications that say their offset, or are so many bytes long."""
    for offset in offsets:
        data = "x" * size or str(offset)
        out.deliver(Shared(Publication(channel, data, offset, "e")))


async def turn() -> None:
    await asyncio.sleep(0)


async def settled(out: Fanout) -> None:
    await until(lambda: idle(out))


# Members


async def test_join_and_leave(out: Fanout) -> None:
    one, two = MemoryConnection(), MemoryConnection()
    member = join(out, one)
    others = [join(out, two), join(out, one, "b")]
    assert (out.subscriptions, set(one.members)) == (3, {"a", "b"})
    out.leave(member)
    assert (out.subscriptions, set(one.members)) == (2, {"b"})
    publish(out, 1)
    await settled(out)
    assert (said(one), said(two)) == ([], ["1"])
    for other in others:
        out.leave(other)
    assert out.channels == {}
    out.remove(one)
    assert (out.connections, one.source) == ({two}, None)


async def test_until_a_member_is_live_nothing_is_written(out: Fanout) -> None:
    connection = MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, PLAIN["text"])
    publish(out, 1, 2)
    await turn()
    live(out, member, Position(1, "e"))
    publish(out, 3)
    await settled(out)
    assert said(connection) == ["2", "3"]


async def test_a_member_ahead_of_the_channel_waits_for_it(out: Fanout) -> None:
    """What it read from history was published, but is still to be delivered here."""
    connection = MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, PLAIN["text"])
    assert member.joining is not None
    read = tuple(publication(offset) for offset in (1, 2, 3))
    member.joining.answer(START, History(read, Position(3, "e")), START)
    out.open(member, START)
    publish(out, 1, 2)
    await turn()
    assert said(connection) == []
    assert member.row is None
    out.deliver(Shared(Joined("a", ClientInfo("somebody"))))  # none of the text encoder's business
    publish(out, 3, 4, 5)
    await settled(out)
    assert said(connection) == ["4", "5"]
    assert member.row is not None


async def test_a_member_ahead_of_the_channel_gets_joins(out: Fanout) -> None:
    def names(delivery: Delivery) -> Frame:
        return Frame("joined" if isinstance(delivery, Joined) else "published")

    connection = MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, names)
    assert member.joining is not None
    out.deliver(Shared(Joined("a", ClientInfo("early"))))
    await turn()
    member.joining.answer(START, History((publication(1),), Position(1, "e")), START)
    out.open(member, START)
    out.deliver(Shared(Joined("a", ClientInfo("one"))))
    publish(out, 1)
    out.deliver(Shared(Joined("a", ClientInfo("two"))))
    publish(out, 2)
    out.deliver(Shared(Joined("a", ClientInfo("three"))))
    await settled(out)
    assert said(connection) == ["joined", "joined", "published", "joined"]


async def test_the_answer_comes_before_what_was_held_and_what_is_live(out: Fanout) -> None:
    connection = MemoryConnection()
    out.add(connection)
    join(out, connection, "b")
    member = out.join("a", connection, PLAIN["text"])
    member.answer = lambda subscribed: [Frame(f"answer {subscribed.position.offset}")]
    publish(out, 1, 2)
    publish(out, 7, channel="b")
    out.pull()
    assert member.joining is not None
    member.joining.answer(None, None, Position(2, "e"))
    publish(out, 3)
    out.pull()
    assert member.joining.state is State.ANSWERED
    out.open(member, Position(2, "e"))
    publish(out, 4)
    await settled(out)
    # As with a push: what was published before to the connection goes first.
    assert said(connection) == ["7", "answer 2", "3", "4"]


async def test_an_answer_may_be_nothing(out: Fanout) -> None:
    asked: list[Subscribed] = []
    connection = MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, PLAIN["text"])

    def nothing(subscribed: Subscribed) -> tuple[()]:
        asked.append(subscribed)
        return ()

    member.answer = nothing
    live(out, member)
    assert asked == [Subscribed(False, (), START)]
    assert connection.written == []


async def test_more_than_can_be_held_for_an_accept_ends_the_connection() -> None:
    out = Fanout(asyncio.get_running_loop(), Limits(max_buffer=1000))
    early, late = MemoryConnection(), MemoryConnection()
    joining = []
    for connection in (early, late):
        out.add(connection)
        joining.append(out.join("a", connection, PLAIN["text"]))
    for member in joining:
        assert member.joining is not None
        member.joining.answer(None, None, START)
    publish(out, *range(1, 8))
    out.pull()
    out.open(joining[0], START)
    publish(out, *range(8, 30))
    out.pull()
    out.open(joining[1], START)
    await settled(out)
    assert said(early) == [str(offset) for offset in range(1, 30)]
    assert (late.close_code, late.written) == (1013, [])


# Encoding


def test_each_wire_format_is_encoded_once() -> None:
    calls: list[str] = []

    def shout(delivery: Delivery) -> Frame:
        calls.append("shout")
        return Frame("X")

    shared = Shared(publication())
    assert shared.frame(shout) is shared.frame(shout)
    assert shared.frame(PLAIN["text"]) is not shared.frame(PLAIN["json"])
    assert calls == ["shout"]


async def test_a_publication_that_another_thread_is_encoding_is_not_lost() -> None:
    encoding, go_on = threading.Event(), threading.Event()

    def slow(delivery: Delivery) -> Frame:
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


async def test_members_with_another_format_get_their_own_bytes(out: Fanout) -> None:
    forms: list[tuple[int, Encoder]] = [
        (0, PLAIN["text"]),
        (15, PLAIN["text"]),
        (0, PLAIN["bytes"]),
    ]
    connections = [MemoryConnection(window_bits) for window_bits, _ in forms]
    for connection, (_, encoder) in zip(connections, forms, strict=True):
        join(out, connection, encoder=encoder)
    publish(out, 1, size=300)
    await settled(out)
    assert [connection.written[0][0] for connection in connections] == [0x81, 0xC1, 0x82]
    assert [said(connection) for connection in connections] == [[LONG]] * 3


async def test_a_delivery_without_a_frame_is_not_written(out: Fanout) -> None:
    connection = MemoryConnection()
    join(out, connection, encoder=lambda delivery: None)
    publish(out, 1, 2)
    await settled(out)
    assert (connection.written, out.delivered) == ([], 0)


async def test_a_failing_encoder_ends_its_own_members_only(
    out: Fanout, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def broken(delivery: Delivery) -> Frame:
        assert isinstance(delivery, Publication)
        calls.append(delivery.offset)
        if delivery.offset == 2:
            raise ZeroDivisionError
        return Frame(str(delivery.offset))

    pairs = [await accepted() for _ in range(2)]
    connections: list[Connection] = [connection for _, connection in pairs]
    connections += [MemoryConnection() for _ in range(4)]
    for number, connection in enumerate(connections):
        join(out, connection, encoder=PLAIN["text"] if number % 2 else broken)
    with caplog.at_level(logging.ERROR, "chatserver"):
        publish(out, 1, 2, 3)
        await settled(out)
    assert [connection.close_code for connection in connections] == [1011, None] * 3
    assert caplog.records[0].exc_info
    for connection in connections[2:]:
        assert isinstance(connection, MemoryConnection)
        # What came before the frame that can't be made is written, and nothing after it.
        expected = ["1"] if connection.close_code else ["1", "2", "3"]
        assert said(connection) == expected
    await until(lambda: pairs[1][0].texts == ["1", "2", "3"])
    for connection in connections[:2]:
        await connection.finish()
    assert pairs[0][0].texts == ["1"]


async def test_a_frame_that_cannot_be_compressed_ends_its_own_members_only(
    out: Fanout, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compressed = MemoryConnection(), MemoryConnection(15)
    other = MemoryConnection(15)
    for connection, channel in ((plain, "a"), (compressed, "a"), (other, "b")):
        join(out, connection, channel)

    def broken(payload: bytes, window_bits: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr(wire_frames, "deflate", broken)
    publish(out, 1)
    publish(out, 2, size=300)
    publish(out, 3)
    publish(out, 1, channel="b")
    await settled(out)
    assert [each.close_code for each in (plain, compressed, other)] == [None, 1011, None]
    assert said(plain) == ["1", LONG, "3"]
    assert (said(compressed), said(other)) == (["1"], ["1"])


@pytest.mark.parametrize("window_bits", [0, 15])
async def test_what_was_held_and_can_not_be_made_ends_its_member_only(
    out: Fanout, monkeypatch: pytest.MonkeyPatch, window_bits: int
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    def encode(delivery: Delivery) -> Frame:
        return Frame(LONG) if window_bits else Frame(broken())

    monkeypatch.setattr(wire_frames, "deflate", broken)
    connection, other = MemoryConnection(window_bits), MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, encode)
    join(out, other)
    publish(out, 1)
    live(out, member)
    publish(out, 2)
    await settled(out)
    assert (connection.close_code, connection.written) == (1011, [])
    assert said(other) == ["1", "2"]
    out.leave(member)
    assert out.subscriptions == 1


# Turns


async def test_what_is_published_in_one_turn_is_one_write(out: Fanout) -> None:
    room = members(out, 3)
    publish(out, 1)
    await turn()
    publish(out, *range(2, 10))
    await turn()
    for connection in room:
        assert said(connection) == [str(offset) for offset in range(1, 10)]
        assert len(connection.written) == 2
    assert out.delivered == 27
    assert room[0].written[1] is room[1].written[1]


async def test_a_turn_is_bounded_by_writes(out: Fanout) -> None:
    room = members(out, 3 * TURN_WRITES + 1)
    publish(out, 1)
    reached = []
    for _ in range(4):
        await turn()
        reached.append(sum(len(connection.written) for connection in room))
    assert reached == [TURN_WRITES, 2 * TURN_WRITES, 3 * TURN_WRITES, 3 * TURN_WRITES + 1]


async def test_in_one_turn_a_member_is_written_to_once_and_not_too_much(out: Fanout) -> None:
    """So that its socket can take that first, however few they are in the room."""
    room = members(out, 3)
    others = members(out, 2, "b")
    publish(out, *range(1, 5), size=TURN_BYTES // 2)
    publish(out, 1, channel="b")
    written = []
    for _ in range(3):
        await turn()
        written.append([len(said(connection)) for connection in (*room, *others)])
    assert written == [[1, 1, 1, 1, 1], [2, 2, 2, 1, 1], [3, 3, 3, 1, 1]]
    await settled(out)


async def test_small_rooms_share_a_turn(out: Fanout) -> None:
    """Each room gets a row in the turn in which something came for it."""
    rooms = [members(out, 2, f"room{number}") for number in range(TURN_WRITES)]
    for number in range(TURN_WRITES):
        publish(out, 1, channel=f"room{number}")
    await turn()
    assert all(said(connection) == ["1"] for room in rooms for connection in room)
    await settled(out)


async def test_however_many_rooms_there_are_a_turn_has_its_bound(out: Fanout) -> None:
    count = MOST_WRITES // 2
    rooms = [members(out, 4, f"room{number}") for number in range(count)]
    for number in range(count):
        publish(out, 1, channel=f"room{number}")
    await turn()
    assert sum(len(connection.written) for room in rooms for connection in room) == MOST_WRITES
    await settled(out)
    assert all(said(connection) == ["1"] for room in rooms for connection in room)


async def test_a_small_room_waits_for_a_row_of_a_large_one_only(out: Fanout) -> None:
    large, small = members(out, 5 * ROW_MEMBERS, "large"), members(out, 1, "small")
    publish(out, 1, channel="large")
    await turn()
    publish(out, 1, channel="small")
    await turn()
    await turn()
    assert said(small[0]) == ["1"]
    assert not all(said(connection) for connection in large)
    await settled(out)
    assert all(said(connection) == ["1"] for connection in large)


async def test_what_comes_during_a_round_travels_with_it(out: Fanout) -> None:
    """It is with everybody after one round from when it came, in as few writes."""
    room = members(out, 4 * ROW_MEMBERS)
    publish(out, 1)
    await turn()
    publish(out, 2)
    await turn()
    publish(out, 3)
    for _ in range(4):
        await turn()
    assert all(said(connection) == ["1", "2", "3"] for connection in room)
    writes = [len(room[number * ROW_MEMBERS].written) for number in range(4)]
    assert writes == [2, 2, 1, 1]
    await settled(out)


async def test_a_large_room_takes_several_turns_and_nobody_misses_or_repeats(out: Fanout) -> None:
    """While it is written to, members join, leave, fill up and send."""
    room = members(out, 3 * ROW_MEMBERS)
    publish(out, 1)
    await settled(out)
    publish(out, 2, 3)
    await turn()
    behind = [connection for connection in room if said(connection) == ["1"]]
    first = next(connection for connection in room if connection not in behind)
    late, leaver, full = behind[:3]
    assert (len(behind), said(first)) == (2 * ROW_MEMBERS, ["1", "2", "3"])
    publish(out, 4)
    await late.push(text("late"))
    await first.push(text("first"))
    out.leave(leaver.members["a"])
    full.full = True
    joined = MemoryConnection()
    join(out, joined, position=Position(4, "e"))
    publish(out, 5)
    await settled(out)
    assert said(late) == ["1", "2", "3", "4", "late", "5"]
    assert said(first) == ["1", "2", "3", "4", "first", "5"]
    assert (said(leaver), said(joined)) == (["1"], ["5"])
    assert full.queued > 0
    others = [each for each in room if each not in (late, first, leaver)]
    assert all(said(each) == list("12345") for each in others)


async def test_a_member_that_leaves_between_two_turns_gets_nothing_more(
    out: Fanout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout_module, "TURN_WRITES", 1)
    monkeypatch.setattr(rows, "ROW_MEMBERS", 1)
    room = members(out, 3)
    publish(out, 1)
    await settled(out)
    publish(out, 2)
    await turn()
    last = [connection for connection in room if said(connection) == ["1"]][-1]
    out.leave(last.members["a"])
    await settled(out)
    assert [said(connection) for connection in room if connection is not last] == [["1", "2"]] * 2
    assert said(last) == ["1"]


async def test_a_member_that_leaves_the_middle_of_a_row_leaves_no_hole(out: Fanout) -> None:
    room = members(out, 5)
    publish(out, 1)
    await turn()
    for number in (1, 4, 0):
        out.leave(room[number].members["a"])
    publish(out, 2)
    late = members(out, 1)
    await settled(out)
    assert [said(connection) for connection in room] == [["1"], ["1"], *[["1", "2"]] * 2, ["1"]]
    assert said(late[0]) == ["2"]  # it came while that was waiting: its position is 0


async def test_rows_are_filled_again_before_there_are_new_ones(out: Fanout) -> None:
    room = members(out, 3 * ROW_MEMBERS)
    for connection in room[::2]:
        out.leave(connection.members["a"])
    members(out, 3 * ROW_MEMBERS // 2)
    (feed,) = out.channels["a"].feeds.values()
    assert [len(row.members) for row in feed.rows] == [ROW_MEMBERS] * 3


async def test_a_full_member_is_written_to_by_its_queue_and_comes_back(out: Fanout) -> None:
    full, other = members(out, 2)
    for offset in range(1, 7):
        if offset in (3, 5):
            full.full = offset == 3
        publish(out, offset)
        await turn()
    assert said(full) == said(other) == list("123456")
    assert full.queued == 2


async def test_a_transport_that_fails_affects_no_other(out: Fanout) -> None:
    room = members(out, 5)
    publish(out, 1)
    await turn()
    room[2].failure = RuntimeError("the handler is closed")
    publish(out, 2)
    await turn()
    assert [len(said(connection)) for connection in room] == [2, 2, 1, 2, 2]


async def test_a_transport_that_fails_while_joining_affects_no_other(out: Fanout) -> None:
    broken, other = MemoryConnection(), MemoryConnection()
    broken.failure = RuntimeError("the handler is closed")
    out.add(broken)
    joining = out.join("a", broken, PLAIN["text"])
    joining.answer = lambda subscribed: [Frame("answer")]
    publish(out, 1)
    live(out, joining)
    assert joining.row is not None
    ahead = out.join("b", broken, PLAIN["text"])
    assert ahead.joining is not None
    ahead.joining.answer(START, History((publication(1),), Position(1, "e")), START)
    out.open(ahead, START)
    join(out, other, "b")
    publish(out, 1, 2, channel="b")
    await settled(out)
    assert said(other) == ["1", "2"]


async def test_a_connection_that_ends_in_the_middle_of_a_row_harms_nobody(out: Fanout) -> None:
    """Its end calls `catch_up`, while other threads deliver to the inbox."""
    room = members(out, 6)
    lost: list[Position] = []
    for connection in room:
        connection.members["a"].on_lost = lambda _, position: lost.append(position)
    publish(out, 1)
    await turn()

    class Failing(MemoryConnection):
        def _write_directly(self, wire: bytes) -> None:
            out.deliver(Lost("a", Position(2, "e")))
            publish(out, 3)
            self.close(1013)

    failing = Failing()
    join(out, failing)
    late = members(out, 3)
    publish(out, 2)
    await settled(out)
    assert [said(connection) for connection in room] == [["1", "2"]] * 6
    assert [said(connection) for connection in late] == [["2", "3"]] * 3
    assert lost == [Position(2, "e")] * 6
    assert failing.close_code == 1013


# What is sent to one


async def test_a_push_comes_after_earlier_publications(out: Fanout) -> None:
    mine, other = members(out, 2)
    publish(out, 1)
    await turn()
    for number in range(2, 5):
        await mine.push(text(f"mine {number}"))
        publish(out, number)
    await settled(out)
    assert said(mine) == ["1", "mine 2", "2", "mine 3", "3", "mine 4", "4"]
    assert said(other) == ["1", "2", "3", "4"]
    assert len(other.written) == 2
    assert out.delivered == 8


async def test_a_push_is_two_writes_however_much_is_pending(out: Fanout) -> None:
    """Two thousand people say one word each; everybody's own answer is one write and a slice."""
    room = members(out, 2000)
    involved, alone = MemoryConnection(), MemoryConnection()
    join(out, involved)
    out.add(alone)
    publish(out, *range(1, 2001), size=20)
    await alone.push(text("echo"))
    assert len(alone.written) == 1
    await involved.push(text("echo"))
    assert len(involved.written) == 2
    for speaker in room:
        await speaker.push(text("You wrote"))
    # Each got everything so far in one piece, which all share.
    assert {len(speaker.written) for speaker in room} == {2}
    assert len({id(speaker.written[0]) for speaker in room}) == 1
    await settled(out)
    assert all(len(speaker.written) == 2 for speaker in room)


async def test_each_speaker_of_many_costs_as_many_bytes_as_it_gets(out: Fanout) -> None:
    """Said and answered in turn, no byte is written twice to anybody."""
    room = members(out, 300)
    for number, speaker in enumerate(room, 1):
        publish(out, number)
        await speaker.push(text("mine"))
    await settled(out)
    everything = [str(number) for number in range(1, 301)]
    for number, speaker in enumerate(room, 1):
        assert said(speaker) == [*everything[:number], "mine", *everything[number:]]
        assert len(speaker.written) <= 2 + 300 // 100 + 1


async def test_a_push_waits_for_no_other_channel_than_the_connections_own(out: Fanout) -> None:
    other = members(out, 1, "b")[0]
    alone = MemoryConnection()
    out.add(alone)
    publish(out, 1, channel="b")
    await alone.push(text("mine"))
    assert (said(alone), said(other)) == (["mine"], [])
    await settled(out)


async def test_a_close_comes_behind_what_was_published_before(out: Fanout) -> None:
    (connection,) = members(out, 1)
    publish(out, 1)
    connection.close(1000)
    assert (said(connection), connection.close_code) == (["1"], 1000)
    await settled(out)
    assert said(connection) == ["1"]


async def test_a_client_in_two_channels_gets_each_in_its_order(out: Fanout) -> None:
    both, only = MemoryConnection(), MemoryConnection()
    for connection, channel in ((both, "a"), (both, "b"), (only, "a")):
        join(out, connection, channel)
    for offset in range(1, 5):
        publish(out, offset)
        out.deliver(Shared(Publication("b", f"b{offset}", offset, "e")))
    await settled(out)
    assert [each for each in said(both) if each[0] != "b"] == said(only) == list("1234")
    assert [each for each in said(both) if each[0] == "b"] == ["b1", "b2", "b3", "b4"]


async def test_a_burst_to_a_member_ahead_goes_on_from_where_it_stands() -> None:
    """Though the rows go round in pieces smaller than it was given at once."""
    out = Fanout(asyncio.get_running_loop(), Limits(max_buffer=400))
    mine, other = members(out, 2)
    publish(out, *range(10, 60))
    await mine.push(text("mine"))
    publish(out, *range(60, 90))
    await settled(out)
    everything = [str(offset) for offset in range(10, 90)]
    assert said(mine) == [*everything[:50], "mine", *everything[50:]]
    assert said(other) == everything
    assert max(map(len, other.written)) <= 100


# What was lost


async def test_a_member_is_told_of_a_loss_behind_what_came_before(out: Fanout) -> None:
    told: list[tuple[str, Position, list[str]]] = []
    rich, plain, other = (*members(out, 2), *members(out, 1, "b"))
    rich.members["a"].on_lost = lambda channel, position: told.append(
        (channel, position, said(rich))
    )
    publish(out, 1)
    out.deliver(Lost("a", Position(0, "new")))
    out.deliver(Shared(publication(1, "new", "new")))
    publish(out, 1, channel="b")
    await settled(out)
    assert told == [("a", Position(0, "new"), ["1"])]
    # Until it joins anew it is written nothing; one that can't be told goes on.
    assert (said(rich), said(plain), said(other)) == (["1"], ["1", "new"], ["1"])
    out.leave(rich.members["a"])
    join(out, rich, position=Position(1, "new"))
    out.deliver(Shared(publication(2, "newer", "new")))
    await settled(out)
    assert said(rich) == ["1", "newer"]


async def test_a_member_before_its_accept_is_told_of_a_loss_and_not_written_to(out: Fanout) -> None:
    told: list[Position] = []
    connection = MemoryConnection()
    out.add(connection)
    member = out.join("a", connection, PLAIN["text"])
    member.on_lost = lambda _, position: told.append(position)
    assert member.joining is not None
    out.deliver(Lost("a", Position(1, "e")))
    out.pull()
    assert told == []  # it is answered by what there is now
    member.joining.answer(None, None, Position(1, "e"))
    out.deliver(Lost("a", Position(7, "e")))
    out.pull()
    assert told == [Position(7, "e")]
    out.open(member, Position(7, "e"))
    publish(out, 8)
    await settled(out)
    assert connection.written == []
    out.leave(member)


async def test_a_member_that_fails_when_it_is_told_of_a_loss_affects_no_other(
    out: Fanout, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Position] = []

    def fail(channel: str, position: Position) -> None:
        raise ZeroDivisionError

    broken, rich, plain = members(out, 3)
    broken.members["a"].on_lost = fail
    rich.members["a"].on_lost = lambda _, position: told.append(position)
    out.deliver(Lost("a", Position(4, "e")))
    publish(out, 5)
    await settled(out)
    assert told == [Position(4, "e")]
    assert said(plain) == ["5"]
    assert caplog.messages == ["on_lost() failed for channel 'a'"]


# Publishers wait


async def reached(out: Fanout, channel: str = "a") -> None:
    """As `Hub.publish` does."""
    behind = out.behind(channel)
    if behind is not None:
        feed, place = behind
        await feed.written(place)


@pytest.mark.parametrize("size", [1, 1000, TURN_BYTES // 5])
async def test_a_publisher_waits_when_its_own_channel_has_enough_to_do(
    out: Fanout, size: int
) -> None:
    members(out, 2 * ROW_MEMBERS)
    count = -(-TURN_BYTES // len(Frame("x" * size).wire()))
    publish(out, *range(1, count), size=size)
    assert out.behind("a") is None
    publish(out, count, size=size)
    waiting = asyncio.ensure_future(reached(out))
    # A cancelled waiter doesn't keep another from waiting.
    given_up = asyncio.ensure_future(reached(out))
    await asyncio.sleep(0)
    given_up.cancel()
    # What others publish later is none of its business.
    publish(out, *range(count + 1, 3 * count), size=size)
    later = asyncio.ensure_future(reached(out))
    await asyncio.wait_for(waiting, PATIENCE)
    assert not later.done()
    await asyncio.wait_for(later, PATIENCE)
    await settled(out)
    assert out.behind("a") is None


async def test_publishers_are_woken_when_the_last_member_leaves(out: Fanout) -> None:
    room = members(out, 2)
    publish(out, 1, size=2 * TURN_BYTES)
    waiting = asyncio.ensure_future(reached(out))
    await asyncio.sleep(0)
    publish(out, *range(2, 5), size=2 * TURN_BYTES)
    later = asyncio.ensure_future(reached(out))
    for connection in room:
        out.leave(connection.members["a"])
    await asyncio.wait_for(asyncio.gather(waiting, later), PATIENCE)
    await settled(out)


async def test_a_busy_channel_holds_back_no_other_until_there_is_too_much_of_all(
    out: Fanout,
) -> None:
    names = ["a", "b", "idle", *map(str, range(MAX_WAITING // TURN_BYTES))]
    for name in names:
        members(out, 1, name)
    publish(out, 1, channel="a", size=TURN_BYTES)
    publish(out, 1, channel="b")
    assert out.behind("a") is not None
    assert out.behind("b") is None
    for name in names[3:]:
        publish(out, 1, channel=name, size=TURN_BYTES)
    assert out.behind("b") is not None
    assert out.behind("idle") is None
    assert out.behind("nobody is there") is None
    await asyncio.wait_for(reached(out, "b"), PATIENCE)
    await settled(out)


async def test_the_writers_get_their_turn_before_more_than_the_budget_is_written(
    out: Fanout,
) -> None:
    server, connection = await accepted()
    join(out, connection)
    size, most = 16 * 1024, 0
    publish(out, *range(1, 201), size=size)
    while not idle(out):
        await asyncio.sleep(0)
        most = max(most, connection._buffered)
    await until(lambda: len(server.sent) == 200)
    assert most <= TURN_BYTES + 2 * size
    await connection.finish()


@pytest.mark.parametrize(
    ("max_buffer", "size"), [(16 * 1024, 1000), (1000, 200), (1, 1), (1, 5000), (4096, 1)]
)
async def test_a_burst_does_not_fill_a_small_buffer_by_itself(max_buffer: int, size: int) -> None:
    limits = Limits(max_buffer=max_buffer)
    server, connection = await accepted(limits)
    out = Fanout(asyncio.get_running_loop(), limits)
    join(out, connection)
    publish(out, *range(1, 301), size=size)
    await settled(out)
    await until(lambda: len(server.sent) == 300 or connection.slow)
    assert not connection.slow
    await connection.finish()


async def test_many_empty_messages_are_bounded_too(out: Fanout) -> None:
    server, connection = await accepted()
    join(out, connection)
    for offset in range(1, 50_001):
        out.deliver(Shared(publication(offset, "")))
    out.pull()
    assert out._waiting == 50_000 * MESSAGE_OVERHEAD
    await settled(out)
    await until(lambda: len(server.sent) == 50_000 or connection.slow)
    assert not connection.slow
    await connection.finish()


# Other threads


async def test_a_publisher_on_another_loop_waits_for_a_full_inbox_only(out: Fanout) -> None:
    """The publisher goes on when there is room, whatever is delivered after it."""
    publish(out, *range(1, INBOX_SIZE + 1))
    await asyncio.wait_for(asyncio.to_thread(asyncio.run, out.reach()), PATIENCE)
    publish(out, *range(1, INBOX_SIZE + 2))
    started, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        await out.reach()
        ended.set()

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    started.wait(PATIENCE)
    assert not ended.wait(0.02)  # nothing is taken out of the inbox meanwhile
    await until(ended.is_set)
    thread.join(PATIENCE)


@pytest.mark.parametrize("scheduled", [True, False])
async def test_publishers_do_not_wait_for_a_closed_loop(scheduled: bool) -> None:
    loop = asyncio.new_event_loop()
    out = Fanout(loop)
    if scheduled:
        publish(out, 1)  # and it is never run
    loop.close()
    publish(out, *range(2, INBOX_SIZE * 2))
    await asyncio.wait_for(out.reach(), PATIENCE)
    assert len(out._inbox) <= 1


async def test_nothing_delivered_by_threads_is_forgotten_in_the_inbox(out: Fanout) -> None:
    server, connection = await accepted()
    join(out, connection)
    offsets = iter(range(1, 4001))
    lock = threading.Lock()

    def deliver() -> None:
        while True:
            with lock:  # as a broker does: in the order of offsets
                offset = next(offsets, None)
                if offset is None:
                    return
                publish(out, offset)

    await asyncio.gather(*(asyncio.to_thread(deliver) for _ in range(4)))
    await until(lambda: len(server.sent) == 4000)
    assert server.texts == [str(offset) for offset in range(1, 4001)]
    await connection.finish()


def counted(calls: list[str], name: str) -> Callable[[Delivery], Frame]:
    def encode(delivery: Delivery) -> Frame:
        calls.append(name)
        return Frame(name)

    return encode


async def test_members_of_one_format_share_one_frame(out: Fanout) -> None:
    calls: list[str] = []
    encoders = [counted(calls, "one"), counted(calls, "two")]
    room = [MemoryConnection() for _ in range(2 * ROW_MEMBERS)]
    for number, connection in enumerate(room):
        join(out, connection, encoder=encoders[number % 2])
    publish(out, 1)
    await settled(out)
    assert sorted(calls) == ["one", "two"]
    assert len({id(connection.written[0]) for connection in room}) == 2
