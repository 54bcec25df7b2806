"""Members of a fan-out, in memory, and what they were told."""

import zlib

from chatserver.connection import Connection
from chatserver.hub.fanout import Fanout
from chatserver.hub.rows import Member
from chatserver.publication import PLAIN, Encoder, Position
from tests.asgi import MemoryConnection

START = Position(0, "e")


def join(
    out: Fanout,
    connection: Connection,
    channel: str = "a",
    *,
    encoder: Encoder = PLAIN["text"],
    position: Position = START,
) -> Member:
    """Let a connection into a channel, live from behind a position on."""
    if connection not in out.connections:
        out.add(connection)
    member = out.join(channel, connection, encoder)
    live(out, member, position)
    return member


def live(out: Fanout, member: Member, position: Position = START) -> None:
    out.pull()
    assert member.joining is not None
    member.joining.answer(None, None, position)
    out.open(member, position)


def members(out: Fanout, count: int, channel: str = "a") -> list[MemoryConnection]:
    """Make `count` connections that take bytes and are live in a channel."""
    connections = [MemoryConnection() for _ in range(count)]
    for connection in connections:
        join(out, connection, channel)
    return connections


def idle(out: Fanout) -> bool:
    """Whether everything is written, and nothing is kept of it."""
    feeds = [feed for channel in out.channels.values() for feed in channel.feeds.values()]
    done = not out._inbox and not out._behind
    assert not done or (out._waiting == 0 and all(feed.log.size == 0 for feed in feeds))
    return done


def said(connection: MemoryConnection) -> list[str]:
    """The messages that a client was sent, taken from the bytes."""
    return texts(b"".join(connection.written))


def texts(wire: bytes) -> list[str]:
    """The messages in these bytes, of which each is a frame without a mask."""
    found = []
    while wire:
        first, size, start = wire[0], wire[1], 2
        if size == 126:
            size, start = int.from_bytes(wire[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(wire[2:10], "big"), 10
        payload, wire = wire[start : start + size], wire[start + size :]
        assert len(payload) == size, "a frame is cut"
        if first & 0x40:
            payload = zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")
        found.append(payload.decode())
    return found
