"""Checks what the checked clients got: is it complete, in order, and how old was it?

The generator records the frames of a few members, the probes, with the time of arrival. Here they
are parsed, inflated if they were compressed, and compared with what was published. There is no I/O.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Arrival", "Checker", "Checks", "percentile", "records", "text_of"]

HEADER = struct.Struct("=QIII")
MARK = 0xFFFFFFFF  # a "connection" that marks the beginning of a drive
COMPRESSED = 0x40  # RSV1 of the frame's first byte
TAIL = b"\x00\x00\xff\xff"  # the sender removes it: RFC 7692, section 7.2.1


class Record(NamedTuple):
    """A frame as it was recorded."""

    arrived: int  # nanoseconds
    connection: int
    first: int  # first byte of the frame
    payload: bytes


class Arrival(NamedTuple):
    """A published text that reached a probe."""

    number: int  # in its group, from 0
    due: int  # nanoseconds
    arrived: int


@dataclass
class Checks:
    """What the probes of one drive found."""

    messages: int = 0
    latencies: list[float] = field(default_factory=list)  # milliseconds, sorted
    missing: int = 0  # numbers missing before the last one that came
    repeated: int = 0
    damaged: int = 0  # texts that differ from what was published
    one_order: bool = True  # all probes of a group saw one order, and each publisher's own order

    def problems(self) -> list[str]:
        """Mistakes, in words. A different order is separate: not all servers promise one."""
        found = {
            "missing at a probe": self.missing,
            "repeated at a probe": self.repeated,
            "damaged at a probe": self.damaged,
        }
        return [f"{count} messages {what}" for what, count in found.items() if count]


def records(data: bytes) -> Iterator[Record]:
    """Parse the generator's record. A last record that is cut short is left out."""
    at = 0
    while at + HEADER.size <= len(data):
        arrived, connection, first, size = HEADER.unpack_from(data, at)
        at += HEADER.size
        if at + size > len(data):
            return
        yield Record(arrived, connection, first, data[at : at + size])
        at += size


def text_of(number: int, publisher: int, due: int, size: int, words: str) -> str:
    """The text that the generator publishes; `compose` in `load.c` makes the same."""
    head = f"~{number:08x}{publisher:04x}{due:016x}"
    start = number * 37 % len(words)
    filler = words[start:] + words * (size // len(words) + 1)
    return (head + filler)[:size]


def percentile(values: list[float], share: float) -> float | None:
    """The value below which this share of the sorted values is."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else None


class Checker:
    """Reads the records of one set of connections, one drive after the other.

    It lives as long as the connections, because a compressed message may refer to all before it.
    """

    def __init__(self, words: str, extension: str = "") -> None:
        self._words = words
        self._fresh = "server_no_context_takeover" in extension
        self._inflaters: dict[int, zlib._Decompress] = {}

    def check(
        self, data: bytes, *, size: int, reply: str, groups: int, window: tuple[int, int]
    ) -> Checks:
        """Check one drive.

        Args:
            data: What was recorded since the drive before.
            size: Length of the published texts.
            reply: First letter of answers to the publisher alone, which are ignored.
            groups: How many rooms there are; a connection's is its number modulo this.
            window: Latencies are of texts that were due between these nanoseconds.
        """
        checks = Checks()
        seen: dict[int, list[int]] = defaultdict(list)
        latencies = []
        for connection, arrival in self._arrivals(data, size, reply):
            if arrival is None:
                checks.damaged += 1
                continue
            seen[connection].append(arrival.number)
            if window[0] <= arrival.due < window[1]:
                latencies.append((arrival.arrived - arrival.due) / 1e6)
        checks.latencies = sorted(latencies)
        checks.messages = sum(map(len, seen.values()))
        _compare(seen, groups, checks)
        return checks

    def _arrivals(self, data: bytes, size: int, reply: str) -> Iterator[tuple[int, Arrival | None]]:
        started = False
        for record in records(data):
            if record.connection == MARK:
                started = True
                continue
            payload = self._plain(record)
            if started and not (reply and payload.startswith(reply.encode())):
                at = payload.find(b"~")
                if at >= 0:  # else it belongs to the protocol, such as a ping of Engine.IO
                    yield record.connection, self._arrival(record, payload[at : at + size], size)

    def _plain(self, record: Record) -> bytes:
        if not record.first & COMPRESSED:
            return record.payload
        inflater = self._inflaters.get(record.connection)
        if inflater is None or self._fresh:
            inflater = self._inflaters[record.connection] = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            return inflater.decompress(record.payload + TAIL)
        except zlib.error:
            return b"~ not to be inflated"

    def _arrival(self, record: Record, text: bytes, size: int) -> Arrival | None:
        try:
            number, publisher = int(text[1:9], 16), int(text[9:13], 16)
            due = int(text[13:29], 16)
        except ValueError:
            return None
        if text != text_of(number, publisher, due, size, self._words).encode():
            return None
        return Arrival(number, due, record.arrived)


def _compare(seen: dict[int, list[int]], groups: int, checks: Checks) -> None:
    for numbers in seen.values():
        distinct = set(numbers)
        checks.missing += max(distinct) + 1 - len(distinct)
        checks.repeated += len(numbers) - len(distinct)
    by_group: dict[int, list[list[int]]] = defaultdict(list)
    for connection, numbers in seen.items():
        by_group[connection % groups].append(numbers)
    for lists in by_group.values():
        shortest = min(map(len, lists))
        if any(numbers[:shortest] != lists[0][:shortest] for numbers in lists):
            checks.one_order = False
