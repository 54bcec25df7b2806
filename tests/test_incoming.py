"""From a client's bytes to messages and verdicts, with literals and a clock that the test sets."""

from typing import Any

import pytest

from chatserver.errors import InvalidFrame
from chatserver.limits import Counts, Limits
from chatserver.server import incoming as module
from chatserver.server.incoming import Incoming
from chatserver.wire import Close, Event, Ping, Pong

MASK = bytes(4)
HELLO = b"\x81\x85" + MASK + b"Hello"
BYTES = b"\x82\x82" + MASK + b"\x00\xff"
BEGUN = b"\x01\x82" + MASK + b"He"
REST = b"\x80\x83" + MASK + b"llo"
PING = b"\x89\x82" + MASK + b"hi"
PONG = b"\x8a\x80" + MASK
CLOSE = b"\x88\x82" + MASK + b"\x03\xe8"
RESERVED_BIT = b"\xa1\x80" + MASK
INTERVAL = 1.0


class Client:
    """What came of a client's bytes, at a time that is set."""

    def __init__(self, limits: Limits | None = None, **options: Any) -> None:
        self.now = 100.0
        self.counts = Counts()
        self.incoming = Incoming(
            limits or Limits(), self.counts, INTERVAL, clock=lambda: self.now, **options
        )

    def send(self, data: bytes) -> list[Event]:
        self.incoming.feed(data)
        return self.taken()

    def taken(self) -> list[Event]:
        return list(iter(self.incoming.next, None))

    def check_after(self, seconds: float) -> InvalidFrame | None:
        self.now += seconds
        return self.incoming.check(self.now)


def test_messages_and_control_frames_come_in_their_order() -> None:
    client = Client()
    wire = HELLO + PING + BYTES + BEGUN + PONG + REST + CLOSE
    events = ["Hello", Ping(b"hi"), b"\x00\xff", Pong(b""), "Hello", Close(1000, "")]
    assert client.send(wire) == events
    assert not client.incoming.paused


def test_the_smaller_limit_of_a_message_holds() -> None:
    for size, broken in ((4, True), (5, False), (None, False)):
        client = Client(max_size=size)
        assert client.send(HELLO) == ([] if broken else ["Hello"])
        assert (client.incoming.violation is not None) == broken


# A broken rule


def test_what_came_before_a_broken_rule_is_taken_and_nothing_behind_it() -> None:
    client = Client()
    assert client.send(HELLO + RESERVED_BIT + HELLO) == ["Hello"]
    assert client.incoming.violation is not None
    assert client.incoming.violation.code == 1002
    assert client.incoming.paused
    assert client.send(HELLO) == []


def test_a_broken_rule_is_told_when_there_was_time_to_answer_what_came_before() -> None:
    client = Client()
    client.send(HELLO + RESERVED_BIT)
    assert client.check_after(0.9 * INTERVAL) is None
    assert client.check_after(0.2 * INTERVAL) is client.incoming.violation


# Unfinished messages

TIMEOUT = Limits(message_timeout=5)


@pytest.mark.parametrize("begin", [BEGUN, HELLO[:1], HELLO[:-1], HELLO + BEGUN, PING[:-1]])
def test_a_message_must_be_complete_in_time(begin: bytes) -> None:
    client = Client(TIMEOUT)
    client.send(begin)
    assert client.check_after(4.9) is None
    error = client.check_after(0.2)
    assert error is not None
    assert (error.code, error.reason) == (1008, "message not complete within 5 s")
    assert client.counts.unfinished == 1


def test_time_passes_for_a_message_whatever_else_is_sent() -> None:
    client = Client(TIMEOUT)
    client.send(BEGUN)
    for _ in range(5):
        assert client.check_after(1) is None
        client.send(PING + PONG)
    assert client.check_after(0.1) is not None


def test_each_message_has_its_own_time() -> None:
    client = Client(TIMEOUT)
    for _ in range(5):
        client.send(BEGUN)
        assert client.check_after(4) is None
        assert client.send(REST) == ["Hello"]
    assert client.check_after(60) is None
    # The next one begins in the packet in which this one ends.
    client.send(BEGUN)
    assert client.check_after(4) is None
    client.send(REST + BEGUN)
    assert client.check_after(4) is None
    assert client.check_after(1.1) is not None


# The rate

RATE = Limits(max_message_rate=4)


def test_no_more_is_taken_than_may_be_until_the_next_check() -> None:
    client = Client(RATE)
    assert client.send(HELLO * 3) == ["Hello"] * 3
    assert client.send(PING * 3) == [Ping(b"hi")]
    assert client.incoming.held
    assert client.incoming.paused
    assert client.check_after(INTERVAL) is None
    assert not client.incoming.held
    assert client.taken() == [Ping(b"hi")] * 2


def test_a_rate_below_one_an_interval_is_one() -> None:
    client = Client(Limits(max_message_rate=1))
    client.incoming = Incoming(client.incoming._limits, client.counts, 0.1)
    assert client.send(HELLO * 2) == ["Hello"]


def test_without_a_rate_all_is_taken() -> None:
    assert len(Client(Limits(max_message_rate=0)).send(HELLO * 20_000)) == 20_000


def test_a_flood_is_failed_when_it_lasts() -> None:
    client = Client(RATE)
    for _ in range(4):
        client.send(HELLO * 8)
        assert client.incoming.violation is None
        client.check_after(INTERVAL)
    client.send(HELLO * 8)
    error = client.incoming.violation
    assert error is not None
    assert (error.code, error.reason) == (1008, "more than 4 messages a second")
    assert client.counts.floods == 1


@pytest.mark.parametrize(
    ("sent", "late"),
    [(HELLO * 4, 0.0), (HELLO * 8, 0.6 * INTERVAL)],
    ids=["it has no more on its way", "it took its time"],
)
def test_a_client_that_is_quick_is_slowed_and_never_failed(sent: bytes, late: float) -> None:
    client = Client(RATE)
    for _ in range(20):
        client.now += late
        client.incoming.feed(sent)
        assert len(client.taken()) == 4
        client.incoming.next()
        client.check_after(INTERVAL - late)
    assert client.incoming.violation is None


def test_a_pause_ends_a_flood() -> None:
    client = Client(RATE)
    for _ in range(4):
        client.send(HELLO * 5)
        client.check_after(INTERVAL)
    client.taken()
    while client.incoming.held:
        client.check_after(INTERVAL)
        client.taken()
    client.check_after(INTERVAL)
    client.check_after(INTERVAL)
    assert client.incoming._floods == 0


def test_how_long_a_flood_may_last_is_a_constant_of_the_module() -> None:
    assert module.FLOOD_SECONDS == 5.0


# Too many bytes

KIB = b"\x82\xfe\x04\x00" + MASK + bytes(1024)
SLOW = Limits(max_buffer=4096, max_byte_rate=2048)


def test_a_burst_of_one_buffer_is_taken_and_then_so_many_bytes_a_second() -> None:
    client = Client(SLOW)
    assert len(client.send(KIB * 10)) == 4
    assert client.incoming.paused
    assert client.incoming.wait == module.SHORTEST_WAIT
    client.now += 0.25
    assert len(client.taken()) == 1
    assert client.incoming.wait == 0.25
    client.now += 0.75
    assert len(client.taken()) == 1
    client.now += 3600
    assert len(client.taken()) == 4
    assert not client.incoming.held
    assert client.incoming.violation is None


def test_a_small_buffer_slows_nobody_within_the_rate() -> None:
    client, taken = Client(Limits(max_buffer=1, max_byte_rate=1_000_000)), 0
    for _ in range(100):
        client.now += module.SHORTEST_WAIT
        taken += len(client.send(KIB * 20))
    assert 0.95 * 1_000_000 <= taken * 1024 <= 1.1 * 1_000_000


def test_the_check_of_the_message_rate_gives_no_bytes() -> None:
    client = Client(SLOW)
    assert len(client.send(KIB * 10)) == 4
    assert client.check_after(0) is None
    assert client.taken() == []
    assert client.incoming.paused


def test_bytes_are_counted_as_they_stand_in_memory() -> None:
    euros = "\u20ac" * 512  # three bytes each
    wire = b"\x81\xfe\x06\x00" + MASK + euros.encode()
    client = Client(Limits(max_buffer=1536, max_byte_rate=1))
    assert client.send(wire * 2) == [euros]
    assert client.incoming.wait > 0


def test_without_a_limit_of_bytes_nobody_waits() -> None:
    client = Client(Limits(max_buffer=1, max_byte_rate=0))
    assert len(client.send(KIB * 100)) == 100
    assert not client.incoming.paused
